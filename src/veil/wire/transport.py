"""The seam between client and server: a handful of calls that carry bytes.

`veil.server.engine.Engine` has these methods itself, so an engine is the in-process transport; `veil.client.remote` has
its twin over a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from veil.wire.messages import MaskUpload


class Transport(Protocol):
    """What a client session needs from the other side.

    Every call may raise `UnknownSession`: then the session and its masks are gone and a new one is needed.
    """

    def open(self) -> str:
        """A new session's name."""

    def load_epoch(self, session: str, epoch: int, keys: bytes) -> None:
        """Send the packed keys of a new epoch, or keep them until its first masks are sent."""

    def prepare(self, session: str, epoch: int, masks: Sequence[MaskUpload], segments: Sequence[str]) -> None:
        """Send masks of the epoch; returns when they are usable.

        Raises `ServerUnreachable` or `CorruptMessage` when it is not known whether they are; the same masks are not sent
        again then.
        """

    def evaluate(self, session: str, group: int, masks: Sequence[int], data: bytes) -> bytes:
        """Send packed rows of a group, one mask a row; returns packed results."""

    def release(self, session: str, masks: Sequence[int]) -> None:
        """Say that these masks will not be used again."""

    def stop(self) -> None:
        """End what is under way, from any thread: it and later calls but `close` raise `ServerUnreachable`, or end soon."""

    def close(self, session: str) -> None:
        """End the session."""
