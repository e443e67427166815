"""The row lane: rows over a plain TCP or TLS connection, one thread each, with nothing between socket and kernel.

gRPC's Python server hands a message from thread to thread, which costs about half a millisecond a message; a token of a
small model is a hundred messages. The lane carries the same sealed messages under the same checks.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from veil.errors import IncompatibleServer, VeilError
from veil.network.certificates import server_context
from veil.network.frames import Frames
from veil.network.listening import listening
from veil.server.calls import IDLE_S
from veil.server.logs import event
from veil.server.rows import RowAnswers
from veil.server.unproven import FIRST_S, Unproven, address_of
from veil.wire import failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal

_LOG = logging.getLogger("veil.server")
_HELLO_BYTES = 4096
_ALONE_S = 0.25


class _Connection:
    """One accepted connection: what ends it, when it was last heard of, and whether it has shown a ticket."""

    def __init__(self, plain: socket.socket, address: str) -> None:
        self.socket = plain
        self.address = address
        self.heard = time.monotonic()
        self.known = False
        self.busy = False

    def end(self) -> None:
        """End it, from any thread; see `Frames.end`."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class RowLane:
    """Listens on a port of its own. ``stream(session, ticket, cancel)`` makes the stream of a connection or refuses it.

    ``most`` connections may be open, half of them without having shown a ticket yet, of which the oldest makes room for a
    new one; ``ended(result)`` counts them.
    """

    def __init__(
        self,
        address: tuple[str, int],
        tls: tuple[Path, Path] | None,
        stream: Callable[[str, str, Callable[[], object]], RowAnswers],
        ended: Callable[[str], None],
        *,
        message_bytes: int,
        most: int,
    ) -> None:
        self._stream, self._ended = stream, ended
        self._message_bytes, self._most = message_bytes, most
        self._tls: ssl.SSLContext | None = None
        if tls is not None:
            self._tls = server_context(*tls)
        self._listener = listening(*address, "--rows-port")
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._open: set[_Connection] = set()
        self._unproven: Unproven[_Connection] = Unproven(most // 2, _Connection.end)
        self._latest: _Connection | None = None
        self._changed = 0.0
        self._stopping = False
        self._accepting = threading.Thread(target=self._accept, name="veil-lane", daemon=True)

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._open)

    def start(self) -> None:
        """Begin to accept connections."""
        self._accepting.start()

    def cut_silent(self, silent_s: float) -> None:
        """End connections that sent no whole message for so long, or no hello within its time."""
        self._unproven.cut(min(FIRST_S, silent_s))
        self._cut(lambda one, silent: one.known and silent > silent_s)

    def stop(self, grace_s: float) -> None:
        """Accept no more, let what is under way end by itself for ``grace_s``, then end it."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        end = time.monotonic() + grace_s
        while self._open and time.monotonic() < end:
            self._cut(lambda one, silent: not one.busy and silent > IDLE_S)
            time.sleep(0.02)
        self._cut(lambda one, silent: True)

    def _alone(self, connection: _Connection) -> bool:
        """Whether no other connection had a message lately: one thread may look for the next, several would get in each
        other's way."""
        if self._latest is not connection:
            self._latest, self._changed = connection, connection.heard
        return connection.heard - self._changed > _ALONE_S

    def _cut(self, which: Callable[[_Connection, float], bool]) -> None:
        now = time.monotonic()
        with self._lock:
            chosen = [one for one in self._open if which(one, now - one.heard)]
        for connection in chosen:
            connection.end()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                accepted, address = self._listener.accept()
            except OSError:
                time.sleep(0.01)
                continue
            self._begin(_Connection(accepted, address_of(f"{address[0]}:{address[1]}")))

    def _begin(self, connection: _Connection) -> None:
        with self._lock:
            full = len(self._open) >= self._most
            if not full:
                self._open.add(connection)
        if full:
            self._ended("quota")
            connection.socket.close()
            return
        self._unproven.add(connection, connection.address)
        try:
            threading.Thread(target=self._serve, args=(connection,), name="veil-row", daemon=True).start()
        except Exception as error:
            _LOG.error("no thread for a row stream: %s", error)
            self._drop(connection, "internal")

    def _drop(self, connection: _Connection, result: str) -> None:
        self._unproven.remove(connection)
        with self._lock:
            self._open.discard(connection)
            if self._latest is connection:
                self._latest = None
        connection.end()
        connection.socket.close()
        self._ended(result)

    def _serve(self, connection: _Connection) -> None:
        result = "broken"
        try:
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.socket.settimeout(FIRST_S)
            if self._tls is not None:
                connection.socket = self._tls.wrap_socket(connection.socket, server_side=True)
            result = self._answer(connection, Frames(connection.socket, _HELLO_BYTES))
        except OSError:
            pass
        except Exception:
            _LOG.exception("a row stream failed")
            result = "internal"
        finally:
            self._drop(connection, result)

    def _answer(self, connection: _Connection, frames: Frames) -> str:
        """Serve one connection to its end; the result for the metrics."""
        stream: RowAnswers | None = None
        try:
            hello = unseal(frames.receive(), pb.LaneHello)
            if hello.protocol != methods.PROTOCOL:
                raise IncompatibleServer(f"the server speaks protocol {methods.PROTOCOL}")
            stream = self._stream(hello.session, hello.ticket, connection.end)
            connection.known, connection.heard = True, time.monotonic()
            self._unproven.remove(connection)
            frames.send(seal(pb.EvaluateReply()))
            frames.connection.settimeout(None)
            frames.limit = self._message_bytes
            while (data := frames.receive(stream.meanwhile)) is not None:
                connection.busy = True
                reply = stream.answer(data)
                connection.busy, connection.heard = False, time.monotonic()
                frames.send(reply)
                frames.busy_poll = self._alone(connection)
            return "ok"
        except VeilError as error:
            _, name = failures.status_of(error)
            event("refused", method="Rows", error=name, peer=connection.address)
            frames.send(seal(pb.EvaluateReply(error=name, details=str(error))))
            return name
        finally:
            if stream is not None:
                stream.end()
            frames.close()
