"""The serving loop: takes whatever rows have arrived from all connections, multiplies each group once for all, answers.

A few threads share it. One of them, the leader, reads what came, checks it and chooses the next product; then it lets
another lead and multiplies. A lone client's thread keeps the lead, so nothing is handed over, and looks for the next
message without sleeping. A GPU's product is of all groups that are asked: a launch costs more than a small product.
"""

from __future__ import annotations

import logging
import threading
import time

import numpy as np

from veil.errors import ServerUnreachable
from veil.kernels.interface import GroupResults
from veil.priority import cores
from veil.server.arrivals import Arrivals
from veil.server.engine import Claim, Engine
from veil.server.row_seat import Seat
from veil.server.seats import Seats
from veil.server.stages import Stages
from veil.server.store import SessionStore
from veil.server.turns import Asked, FairTurns, RowPiece

_LOG = logging.getLogger("veil.server")

_WORTH_THREADS = 8 << 20
"""Multiply-adds of a product from which on it pays to wake other threads: a third of a millisecond on one."""
_MOST_THREADS, _CORES_A_THREAD = 4, 4
"""Threads of a loop, and the cores that each should have.

Products take several cores, and what one thread does not take at once waits: so rows of one group come together.
"""

_IDLE_S = 1.0
_NONE = GroupResults(np.empty(0, np.uint8), [])


