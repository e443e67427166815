"""A TCP proxy that knows where messages begin, so that a test can harm the n-th one and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Literal

Direction = Literal["up", "down"]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA = 0


class Cut(Exception):
    """Close the connection here."""


class Proxy:
    """Forwards to a port. ``harm(direction, index, frame)`` sees every DATA frame and returns what to send instead.

    ``index`` counts a direction's DATA frames over all connections; `Cut` ends both sides of a connection. ``silent``
    keeps connections open and forwards nothing; ``accepted`` and ``refused`` count connections. With ``piece_bytes`` a
    frame goes on in pieces of that size. Frames are HTTP/2's or, with ``plain``, messages with 4 bytes of length before
    them, as on the row lane.
    """

    def __init__(self, target: int, plain: bool = False) -> None:
        self.target = target
        self._plain = plain
        self.harm: Callable[[Direction, int, bytes], bytes] = lambda direction, index, frame: frame
        self.piece_bytes: int | None = None
        self.accepted = self.refused = 0
        self.counts: dict[Direction, int] = {"up": 0, "down": 0}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._silent = False
        self._dead = self._resets = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def silent(self) -> bool:
        """Whether nothing is forwarded."""
        return self._silent

    @silent.setter
    def silent(self, silent: bool) -> None:
        with self._changed:
            self._silent = silent
            self._changed.notify_all()

    def reset(self) -> None:
        """Count from zero, harm nothing."""
        self.harm = lambda direction, index, frame: frame
        self.piece_bytes = None
        with self._changed:
            self._silent, self._dead = False, 0
            self._resets += 1
            self.counts = {"up": 0, "down": 0}
            self._changed.notify_all()

    def half_open(self) -> None:
        """Forward nothing more of the connections that there are, and leave them open; others work."""
        with self._changed:
            self._dead = self.accepted

    def until_another_connection(self) -> None:
        """Wait until somebody connects after this call, or the proxy is reset or closed."""
        with self._changed:
            accepted, resets = self.accepted, self._resets
            self._changed.wait_for(lambda: self._closed or (self.accepted, self._resets) != (accepted, resets), 60)

    def cut(self) -> None:
        """Close every connection now."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(*pair)

    def close(self) -> None:
        """End the proxy."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        _close(self._listener)
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                far.settimeout(None)
            except OSError:
                self.refused += 1
                _close(near)
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self._pairs.append((near, far))
                self.accepted += 1
                number = self.accepted
                self._changed.notify_all()
            for direction, source, sink in (("up", near, far), ("down", far, near)):
                threading.Thread(target=self._pump, args=(number, direction, source, sink), daemon=True).start()

    def _pump(self, number: int, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        try:
            if direction == "up" and not self._plain:
                sink.sendall(_read(source, len(PREFACE)))
            while True:
                head = _read(source, 4 if self._plain else 9)
                length = int.from_bytes(head, "little") if self._plain else int.from_bytes(head[:3], "big")
                frame = head + _read(source, length)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or not (self._silent or number <= self._dead))
                if self._plain or (head[3] == DATA and len(frame) > 9):
                    with self._lock:
                        index = self.counts[direction]
                        self.counts[direction] += 1
                    frame = self.harm(direction, index, frame)
                size = self.piece_bytes or max(1, len(frame))
                for start in range(0, len(frame), size):
                    sink.sendall(frame[start : start + size])
        except (OSError, EOFError, Cut):
            _close(source, sink)


def _read(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = source.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
