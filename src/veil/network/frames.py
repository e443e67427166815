"""Messages on a plain socket, each with its length before it: the row lane. See ``veil.proto``."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from veil.errors import CorruptMessage
from veil.network.busy_poll import NOTHING, BusyPoll

LENGTH_BYTES = 4
_BUFFER = 32 << 10


class Frames:
    """Sealed messages over a connected socket, TLS or not; the socket's timeout is the deadline of each read.

    Everything raises `OSError` for a connection that broke or was too slow, and `CorruptMessage` for a length over
    ``limit``. Who reads next may set ``busy_poll``: then the thread does not sleep for messages that come soon.
    """

    def __init__(self, connection: socket.socket, limit: int) -> None:
        self.connection = connection
        self.limit = limit
        self.busy_poll = False
        self._wait = BusyPoll(connection)
        self._reader = connection.makefile("rb", buffering=_BUFFER)

    def send(self, data: bytes) -> None:
        """Send one message."""
        self.connection.sendall(len(data).to_bytes(LENGTH_BYTES, "little") + data)

    def receive(self, meanwhile: Iterator[object] = NOTHING) -> bytes | None:
        """The next message; None where the other side ended the connection between two.

        A polling thread takes steps of ``meanwhile`` while there is no message; see `BusyPoll.look`.
        """
        if self.busy_poll:
            self._wait.look(meanwhile)
        head = self._reader.read(LENGTH_BYTES)
        self._wait.came()
        if not head:
            return None
        length = int.from_bytes(head, "little")
        if len(head) < LENGTH_BYTES or length > self.limit:
            raise CorruptMessage(f"a message of {length} bytes is announced, at most {self.limit} are allowed")
        data = self._reader.read(length)
        if len(data) < length:
            raise ConnectionResetError(f"the connection ended after {len(data)} of {length} bytes")
        return data

    def end(self) -> None:
        """End the connection, from any thread; one that reads from it comes back.

        Not by ``SSLSocket.shutdown``, after which a thread that writes at this moment would go on in clear.
        """
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and free it; for the thread that uses it."""
        self.end()
        with contextlib.suppress(OSError):
            self._reader.close()
        self.connection.close()
