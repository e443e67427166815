"""The row lane: rows over a plain TCP or TLS connection, with nothing between socket and kernel.

gRPC's Python server hands a message from thread to thread, which costs about half a millisecond a message; a token of a
small model is a hundred messages. The lane carries the same sealed messages under the same checks. One thread accepts
connections and hears their hello; who has shown a ticket goes on in the serving loop.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from veil.errors import IncompatibleServer, VeilError
from veil.network.certificates import server_context
from veil.network.listening import listening
from veil.network.ready_frames import ReadyFrames
from veil.server.calls import IDLE_S
from veil.server.logs import event
from veil.server.row_seat import Seat
from veil.server.rows import RowAnswers
from veil.server.unproven import FIRST_S, Unproven, address_of
from veil.wire import failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal

_LOG = logging.getLogger("veil.server")
_HELLO_BYTES = 4096
_NOT_NOW = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Guest:
    """A connection that has not shown a ticket."""

    def __init__(self, plain: socket.socket, address: str, tls: ssl.SSLContext | None) -> None:
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = address
        self.shaking = tls is not None
        wrapped = plain if tls is None else tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        self.frames = ReadyFrames(wrapped, _HELLO_BYTES)

    def end(self) -> None:
        """End it, from any thread; see `Frames.end`."""
        self.frames.end()


class RowLane:
    """Listens on a port of its own. ``stream(session, ticket, cancel)`` makes the stream of a connection or refuses it,
    ``serve`` gets those that have one.

    ``most`` connections may be open, half of them without having shown a ticket yet, of which the oldest makes room for a
    new one; ``ended(result)`` counts them.
    """

    def __init__(
        self,
        address: tuple[str, int],
        tls: tuple[Path, Path] | None,
        stream: Callable[[str, str, Callable[[], object]], RowAnswers],
        serve: Callable[[Seat], object],
        ended: Callable[[str], None],
        *,
        message_bytes: int,
        most: int,
    ) -> None:
        self._stream, self._serve, self._ended = stream, serve, ended
        self._message_bytes, self.most = message_bytes, most
        self._tls: ssl.SSLContext | None = None
        if tls is not None:
            self._tls = server_context(*tls)
        self._listener = listening(*address, "--rows-port")
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._guests: set[_Guest] = set()
        self._seats: set[Seat] = set()
        self._unproven: Unproven[_Guest] = Unproven(most // 2, _Guest.end)
        self._stopping = False
        self._accepting = threading.Thread(target=self._work, name="veil-lane", daemon=True)

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._guests) + len(self._seats)

    def start(self) -> None:
        """Begin to accept connections."""
        self._accepting.start()

    def cut_silent(self, silent_s: float) -> None:
        """End connections that sent no whole message for so long, or no hello within its time."""
        self._unproven.cut(min(FIRST_S, silent_s))
        self._cut(lambda one, silent: silent > silent_s)

    def stop(self, grace_s: float) -> None:
        """Accept no more, let what is under way end by itself for ``grace_s``, then end it."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._accepting.is_alive():
            self._accepting.join()
        self._listener.close()
        end = time.monotonic() + grace_s
        while self._seats and time.monotonic() < end:
            self._cut(lambda one, silent: not one.busy and silent > IDLE_S)
            time.sleep(0.02)
        self._cut(lambda one, silent: True)

    def close(self) -> None:
        """Free the connections whose end the loop did not see any more; after the loop has stopped."""
        for seat in list(self._seats):
            seat.drop()

    def _cut(self, which: Callable[[Seat, float], bool]) -> None:
        now = time.monotonic()
        with self._lock:
            chosen = [one for one in self._seats if which(one, now - one.heard)]
        for seat in chosen:
            seat.end()

    # The thread ----------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ, None)
            while not self._stopping:
                self._look(selector)
            for guest in list(self._guests):
                self._leave(selector, guest, "broken")

    def _look(self, selector: selectors.BaseSelector) -> None:
        for key, _ in selector.select(0.2):
            try:
                if key.data is None:
                    self._accept(selector)
                else:
                    self._hear(selector, key.data)
            except Exception:
                _LOG.exception("the row lane failed at a connection")
                if key.data is not None:
                    self._leave(selector, key.data, "internal")

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            accepted, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # out of files, or the connection is gone already
            time.sleep(0.01)
            return
        if self.count >= self.most:
            self._ended("quota")
            accepted.close()
            return
        try:
            guest = _Guest(accepted, address_of(f"{address[0]}:{address[1]}"), self._tls)
        except OSError:
            accepted.close()
            self._ended("broken")
            return
        self._guests.add(guest)
        selector.register(guest.frames.connection, selectors.EVENT_READ, guest)
        self._unproven.add(guest, guest.address)

    def _hear(self, selector: selectors.BaseSelector, guest: _Guest) -> None:
        """Go on with a handshake and a hello as far as they came."""
        connection = guest.frames.connection
        try:
            if guest.shaking:
                assert isinstance(connection, ssl.SSLSocket)
                connection.do_handshake()
                guest.shaking = False
            data = guest.frames.receive()
        except _NOT_NOW:
            return
        except EOFError:
            self._leave(selector, guest, "broken")
            return
        except VeilError as error:
            self._refuse(selector, guest, error)
            return
        except OSError:
            self._leave(selector, guest, "broken")
            return
        if data is not None:
            self._greet(selector, guest, data)

    def _greet(self, selector: selectors.BaseSelector, guest: _Guest, data: bytes) -> None:
        try:
            hello = unseal(data, pb.LaneHello)
            if hello.protocol != methods.PROTOCOL:
                raise IncompatibleServer(f"the server speaks protocol {methods.PROTOCOL}")
            stream = self._stream(hello.session, hello.ticket, guest.frames.end)
        except VeilError as error:
            self._refuse(selector, guest, error)
            return
        self._unproven.remove(guest)
        selector.unregister(guest.frames.connection)
        guest.frames.limit = self._message_bytes
        seat = Seat(guest.frames, stream, self._gone)
        with self._lock:
            self._seats.add(seat)
            self._guests.discard(guest)
        try:
            sent = guest.frames.send(seal(pb.EvaluateReply()))
        except OSError:
            sent = False
        if sent:
            self._serve(seat)
        else:
            seat.drop()

    def _refuse(self, selector: selectors.BaseSelector, guest: _Guest, error: VeilError) -> None:
        _, name = failures.status_of(error)
        event("refused", method="Rows", error=name)
        with contextlib.suppress(OSError):
            guest.frames.send(seal(pb.EvaluateReply(error=name, details=str(error))))
        self._leave(selector, guest, name)

    def _leave(self, selector: selectors.BaseSelector, guest: _Guest, result: str) -> None:
        self._unproven.remove(guest)
        with contextlib.suppress(KeyError, ValueError):
            selector.unregister(guest.frames.connection)
        if guest in self._guests:
            self._guests.discard(guest)
            guest.frames.close()
            self._ended(result)

    def _gone(self, seat: Seat, result: str) -> None:
        with self._lock:
            self._seats.discard(seat)
        self._ended(result)
