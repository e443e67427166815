"""The serving loop: takes whatever rows have arrived from all connections, multiplies each group once for all, answers.

A few threads share it. One of them, the leader, reads what came, checks it and chooses the next product; then it lets
another lead and multiplies. A lone client's thread keeps the lead, so nothing is handed over, and looks for the next
message without sleeping. A GPU's product is of all groups that are asked: a launch costs more than a small product.
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Sequence

import numpy as np

from veil.errors import ServerUnreachable
from veil.kernels.interface import GroupResults
from veil.network.busy_poll import NOTHING, BusyPoll
from veil.priority import cores
from veil.server.arrivals import U8, Arrivals
from veil.server.engine import Claim, Engine
from veil.server.joined_rounds import Answered, JoinedRounds
from veil.server.row_io import PART, STATE, WHOLE
from veil.server.row_seat import Seat
from veil.server.stages import Stages
from veil.server.store import SessionStore
from veil.server.turns import Asked, FairTurns, RowPiece

_LOG = logging.getLogger("veil.server")

_WORTH_THREADS = 8 << 20
"""Multiply-adds of a product from which on it pays to wake other threads: a third of a millisecond on one."""
_MOST_THREADS = 4
_ALONE_S = 0.25
_IDLE_S = 1.0
_NONE = GroupResults(np.empty(0, np.uint8), [])


class RowLoop:
    """Serves seats and `answer`. ``threads`` is as many as there are cores, 4 at most, or 1 for a GPU.

    What has a place in ``arrivals`` is received and answered together; without, each message is read by itself. With
    ``joins``, an engine that joins groups and the store of its sessions, one thread serves what is usual in rounds.
    """

    def __init__(
        self,
        stages: Stages | None = None,
        *,
        threads: int | None = None,
        turns: FairTurns | None = None,
        arrivals: Arrivals | None = None,
        joins: tuple[Engine, SessionStore] | None = None,
    ) -> None:
        self._arrivals = arrivals or Arrivals(0, 0)
        self._placed: dict[int, Seat] = {}
        """Those whose messages may be answered in rounds, by their places."""

        self._handed: list[int] = []
        self._stages = stages or Stages()
        self._turns = turns or FairTurns()
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, None)
        self._joins = None if joins is None else joins[0]
        self._rounds: JoinedRounds | None = None
        if joins is not None:
            self._rounds = JoinedRounds(
                *joins, self._arrivals, self._stages, self._take_back, self._rest_of, self._answered_in_rounds
            )
        self._eager = BusyPoll(_file_of(self._selector))
        self._lead = threading.Lock()
        self._lock = threading.Lock()  # of the turns, and of what follows
        self._running = 0
        self._again: list[Seat] = []
        self._latest: object = None
        self._changed = self._heard = 0.0
        self._stopping = False
        count = threads or min(_MOST_THREADS, cores())
        self._threads = [threading.Thread(target=self._work, name=f"veil-rows-{n}", daemon=True) for n in range(count)]

    def start(self) -> None:
        """Begin to serve."""
        self._arrivals.compile()
        if self._rounds is not None:
            self._rounds.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; what waits is told that the server stops."""
        self._stopping = True
        if self._rounds is not None:
            self._rounds.stop()
        self._wake()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        with self._lock:
            waiting = [piece.asked for _ in range(len(self._turns)) if len(self._turns) for piece in self._turns.take(0.0)]
        for asked in waiting:
            asked.failed = ServerUnreachable("the server is shutting down")
            asked.done(asked)
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    # Connections ---------------------------------------------------------------------------------------------------------

    def add(self, seat: Seat) -> None:
        """Serve a connection that has shown its ticket."""
        if not isinstance(seat.frames.connection, ssl.SSLSocket):
            session = -1 if self._joins is None else seat.stream.joins(self._joins)
            file = seat.frames.connection.fileno()
            seat.place = self._arrivals.add(file, seat.stream.name, session)
            if seat.place is not None and self._rounds is not None and session >= 0:
                self._placed[seat.place] = seat
                self._rounds.add(seat.place, file)
                if self._to_front(seat):
                    return
        self._go_on(seat)

    def _to_front(self, seat: Seat) -> bool:
        """Have a connection's front receive its next message, if nothing is under way with it and rounds may answer it."""
        if self._rounds is None or seat.place not in self._placed or not seat.joins or seat.frames.unsent:
            return False
        self._look_away(seat)
        self._rounds.give(seat.place)
        return True

    def _go_on(self, seat: Seat) -> None:
        self._look_for(seat, selectors.EVENT_READ)
        if seat.frames.held:
            with self._lock:
                self._again.append(seat)
        self._wake()

    def _end(self, seat: Seat) -> None:
        """Serve it no more."""
        with self._lock:
            if self._latest is seat:
                self._latest = None
        self._look_away(seat)
        if self._rounds is not None and seat.place is not None:
            self._rounds.forget(seat.place)
        seat.drop()
        with self._lock:
            place, seat.place = seat.place, None
        if place is not None:
            self._placed.pop(place, None)
            self._arrivals.free(place)

    def answer(self, engine: Engine, claim: Claim, flow: str = "") -> bytes:
        """The packed results of a claim, for a thread that waits for them; raises what its product did."""
        over = threading.Event()
        asked = Asked(engine, claim, flow, lambda _: over.set(), time.perf_counter())
        with self._lock:
            if self._stopping:
                raise ServerUnreachable("the server is shutting down")
            self._turns.add(asked)
        self._heard_from(over)
        self._wake()
        over.wait()
        if asked.failed is not None:
            raise asked.failed
        return asked.reply

    # Threads -------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._arrivals.limit_threads()
        while not self._stopping:
            self._lead.acquire()
            leading = True
            try:
                pieces = self.gather()
                if pieces and not self._alone:
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
        alone, turns = self._alone, self._turns
        if alone and not len(turns):
            latest = self._latest
            self._eager.look(latest.meanwhile if isinstance(latest, Seat) else NOTHING)
        came = self._read(0.0 if len(turns) or self._again else _IDLE_S)
        if alone:
            self._eager.came()
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

    def _take_back(self, places: list[int]) -> None:
        """Messages that rounds leave are read by the loop."""
        with self._lock:
            self._handed += places
        self._wake()

    def _take_handed(self, came: list[Asked]) -> None:
        with self._lock:
            places, self._handed = self._handed, []
        for place in places:
            if (seat := self._placed.get(place)) is None:
                continue
            start, before = time.perf_counter(), len(came)
            self._look_for(seat, selectors.EVENT_READ)
            self._taken(seat, place, self._arrivals.known(place), came)
            for asked in came[before:]:
                asked.since = time.perf_counter()
                asked.checked_s = asked.since - start
                self._heard_from(seat)
            if not (seat.busy or seat.closing or seat.over):
                self._to_front(seat)

    def _rest_of(self, place: int) -> None:
        """A connection did not take all of its reply."""
        seat = self._placed[place]
        self._answered([(seat, seat.send_rest(*self._arrivals.unsent(place)))])

    def _answered_in_rounds(self, answered: list[Answered]) -> None:
        """Count what rounds answered, and have prompts know that they have company."""
        now = time.perf_counter()
        for own in answered:
            if (seat := self._placed.get(own.place)) is not None:
                seat.answered(own)
                with self._lock:
                    self._turns.saw(seat.stream.flow, now)

    def _wait_for(self, came: list[Asked]) -> None:
        for asked in came:
            self._turns.add(asked)

    def _read(self, wait_s: float) -> list[Asked]:
        """Take messages of whoever sent some."""
        found = self._selector.select(wait_s)
        seats: list[Seat] = []
        if self._again:
            with self._lock:
                seats, self._again = self._again, []
        for key, events in found:
            if key.data is None:
                self._drain()
            elif events & selectors.EVENT_WRITE:
                self._went(key.data)
            else:
                seats.append(key.data)
        came: list[Asked] = []
        if self._handed:
            self._take_handed(came)
        together: dict[Seat, None] = {}  # one that had a rest to read and now has more is there twice
        for seat in seats:
            if seat.joins:
                together[seat] = None
            else:
                self._take(seat, came)
        if together:
            self._take_together(list(together), came)
        return came

    def _take_together(self, seats: list[Seat], came: list[Asked]) -> None:
        """Receive from all of them at once; what is unusual about a message is seen when it is read by itself."""
        start, arrivals, asked_before = time.perf_counter(), self._arrivals, len(came)
        for seat in seats:
            seat.lock.acquire()
        try:
            there = [(seat, seat.place) for seat in seats if seat.place is not None and not seat.gone]
            found = arrivals.receive([place for _, place in there])
        finally:
            for seat in seats:
                seat.lock.release()
        for (seat, place), own in zip(there, found, strict=True):
            self._taken(seat, place, own, came)
        for asked in came[asked_before:][-2:]:
            self._heard_from(asked.seat)
        if count := len(came) - asked_before:
            end = time.perf_counter()
            for asked in came[asked_before:]:
                asked.since, asked.checked_s = end, (end - start) / count

    def _taken(self, seat: Seat, place: int, own: Sequence[int], came: list[Asked]) -> None:
        """What was received for a connection, as its columns of `veil.server.row_io` say."""
        arrivals, state = self._arrivals, own[STATE]
        if state == PART:
            return
        asked = seat.taken(own, arrivals.rows(place, own), self._reply) if state == WHOLE else None
        if asked is not None:
            came.append(asked)
        elif seat.over or seat.closing:
            self._settle(seat)
        else:
            seat.put_back(arrivals.take(place, own))
            self._take(seat, came)

    def _take(self, seat: Seat, came: list[Asked]) -> None:
        """Read a message by itself."""
        try:
            if seat.busy:  # it sends before it is answered: its next message waits
                self._look_away(seat)  # it may still be the only one who is there
                with self._lock:
                    seat.parked = seat.busy
                if seat.parked:
                    return
                self._look_for(seat, selectors.EVENT_READ)  # it was answered at this moment
                if seat.joins:  # it is received with others' when the selector names it again
                    return
            asked = seat.next(time.perf_counter(), self._reply)
            if asked is not None:
                self._heard_from(seat)
                came.append(asked)
            else:
                self._settle(seat)
        except Exception:  # what the others asked is not lost for it
            _LOG.exception("the serving loop failed at a connection")
            seat.end()

    def _settle(self, seat: Seat) -> None:
        """After a message that was none, or at fault."""
        if seat.over:
            self._end(seat)
        elif seat.closing:
            self._look_for(seat, selectors.EVENT_WRITE)

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
            self._reply_together([(asked, 0, len(results.packed))], results.packed)
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
            self._reply_together(together, results.packed)
        if failure is None and whole < len(pieces):
            self._wake()  # what is left of a prompt waits again
        multiplied = end - start
        spent = (checked, waited, multiplied * len(pieces), (time.perf_counter() - end) * (len(pieces) + 1) / 2)
        self._stages.answered(spent, whole, rows, multiplied)

    @staticmethod
    def _hand_over(asked: Asked) -> None:
        try:
            asked.done(asked)
        except Exception:  # the others get their results
            _LOG.exception("the serving loop failed at a reply")

    def _reply_together(self, turns: list[tuple[Asked, int, int]], packed: U8) -> None:
        """Answer usual messages, each with its part of the results."""
        seats = [(asked, first, last, asked.seat) for asked, first, last in turns if isinstance(asked.seat, Seat)]
        for _, _, _, seat in seats:
            seat.lock.acquire()
        try:
            there = [one for one in seats if not one[3].gone and one[3].place is not None]
            sent = self._arrivals.reply(packed, [(seat.place or 0, first, last) for _, first, last, seat in there])
        finally:
            for _, _, _, seat in seats:
                seat.lock.release()
        went = []
        for (asked, first, last, seat), own in zip(there, sent, strict=True):
            if own < 0:
                asked.pieces.append(packed[first:last].tobytes())
            went.append((seat, seat.went(asked, own)))
        self._answered(went)

    def _reply(self, asked: Asked) -> None:
        seat = asked.seat
        assert isinstance(seat, Seat)
        self._answered([(seat, seat.reply(asked))])

    def _answered(self, seats: list[tuple[Seat, bool]]) -> None:
        """Replies went, all of each or not: look for what these connections ask next."""
        with self._lock:  # not before the reply went: the next one must not overtake it
            for seat, _ in seats:
                seat.busy = False
            after = [own for own in seats if own[0].parked or own[0].over or not own[1] or own[0].frames.held]
        for seat, sent in seats if self._rounds is not None else ():
            if sent and not seat.over and not seat.parked:
                self._to_front(seat)
        for seat, sent in after:
            if seat.over:
                self._end(seat)
            elif not sent:
                self._look_for(seat, selectors.EVENT_WRITE)
            elif seat.parked:
                self._back(seat)
            else:
                with self._lock:
                    self._again.append(seat)
                self._wake()

    def _went(self, seat: Seat) -> None:
        """A connection takes more of a reply that it did not take at once."""
        if seat.flush():
            if seat.over:
                self._end(seat)
            else:
                self._look_away(seat)
                if not self._to_front(seat):
                    self._back(seat)

    def _look_for(self, seat: Seat, events: int) -> None:
        try:
            self._selector.modify(seat.frames.connection, events, seat)
        except KeyError:
            self._selector.register(seat.frames.connection, events, seat)

    def _look_away(self, seat: Seat) -> None:
        try:
            self._selector.unregister(seat.frames.connection)
        except (KeyError, ValueError):
            return

    def _back(self, seat: Seat) -> None:
        seat.parked = False
        self._go_on(seat)

    # Who is there --------------------------------------------------------------------------------------------------------

    @property
    def _alone(self) -> bool:
        """Whether nobody but one had a message lately: one thread may look for the next, several would get in the way."""
        return self._heard - self._changed > _ALONE_S

    def _heard_from(self, who: object) -> None:
        self._heard = time.monotonic()
        if self._latest is not who:
            self._latest, self._changed = who, self._heard

    def _wake(self) -> None:
        try:
            self._wake_out.send(b"\0")
        except OSError:  # it is full, or the loop is over
            return

    def _drain(self) -> None:
        if self._stopping:  # every thread has to see it
            return
        try:
            self._wake_in.recv(4096)
        except OSError:
            return


def _file_of(selector: selectors.BaseSelector) -> int | None:
    """The file that becomes readable when one of the selector's does; None where it has none (Windows)."""
    fileno = getattr(selector, "fileno", None)
    return None if fileno is None else int(fileno())
