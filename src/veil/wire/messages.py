"""Messages that both sides name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MaskUpload:
    """One mask as the client sends it: its number in the session, its set in the epoch, its packed ``b`` half."""

    number: int
    index: int
    data: bytes

    HEADER_BYTES = 5
    """Bytes that number and set take on the wire."""


@dataclass(frozen=True)
class Upload:
    """Masks of one epoch to prepare for some segments; ``keys``, packed, come with the epoch's first upload."""

    epoch: int
    keys: bytes | None
    masks: tuple[MaskUpload, ...]
    segments: tuple[str, ...]
