"""Messages on a socket that is read and written only as far as it is ready: for one thread with many connections."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Sequence

from veil.errors import CorruptMessage
from veil.network.frames import LENGTH_BYTES

_READ = 256 << 10
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ReadyFrames:
    """The same messages as `veil.network.frames.Frames`, without waiting; the socket, TLS or not, is made non-blocking.

    Everything raises `OSError` for a connection that broke, `EOFError` where the other side ended it between two messages,
    and `CorruptMessage` for a length over ``limit``. Of more than one message only one is kept in memory.
    """

    def __init__(self, connection: socket.socket, limit: int) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.limit = limit
        self._in = bytearray()
        self._out: deque[memoryview] = deque()

    @property
    def unsent(self) -> int:
        """Bytes of replies that the other side has not taken yet."""
        return sum(map(len, self._out))

    @property
    def held(self) -> bool:
        """Whether bytes were read that no message was made of yet: the socket need not become readable for the next."""
        pending = self.connection.pending() if isinstance(self.connection, ssl.SSLSocket) else 0
        return bool(self._in) or pending > 0

    def receive(self) -> bytes | None:
        """The next whole message; None where not all of it is there yet."""
        while True:
            if self._in and (wanted := self._wanted()) and len(self._in) >= wanted:
                data = bytes(memoryview(self._in)[LENGTH_BYTES:wanted])
                del self._in[:wanted]
                return data
            try:
                piece = self.connection.recv(_READ)
            except _NOT_NOW:
                return None
            if not piece:
                if self._in:
                    raise ConnectionResetError(f"the connection ended after {len(self._in)} bytes of a message")
                raise EOFError
            if not self._in and len(piece) > LENGTH_BYTES and self._length(piece) == len(piece) - LENGTH_BYTES:
                return piece[LENGTH_BYTES:]
            self._in += piece

    def put_back(self, data: bytes | memoryview) -> None:
        """Have bytes that were read elsewhere before what comes."""
        self._in += data

    def send_rest(self, data: bytes, sent: int) -> bool:
        """Go on with a message of which ``sent`` bytes, its length included, went elsewhere; see `send`."""
        self._out.append(memoryview(len(data).to_bytes(LENGTH_BYTES, "little") + data)[sent:])
        return self.flush()

    def send(self, data: bytes) -> bool:
        """Send a message, or keep what the socket does not take; whether all of it went."""
        return self.send_parts([data])

    def send_parts(self, parts: Sequence[bytes]) -> bool:
        """As `send`, for a message in parts: large ones are not copied once more."""
        self._out.append(memoryview(sum(map(len, parts)).to_bytes(LENGTH_BYTES, "little") + parts[0]))
        self._out.extend(memoryview(part) for part in parts[1:] if part)
        return self.flush()

    def flush(self) -> bool:
        """Send more of what is kept; whether nothing is left."""
        while self._out:
            try:
                sent = self.connection.send(self._out[0])
            except _NOT_NOW:
                return False
            if sent == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][sent:]
        return True

    def end(self) -> None:
        """End the connection, from any thread; see `Frames.end`."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and free it; for the thread that uses it."""
        self.end()
        self.connection.close()

    def _wanted(self) -> int:
        """Bytes of the message that begins in what was read, with its length; 0 where that is not known."""
        return LENGTH_BYTES + self._length(self._in) if len(self._in) >= LENGTH_BYTES else 0

    def _length(self, data: bytes | bytearray) -> int:
        length = int.from_bytes(data[:LENGTH_BYTES], "little")
        if length > self.limit:
            raise CorruptMessage(f"a message of {length} bytes is announced, at most {self.limit} are allowed")
        return length
