"""A connection of the row lane in the serving loop: its messages become requests, their results its replies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

from veil.errors import VeilError
from veil.network.ready_frames import ReadyFrames
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
        self._result = "broken"
        self._dropped = dropped
        self._lock = threading.Lock()
        self._gone = False

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
        except EOFError:
            self.over, self._result = True, "ok"
        except OSError:
            self.over = True
        except VeilError as error:
            self._refuse(error)
        except Exception:
            _LOG.exception("a row stream failed")
            self.over, self._result = True, "internal"
        return None

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
        except OSError:
            self.over = True
        except Exception as error:
            _LOG.error("a row stream failed", exc_info=error)
            self.over, self._result = True, "internal"
        return False

    def flush(self) -> bool:
        """Send more; whether nothing is left. A connection that was to end then is over."""
        with self._lock:
            try:
                done = self._gone or self.frames.flush()
            except OSError:
                self.over = done = True
        self.over = self.over or (done and self.closing)
        return done

    def end(self) -> None:
        """End it, from any thread; the loop notices."""
        self.frames.end()

    def drop(self) -> None:
        """Free it; once."""
        with self._lock:
            if self._gone:
                return
            self._gone = True
            self.frames.close()
        self.stream.end()
        self._dropped(self, self._result)

    def _send(self, data: bytes) -> bool:
        with self._lock:
            return self._gone or self.frames.send(data)

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
