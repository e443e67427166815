"""Threads that receive, check and send for the rounds of `veil.server.joined_rounds`, each for its share of the connections.

They hold no interpreter, so they work beside whoever claims and multiplies. What they hand to each other is a word for each
connection, see `veil.server.front_io`.
"""

from __future__ import annotations

import select
import socket
import sys
import threading

import numpy as np

from veil.kernels.cpu.siphash import KEY
from veil.priority import cores
from veil.server import front_io
from veil.server.arrivals import Arrivals
from veil.server.front_io import FRONT, LOOP, RESTING, STOPPING
from veil.server.row_io import COLUMNS

_LOOKS = 3000
"""Without anything for so many looks, a millisecond or some, a front goes to sleep."""

_MOST, _CORES = 4, 4


class Fronts:
    """Fronts for the connections of ``arrivals``: one for each four cores, 4 at most. ``wake`` rings for rounds.

    ``beside`` is how many serving loops with fronts of their own share the cores.
    """

    def __init__(self, arrivals: Arrivals, wake: socket.socket, beside: int = 1) -> None:
        assert sys.platform == "linux"
        self._arrivals, self._wake = arrivals, wake
        count = min(_MOST, max(1, cores() // (_CORES * beside)))
        self.shared = np.zeros(2, np.int64)
        self.shared[RESTING] = 1
        self._polls = [select.epoll() for _ in range(count)]
        self._ends = [socket.socketpair() for _ in range(count)]
        for poll, (end, _) in zip(self._polls, self._ends, strict=True):
            poll.register(end, select.EPOLLIN)
        self._threads = [
            threading.Thread(target=self._work, args=(which,), name=f"veil-front-{which}", daemon=True)
            for which in range(count)
        ]

    def start(self) -> None:
        """Begin to serve."""
        compile_kernel()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; connections are the serving loop's from then on."""
        self.shared[STOPPING] = 1
        for _, end in self._ends:
            end.send(b"\0")
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        for poll, ends in zip(self._polls, self._ends, strict=True):
            poll.close()
            for end in ends:
                end.close()

    def add(self, place: int, file: int) -> None:
        """Look after a connection as long as it lives; it is the serving loop's until it is given to its front."""
        self._arrivals.hands[place] = LOOP
        self._polls[place % len(self._polls)].register(file, select.EPOLLIN)

    def give(self, place: int) -> None:
        """Let a connection's front receive from it."""
        front_io.give(self._arrivals.hands, place, FRONT)

    def _work(self, which: int) -> None:
        poll, arrivals, wake = self._polls[which], self._arrivals, self._wake.fileno()
        events = np.zeros(front_io.MOST_EVENTS * front_io.EVENT_WORDS, np.int32)
        while not self.shared[STOPPING]:
            poll.poll(1.0, 1)
            front_io.front(
                which, len(self._polls), poll.fileno(), events, arrivals.files, arrivals.table, arrivals.arena,
                arrivals.hands, self.shared, wake, KEY, _LOOKS,
            )  # fmt: skip


def compile_kernel() -> None:
    """Have the kernel of fronts ready before a message comes."""
    words, stopped = np.zeros(0, np.int64), np.ones(2, np.int64)
    table, arena = np.zeros((0, COLUMNS), np.int64), np.zeros((0, 0), np.uint8)
    front_io.front(0, 1, -1, np.zeros(0, np.int32), words, table, arena, words, stopped, -1, KEY, 1)
