"""All connections of the serving loop: what they have sent is read, together where it can be, and replies go to each."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence

from veil.server.arrivals import U8, Arrivals
from veil.server.engine import Engine
from veil.server.joined_rounds import Answered, JoinedRounds
from veil.server.row_io import PART, STATE, WHOLE
from veil.server.row_seat import Seat
from veil.server.seat_watch import SeatWatch
from veil.server.stages import Stages
from veil.server.store import SessionStore
from veil.server.turns import Asked

_LOG = logging.getLogger("veil.server")


class Seats:
    """Those who showed their tickets. One thread at a time calls `read`; any thread may call the rest.

    What has a place in ``arrivals`` is received and answered together; without, each message is read by itself. With
    ``joins``, an engine that joins groups and the store of its sessions, what is usual is answered in rounds, of which
    ``saw(flow, time)`` is told; ``beside`` loops share the machine's cores.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        stages: Stages,
        joins: tuple[Engine, SessionStore] | None,
        saw: Callable[[str, float], object],
        beside: int = 1,
    ) -> None:
        self.watch = SeatWatch()
        self.unread: list[Seat] = []
        """Those of which bytes are here that were not read."""

        self._arrivals, self._saw = arrivals, saw
        self._placed: dict[int, Seat] = {}
        """Those whose messages may be answered in rounds, by their places."""

        self._handed: list[int] = []
        self._joins = None if joins is None else joins[0]
        self._rounds: JoinedRounds | None = None
        if joins is not None:
            self._rounds = JoinedRounds(
                *joins, self._arrivals, stages, self._take_back, self._rest_of, self._answered_in_rounds, beside
            )
        self._lock = threading.Lock()  # of what waits here, of who is busy or parked, and of places that are given back

    def start(self) -> None:
        """Have ready what receives, and begin with rounds."""
        self._arrivals.compile()
        if self._rounds is not None:
            self._rounds.start()

    def stop(self) -> None:
        """End the rounds, and have every thread that waits in `read` return."""
        self.watch.stopping = True
        if self._rounds is not None:
            self._rounds.stop()
        self.watch.wake()

    def close(self) -> None:
        """After `stop`, when no thread reads any more."""
        self.watch.close()

    # Who is served ----------------------------------------------------------------------------------------------------

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
        self.watch.look_away(seat)
        self._rounds.give(seat.place)
        return True

    def _go_on(self, seat: Seat) -> None:
        self.watch.look_for(seat)
        if seat.frames.held:
            with self._lock:
                self.unread.append(seat)
        self.watch.wake()

    def _end(self, seat: Seat) -> None:
        """Serve it no more."""
        self.watch.forget(seat)
        if self._rounds is not None and seat.place is not None:
            self._rounds.forget(seat.place)
        seat.drop()
        with self._lock:
            place, seat.place = seat.place, None
        if place is not None:
            self._placed.pop(place, None)
            self._arrivals.free(place)

    # What they sent ---------------------------------------------------------------------------------------------------

    def read(self, wait_s: float) -> list[Asked]:
        """Take messages of whoever sent some."""
        found = self.watch.select(wait_s)
        seats: list[Seat] = []
        if self.unread:
            with self._lock:
                seats, self.unread = self.unread, []
        for seat, writes in found:
            if writes:
                self._went(seat)
            else:
                seats.append(seat)
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
            self.watch.heard_from(asked.seat)
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
                self.watch.look_away(seat)  # it may still be the only one who is there
                with self._lock:
                    seat.parked = seat.busy
                if seat.parked:
                    return
                self.watch.look_for(seat)  # it was answered at this moment
                if seat.joins:  # it is received with others' when the watch names it again
                    return
            asked = seat.next(time.perf_counter(), self._reply)
            if asked is not None:
                self.watch.heard_from(seat)
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
            self.watch.look_for(seat, writes=True)

    # What goes back ---------------------------------------------------------------------------------------------------

    def reply_together(self, turns: list[tuple[Asked, int, int]], packed: U8) -> None:
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
                self.watch.look_for(seat, writes=True)
            elif seat.parked:
                self._back(seat)
            else:
                with self._lock:
                    self.unread.append(seat)
                self.watch.wake()

    def _went(self, seat: Seat) -> None:
        """A connection takes more of a reply that it did not take at once."""
        if seat.flush():
            if seat.over:
                self._end(seat)
            else:
                self.watch.look_away(seat)
                if not self._to_front(seat):
                    self._back(seat)

    def _back(self, seat: Seat) -> None:
        seat.parked = False
        self._go_on(seat)

    # What rounds leave ------------------------------------------------------------------------------------------------

    def _take_back(self, places: list[int]) -> None:
        """Messages that rounds leave are read by the loop."""
        with self._lock:
            self._handed += places
        self.watch.wake()

    def _take_handed(self, came: list[Asked]) -> None:
        with self._lock:
            places, self._handed = self._handed, []
        for place in places:
            if (seat := self._placed.get(place)) is None:
                continue
            start, before = time.perf_counter(), len(came)
            self.watch.look_for(seat)
            self._taken(seat, place, self._arrivals.known(place), came)
            for asked in came[before:]:
                asked.since = time.perf_counter()
                asked.checked_s = asked.since - start
                self.watch.heard_from(seat)
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
                self._saw(seat.stream.flow, now)
