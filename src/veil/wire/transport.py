"""The seam between client and server: a handful of calls that carry packed arrays.

`veil.server.local.LocalServer` has them in the client's own process, `veil.client.remote.RemoteTransport` over a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from veil.kernels.interface import Array
from veil.wire.messages import BatchUpload, Span


class Transport(Protocol):
    """What a client session needs from the other side.

    Every call may raise `UnknownSession`: then the session and its batches are gone and a new one is needed.
    """

    batch_ttl_s: float
    """Seconds for which the other side keeps a batch."""

    def open(self) -> str:
        """A new session's name."""

    def prepare(self, session: str, batches: Sequence[BatchUpload], segments: Sequence[str]) -> None:
        """Send batches; returns when their rows are usable.

        Raises `ServerUnreachable` or `CorruptMessage` when it is not known whether they are; the same batches are not sent
        again then.
        """

    def evaluate(self, session: str, group: int, spans: Sequence[Span], data: Array, slots: int) -> Array:
        """Send packed rows [R, bytes] of a group, one row of a batch for each; returns packed results [R, bytes].

        ``slots`` is how many of the group's outputs, from the first on, are answered.
        """

    def release(self, session: str, batches: Sequence[int]) -> None:
        """Say that these batches will not be used again."""

    def stop(self) -> None:
        """End what is under way, from any thread: it and later calls but `close` raise `ServerUnreachable`, or end soon."""

    def close(self, session: str) -> None:
        """End the session."""
