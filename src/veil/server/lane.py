"""The row lane: rows over a plain TCP or TLS connection, one thread each, with nothing between socket and kernel.

gRPC's Python server hands a message from thread to thread, which costs about half a millisecond a message; a token of a
small model is a hundred messages. The lane carries the same sealed messages under the same checks.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from veil.errors import IncompatibleServer, VeilError
from veil.server.logs import event
from veil.server.rows import RowStream
from veil.wire import failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal
from veil.wire.frames import Frames

_HELLO_S = 10.0
_HELLO_BYTES = 4096


class RowLane:
    """Listens on a port of its own. ``stream(token, cancel)`` makes the stream of a connection or refuses its token."""

    def __init__(
        self,
        address: tuple[str, int],
        tls: tuple[Path, Path] | None,
        stream: Callable[[str, Callable[[], object]], RowStream],
        *,
        message_bytes: int,
        most: int,
        silent_s: float,
    ) -> None:
        self._stream = stream
        self._message_bytes, self._most, self._silent_s = message_bytes, most, silent_s
        self._tls: ssl.SSLContext | None = None
        if tls is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
            self._tls.load_cert_chain(*tls)
        host = address[0].strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, address[1]), family=family)
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._stopping = False
        self._accepting = threading.Thread(target=self._accept, name="veil-lane", daemon=True)

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._open)

    def start(self) -> None:
        """Begin to accept connections."""
        self._accepting.start()

    def stop(self, grace_s: float) -> None:
        """Accept no more, let open connections end by themselves for ``grace_s``, then end them."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        end = time.monotonic() + grace_s
        while self._open and time.monotonic() < end:
            time.sleep(0.02)
        with self._lock:
            left = list(self._open)
        for connection in left:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                time.sleep(0.01)
                continue
            with self._lock:
                full = len(self._open) >= self._most
                if not full:
                    self._open.add(connection)
            if full:
                connection.close()
            else:
                threading.Thread(target=self._serve, args=(connection,), name="veil-row", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        secured = connection
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(_HELLO_S)
            if self._tls is not None:
                secured = self._tls.wrap_socket(connection, server_side=True)
                with self._lock:
                    self._open.discard(connection)
                    self._open.add(secured)
            self._answer(Frames(secured, _HELLO_BYTES))
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {connection, secured}
            secured.close()

    def _answer(self, frames: Frames) -> None:
        stream: RowStream | None = None
        try:
            hello = unseal(frames.receive(), pb.LaneHello)
            if hello.protocol != methods.PROTOCOL:
                raise IncompatibleServer(f"the server speaks protocol {methods.PROTOCOL}")
            stream = self._stream(hello.token, frames.end)
            stream.adopt(hello.session)
            frames.send(seal(pb.EvaluateReply()))
            frames.connection.settimeout(self._silent_s)
            frames.limit = self._message_bytes
            while (data := frames.receive()) is not None:
                frames.send(stream.answer(data))
        except VeilError as error:
            _, name = failures.status_of(error)
            event("refused", method="lane", error=name)
            frames.send(seal(pb.EvaluateReply(error=name, details=str(error))))
        finally:
            if stream is not None:
                stream.end()
            frames.close()
