"""Rounds: what came on all connections is claimed, multiplied in one launch and handed out, without the interpreter.

A round is of usual messages of decoding clients on any groups of one engine. Fronts receive and send meanwhile. Everything
else is left to the serving loop. Claims are made in the table of `veil.server.store.SessionStore`, under its lock and by the
rule of `veil.server.spending`, as all are.
"""

from __future__ import annotations

import logging
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veil.kernels import joined_rows as row
from veil.kernels.interface import JoinedProduct
from veil.server import front_io, row_io
from veil.server.arrivals import Arrivals
from veil.server.batch_table import MOST_SEGMENTS, BatchTable
from veil.server.engine import Engine
from veil.server.front_io import FRONT, LOOP, RESTING, ROUND, UNSENT
from veil.server.fronts import Fronts
from veil.server.row_io import BYTES_IN, BYTES_OUT, CHECK_NS, COLUMNS, MESSAGES, REPLY_NS, ROWS_SUM
from veil.server.stages import Stages
from veil.server.store import SessionStore

I64 = NDArray[np.int64]

_LOOKS = 3000
"""Without a message for so many looks, some milliseconds, the loop goes to sleep."""

_TELL_S = 0.05
_REST_S = 1.0
_INTERPRETER_S = 5e-4
"""A thread with a prompt gives the interpreter to a round after so long, of this process; it would be ten times that."""

_LOG = logging.getLogger("veil.server")


_SUMS = [MESSAGES, ROWS_SUM, BYTES_IN, BYTES_OUT, CHECK_NS, REPLY_NS]


@dataclass(frozen=True)
class Answered:
    """What rounds answered of a connection since the last time."""

    place: int
    messages: int
    rows: int
    received: int
    sent: int


class JoinedRounds:
    """Serves what fronts received, in a thread of its own.

    ``left(places)`` gets connections whose message is to be read by itself, ``rest(place)`` is called for one that did not
    take its whole reply at once, ``told`` now and then with what was answered. ``beside`` serving loops share the cores.
    """

    def __init__(
        self,
        engine: Engine,
        store: SessionStore,
        arrivals: Arrivals,
        stages: Stages,
        left: Callable[[list[int]], object],
        rest: Callable[[int], object],
        told: Callable[[list[Answered]], object],
        beside: int = 1,
    ) -> None:
        self._engine, self._store, self._arrivals, self._stages = engine, store, arrivals, stages
        self._left_to, self._rest, self._told = left, rest, told
        self._bell, self._ring = socket.socketpair()
        for end in (self._bell, self._ring):
            end.setblocking(False)
        self._poll = select.epoll()
        self._poll.register(self._bell, select.EPOLLIN)
        self._fronts = Fronts(arrivals, self._ring, beside)
        self._shared = self._fronts.shared
        self._groups = groups_of(engine)
        count = len(arrivals.table)
        self._events = np.zeros(front_io.EVENT_WORDS, np.int32)
        self._found = np.zeros(2 * count, np.int64)
        self._left = np.zeros(2 * count, np.int64)
        self._results = [np.zeros(0, np.uint8), np.zeros(0, np.uint8)]
        self._counts = [0, 0]
        self._which = self._waiting = 0
        self._telling = threading.Lock()
        self._told_at = time.perf_counter()
        self._before = np.zeros((count, len(_SUMS)), np.int64)
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="veil-rounds", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        sys.setswitchinterval(_INTERPRETER_S)
        compile_kernels()
        self._fronts.start()
        self._thread.start()

    def stop(self) -> None:
        """End the threads; connections are the serving loop's from then on."""
        self._stopping = True
        self._ring.send(b"\0")
        if self._thread.is_alive():
            self._thread.join()
        self._fronts.stop()
        self._poll.close()
        self._bell.close()
        self._ring.close()

    def add(self, place: int, file: int) -> None:
        """Know a connection, which is the serving loop's until it is given."""
        self._fronts.add(place, file)

    def give(self, place: int) -> None:
        """Have a connection's next message received by its front."""
        self._fronts.give(place)

    def _work(self) -> None:
        with self._engine.kernels.chosen():
            self._serve_always()

    def _serve_always(self) -> None:
        product = self._engine.kernels.joined()
        product.take_widths(group.width for group in self._engine.model.manifest.groups)
        self._product: JoinedProduct = product
        self._rows = np.zeros((product.most_rows, row.COLUMNS), np.int64)
        self._turns = [np.zeros((product.most_rows, row.REPLY_COLUMNS), np.int64) for _ in range(2)]
        while not self._stopping:
            self._poll.poll(_REST_S, 1)
            try:
                self._serve()
            except Exception:
                _LOG.exception("a round failed; its connections end")
                self._fail()

    def _serve(self) -> None:
        """Rounds until nothing came for some milliseconds."""
        shared, hands, found = self._shared, self._arrivals.hands, self._found
        shared[RESTING] = 0
        while not self._stopping:
            looks = 1 if self._waiting else _LOOKS
            count, rung = front_io.look(self._poll.fileno(), self._events, hands, found[self._waiting :], looks)
            if rung:
                self._drain()
            here = self._waiting + count
            if here:
                self._round(here)
            elif not rung and self._rests():
                return
            if time.perf_counter() - self._told_at > _TELL_S:
                self.tell()

    def _drain(self) -> None:
        try:
            self._bell.recv(4096)
        except OSError:
            return

    def _fail(self) -> None:
        """End the connections of a round that could not be answered."""
        hands = self._arrivals.hands
        for place in np.flatnonzero(hands == ROUND).tolist():
            self._arrivals.end(place)
            hands[place] = FRONT
        self._waiting = 0

    def tell(self) -> None:
        """Say what was answered since the last time."""
        with self._telling:
            self._tell()

    def _tell(self) -> None:
        self._told_at = time.perf_counter()
        sums = self._arrivals.table[:, _SUMS]
        new = sums - self._before
        which = np.flatnonzero(new[:, 0])
        if not len(which):
            return
        self._before = sums
        self._stages.fronted(*(int(total) / 1e9 for total in new[:, -2:].sum(axis=0)))
        self._told([Answered(place, *own) for place, own in zip(which.tolist(), new[which, :-2].tolist(), strict=True)])

    def forget(self, place: int) -> None:
        """Count what a connection that ends had; its sums begin anew."""
        with self._telling:
            self._tell()
            self._arrivals.table[place, _SUMS] = 0
            self._before[place] = 0

    def _rests(self) -> bool:
        """Have fronts ring from now on; whether nobody has sent anything meanwhile."""
        self.tell()
        for which in range(2):
            self._await_sent(which)
        self._store.in_table(self._engine, lambda batches, _: batches.forget())
        front_io.give(self._shared, RESTING, 1)  # before it is looked once more: a message after that rings
        count, _ = front_io.look(self._poll.fileno(), self._events, self._arrivals.hands, self._found[:1], 1)
        if count:
            self._shared[RESTING] = 0
        return not count

    def _round(self, here: int) -> None:
        """Claim, multiply and answer the first messages found; hand on those that are left."""
        which = self._which = 1 - self._which
        self._await_sent(which)
        turns = self._turns[which]
        count, left, self._waiting = self._claim(self._found[:here], turns)
        self._counts[which] = count
        if left:
            self._left_to([place for place in self._left[:left].tolist() if not self._unsent(place)])
        if count:
            turns, begun = turns[:count], time.perf_counter()
            waited = front_io.waited_ns(self._arrivals.table, turns) / 1e9
            self._product.begin(self._rows[:count], turns)
            packed = self._results[which] = self._product.finish()
            done = time.perf_counter()
            front_io.hand_out(self._arrivals.table, self._arrivals.hands, turns, packed)
            rows = int(self._rows[:count, row.COUNT].sum())
            self._stages.answered((0.0, waited, (done - begun) * count, 0.0), count, rows, done - begun)

    def _await_sent(self, which: int) -> None:
        """Wait until the results of the round before the last were sent: their memory is used again."""
        count = front_io.await_sent(self._arrivals.hands, self._turns[which][: self._counts[which]], self._left)
        self._counts[which] = 0
        for place in self._left[:count].tolist():
            self._unsent(place)

    def _unsent(self, place: int) -> bool:
        """Whether a connection did not take all of its reply; then somebody else goes on with it."""
        if self._arrivals.hands[place] != UNSENT:
            return False
        self._arrivals.hands[place] = LOOP
        self._rest(place)
        return True

    def _claim(self, found: I64, turns: I64) -> tuple[int, int, int]:
        """How many of these connections' messages are in a round now, are left, and wait."""
        arrivals = self._arrivals

        def use(batches: BatchTable, now: float) -> tuple[int, int, int]:
            batches.forget()  # the last round is over
            return front_io.claim(
                arrivals.table, arrivals.arena, arrivals.hands, found, self._groups, batches.batches, batches.expires,
                batches.heads, batches.names, now, len(self._rows), self._rows, turns, self._left,
            )  # fmt: skip

        return self._store.in_table(self._engine, use)


