"""A TCP proxy that knows where messages begin, so that a test can harm the n-th one and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
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
    keeps connections open and forwards nothing, as a half-open connection does. Frames are HTTP/2's or, with ``plain``,
    messages with 4 bytes of length before them, as on the row lane.
    """

    def __init__(self, target: int, plain: bool = False) -> None:
        self.target = target
        self._plain = plain
        self.harm: Callable[[Direction, int, bytes], bytes] = lambda direction, index, frame: frame
        self.silent = False
        self.counts: dict[Direction, int] = {"up": 0, "down": 0}
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Count from zero, harm nothing."""
        self.harm = lambda direction, index, frame: frame
        self.silent = False
        with self._lock:
            self.counts = {"up": 0, "down": 0}

    def cut(self) -> None:
        """Close every connection now."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(*pair)

    def close(self) -> None:
        """End the proxy."""
        self._closed = True
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
                _close(near)
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((near, far))
            for direction, source, sink in (("up", near, far), ("down", far, near)):
                threading.Thread(target=self._pump, args=(direction, source, sink), daemon=True).start()

    def _pump(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        try:
            if direction == "up" and not self._plain:
                sink.sendall(_read(source, len(PREFACE)))
            while True:
                head = _read(source, 4 if self._plain else 9)
                length = int.from_bytes(head, "little") if self._plain else int.from_bytes(head[:3], "big")
                frame = head + _read(source, length)
                while self.silent and not self._closed:
                    time.sleep(0.01)
                if self._plain or (head[3] == DATA and len(frame) > 9):
                    with self._lock:
                        index = self.counts[direction]
                        self.counts[direction] += 1
                    frame = self.harm(direction, index, frame)
                sink.sendall(frame)
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