class RowLoop:
    """Serves seats and `answer`. ``threads`` is as many as there are cores, 4 at most, or 1 for a GPU.

    What has a place in ``arrivals`` is received and answered together; without, each message is read by itself. With
    ``joins``, an engine that joins groups and the store of its sessions, one thread serves what is usual in rounds.
    ``beside`` is how many loops share the machine's cores.
    """

    def __init__(
        self,
        stages: Stages | None = None,
        *,
        threads: int | None = None,
        turns: FairTurns | None = None,
        arrivals: Arrivals | None = None,
        joins: tuple[Engine, SessionStore] | None = None,
        beside: int = 1,
    ) -> None:
        self._stages = stages or Stages()
        self._turns = turns or FairTurns()
        self._arrivals = arrivals or Arrivals(0, 0)
        self.seats = Seats(self._arrivals, self._stages, joins, self._saw, beside)
        self._watch = self.seats.watch
        self._lead = threading.Lock()
        self._lock = threading.Lock()  # of the turns, and of what follows
        self._running = 0
        self._stopping = False
        count = threads or max(1, min(_MOST_THREADS, cores() // (_CORES_A_THREAD * beside)))
        self._threads = [threading.Thread(target=self._work, name=f"veil-rows-{n}", daemon=True) for n in range(count)]

    def start(self) -> None:
        """Begin to serve."""
        self.seats.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; what waits is told that the server stops."""
        self._stopping = True
        self.seats.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        with self._lock:
            waiting = [piece.asked for _ in range(len(self._turns)) if len(self._turns) for piece in self._turns.take(0.0)]
        for asked in waiting:
            asked.failed = ServerUnreachable("the server is shutting down")
            asked.done(asked)
        self.seats.close()

    def add(self, seat: Seat) -> None:
        """Serve a connection that has shown its ticket."""
        self.seats.add(seat)

    def answer(self, engine: Engine, claim: Claim, flow: str = "") -> bytes:
        """The packed results of a claim, for a thread that waits for them; raises what its product did."""
        over = threading.Event()
        asked = Asked(engine, claim, flow, lambda _: over.set(), time.perf_counter())
        with self._lock:
            if self._stopping:
                raise ServerUnreachable("the server is shutting down")
            self._turns.add(asked)
        self._watch.heard_from(over)
        self._watch.wake()
        over.wait()
        if asked.failed is not None:
            raise asked.failed
        return asked.reply

    def _work(self) -> None:
        self._arrivals.limit_threads()
        while not self._stopping:
            self._lead.acquire()
            leading = True
            try:
                pieces = self.gather()
                if pieces and not self._watch.alone:
                    self._lead.release()
                    leading = False
                if pieces:
                    self.serve(pieces)
                    pieces = []  # a connection that ends is not kept by whoever served it last
            except Exception:
                _LOG.exception("the serving loop failed at something; it goes on")
                time.sleep(0.01)
            finally:
                if leading:
                    self._lead.release()

    def gather(self) -> list[RowPiece]:
        """Read what has come; the next product, nothing when it is time to look whether the loop stops."""
        seats, turns, watch = self.seats, self._turns, self._watch
        alone = watch.alone
        if alone and not len(turns):
            watch.look()
        came = seats.read(0.0 if len(turns) or seats.unread else _IDLE_S)
        if alone:
            watch.came()
            if len(came) == 1 and not len(turns) and not self._stopping:
                self._serve_alone(came[0])
                return []
        with self._lock:
            if self._stopping:
                self._wait_for(came)
                return []
            if len(came) == 1 and not len(turns):
                pieces = turns.alone(came[0], came[0].since)
            else:
                self._wait_for(came)
                pieces = turns.take(time.perf_counter()) if len(turns) else []
            self._running += bool(pieces)
        return pieces

    def _saw(self, flow: str, now: float) -> None:
        with self._lock:
            self._turns.saw(flow, now)

    def _wait_for(self, came: list[Asked]) -> None:
        for asked in came:
            self._turns.add(asked)

    def _serve_alone(self, asked: Asked) -> None:
        """As `serve`, where nobody else is there: nothing is weighed, and no other thread has to be told."""
        start = time.perf_counter()
        engine, claims = asked.engine, [asked.claim]
        try:
            results = engine.results(claims, serial=engine.work(asked.claim) < _WORTH_THREADS)
            if not asked.usual:
                asked.pieces.append(results.packed.tobytes())
        except Exception as error:
            asked.failed = error
        end = time.perf_counter()
        if asked.usual and asked.failed is None:
            self.seats.reply_together([(asked, 0, len(results.packed))], results.packed)
            assert isinstance(asked.seat, Seat)
            asked.seat.stream.look_ahead(asked.claim)
        else:
            self._hand_over(asked)
        spent = (asked.checked_s, start - asked.since, end - start, time.perf_counter() - end)
        self._stages.answered(spent, 1, asked.claim.count, end - start)

    def serve(self, pieces: list[RowPiece]) -> None:
        """Compute the product of some requests' rows together, and send each its results."""
        start = time.perf_counter()
        engine, claims = pieces[0].asked.engine, [piece.claim for piece in pieces]
        failure: Exception | None = None
        results = _NONE
        try:
            serial = self._running > 1 or sum(map(engine.work, claims)) < _WORTH_THREADS
            results = engine.results(claims, serial=serial)
        except Exception as error:
            failure = error
        end = time.perf_counter()
        with self._lock:
            self._running -= 1
            for piece in pieces:
                piece.asked.failed = failure
            self._turns.took(pieces, end - start)
        self._answer(pieces, results, failure, (start, end))

    def _answer(
        self, pieces: list[RowPiece], results: GroupResults, failure: Exception | None, times: tuple[float, float]
    ) -> None:
        """Hand the results of a product over, and count where the time of its messages went."""
        start, end = times
        checked = waited = 0.0
        rows = whole = 0
        together: list[tuple[Asked, int, int]] = []
        for piece, (first, last) in zip(pieces, results.places or [(0, 0)] * len(pieces), strict=True):
            asked = piece.asked
            rows += piece.claim.count
            waited += start - (asked.begun or asked.since)
            ends = piece.last or failure is not None
            if ends and asked.usual and failure is None and not asked.pieces:
                together.append((asked, first, last))
            elif failure is None:
                asked.pieces.append(results.packed[first:last].tobytes())
            if ends:
                checked += asked.checked_s
                whole += 1
                if not (together and together[-1][0] is asked):
                    self._hand_over(asked)
            else:
                asked.begun = end
        if together:
            self.seats.reply_together(together, results.packed)
        if failure is None and whole < len(pieces):
            self._watch.wake()  # what is left of a prompt waits again
        multiplied = end - start
        spent = (checked, waited, multiplied * len(pieces), (time.perf_counter() - end) * (len(pieces) + 1) / 2)
        self._stages.answered(spent, whole, rows, multiplied)

    @staticmethod
    def _hand_over(asked: Asked) -> None:
        try:
            asked.done(asked)
        except Exception:  # the others get their results
            _LOG.exception("the serving loop failed at a reply")