def compile_kernels() -> None:
    """Have the kernels of rounds ready before a message comes."""
    words, table, turns = np.zeros(0, np.int64), np.zeros((0, COLUMNS), np.int64), np.zeros((0, row.REPLY_COLUMNS), np.int64)
    rows, data = np.zeros((0, row.COLUMNS), np.int64), np.zeros(0, np.uint8)
    batches = BatchTable(lambda values: 0)
    front_io.look(-1, np.zeros(front_io.EVENT_WORDS, np.int32), words, words, 1)
    front_io.claim(
        table, np.zeros((0, 0), np.uint8), words, words, np.zeros((0, front_io.GROUP_COLUMNS), np.int64), batches.batches,
        batches.expires, batches.heads, batches.names, 0.0, 0, rows, turns, words,
    )  # fmt: skip
    front_io.waited_ns(table, turns)
    front_io.hand_out(table, words, turns, data)
    front_io.await_sent(words, turns, words)


def can_join(engine: Engine) -> bool:
    """Whether rounds can serve an engine."""
    return row_io.AVAILABLE and engine.joins_groups and len(engine.model.manifest.segments) <= MOST_SEGMENTS


def groups_of(engine: Engine) -> I64:
    """What a claim takes of each group: [groups, GROUP_COLUMNS], see `veil.server.front_io`."""
    segments = list(engine.model.manifest.segments)
    made = np.zeros((engine.groups, front_io.GROUP_COLUMNS), np.int64)
    for index, group in enumerate(engine.model.manifest.groups):
        segment, outputs, row_bytes = engine.place(index)
        own = made[index]
        own[row.WEIGHTS], own[row.OUTPUTS], own[row.WIDTH] = (
            engine.kernels.address(engine.weights[index]),
            outputs,
            group.width,
        )
        own[row.UP], own[row.DOWN], own[row.ROW_BYTES] = group.input_bits, group.result_bits, row_bytes
        own[front_io.SEGMENT], own[front_io.COLUMN] = segments.index(segment), engine.model.manifest.starts[index]
    return made
