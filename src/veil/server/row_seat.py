"""A connection of the row lane in the serving loop: its messages become requests, their results its replies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from veil.errors import VeilError
from veil.network.frames import LENGTH_BYTES
from veil.network.ready_frames import ReadyFrames
from veil.server.arrivals import U8
from veil.server.joined_rounds import Answered
from veil.server.logs import event
from veil.server.rows import RowAnswers
from veil.server.turns import Asked
from veil.wire import failures
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal

_LOG = logging.getLogger("veil.server")


class Seat:
    """One connection that showed its ticket. ``dropped(seat, result)`` is called once, when it ended.

    One thread at a time reads, and one at a time writes; those may be two.
    """

    def __init__(self, frames: ReadyFrames, stream: RowAnswers, dropped: Callable[[Seat, str], object]) -> None:
        self.frames, self.stream = frames, stream
        self.heard = time.monotonic()
        self.busy = False
        """Whether a message is being answered; the loop changes it when the reply went, so that replies keep their order."""

        self.parked = False
        """Whether the loop does not look for its messages, because one came before the last was answered."""

        self.closing = False
        """Whether it ends when what is unsent went."""

        self.over = False
        self.place: int | None = None
        """Where its messages are received together with others'; None where each is read by itself."""

        self.lock = threading.Lock()
        self.gone = False
        """Whether its socket is closed; changes under the lock, which is held while the socket's number is used."""

        self._result = "broken"
        self._dropped = dropped

    @property
    def meanwhile(self) -> Iterator[object]:
        """Work for a thread that waits for its next message; see `RowAnswers.meanwhile`."""
        return self.stream.meanwhile

    def next(self, came: float, done: Callable[[Asked], object]) -> Asked | None:
        """The next message as a request; None where there is none yet, or the connection ended or is at fault.

        ``came`` is when the loop saw it; ``done`` is called with the request when its results are there.
        """
        try:
            data = self.frames.receive()
            if data is None:
                return None
            self.busy = True
            engine, claim, flow = self.stream.ask(data)
            now = time.perf_counter()
            return Asked(engine, claim, flow, done, now, checked_s=now - came, seat=self)
        except Exception as error:
            self._fail(error)
        return None

    @property
    def joins(self) -> bool:
        """Whether its next message may be received together with others'."""
        return self.place is not None and not self.busy and not self.frames.held

    def taken(self, own: Sequence[int], rows: U8, done: Callable[[Asked], object]) -> Asked | None:
        """A usual message, received together with others', as a request; None for one to be read by itself, or at fault.

        ``own`` are its columns of `veil.server.row_io`, ``rows`` [R, bytes] its packed rows.
        """
        try:
            self.busy = True
            found = self.stream.ask_usual(own, rows)
            if found is None:
                self.busy = False
                return None
            engine, claim, flow = found
            return Asked(engine, claim, flow, done, 0.0, seat=self, usual=True)
        except Exception as error:
            self._fail(error)
        return None

    def put_back(self, data: bytes | memoryview) -> None:
        """Have bytes read by `next` before what comes."""
        self.frames.put_back(data)

    def went(self, asked: Asked, sent: int) -> bool:
        """A reply of ``sent`` bytes went with others', or ``-1 - sent`` bytes of it; whether all of it did."""
        self.heard = time.monotonic()
        try:
            if sent > 0:
                self.stream.replied(asked.claim, sent - LENGTH_BYTES)
                return True
            data = self.stream.reply(asked.claim, asked.reply)
            with self.lock:
                return self.gone or self.frames.send_rest(data, -1 - sent)
        except Exception as error:
            self._fail(error)
        return False

    def answered(self, own: Answered) -> None:
        """Note what rounds answered."""
        self.heard = time.monotonic()
        self.stream.answered(own.rows, own.received, own.sent)

    def send_rest(self, sequence: int, rows: bytes, sent: int) -> bool:
        """Go on with a reply of which ``sent`` bytes went by its front; whether all of it did."""
        try:
            data = seal(pb.EvaluateReply(sequence=sequence, rows=rows))
            return self.frames.send_rest(data, sent)
        except Exception as error:
            self._fail(error)
        return False

    def reply(self, asked: Asked) -> bool:
        """Send the results; whether all of it went."""
        try:
            if isinstance(asked.failed, VeilError):
                return self._refuse(asked.failed)
            if asked.failed is not None:
                raise asked.failed
            data = self.stream.reply(asked.claim, asked.reply)
            self.heard = time.monotonic()
            return self._send(data)
        except Exception as error:
            self._fail(error)
        return False

    def flush(self) -> bool:
        """Send more; whether nothing is left. A connection that was to end then is over."""
        with self.lock:
            try:
                done = self.gone or self.frames.flush()
            except OSError:
                self.over = done = True
        self.over = self.over or (done and self.closing)
        return done

    def end(self) -> None:
        """End it, from any thread; the loop notices."""
        self.frames.end()

    def drop(self) -> None:
        """Free it; once."""
        with self.lock:
            if self.gone:
                return
            self.gone = True
            self.frames.close()
        self.stream.end()
        self._dropped(self, self._result)

    def _fail(self, error: Exception) -> None:
        """A message could not be read: it ended, it is not allowed, or this program is wrong."""
        if isinstance(error, EOFError):
            self.over, self._result = True, "ok"
        elif isinstance(error, OSError):
            self.over = True
        elif isinstance(error, VeilError):
            self._refuse(error)
        else:
            _LOG.error("a row stream failed", exc_info=error)
            self.over, self._result = True, "internal"

    def _send(self, data: bytes) -> bool:
        with self.lock:
            return self.gone or self.frames.send(data)

    def _refuse(self, error: VeilError) -> bool:
        """Tell the client what was wrong, and end the connection when that went."""
        _, name = failures.status_of(error)
        event("refused", method="Rows", error=name)
        self._result = name
        try:
            self.closing = not self._send(seal(pb.EvaluateReply(error=name, details=str(error))))
        except OSError:
            self.closing = False
        self.over = not self.closing
        return self.over
