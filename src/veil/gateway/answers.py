"""From the threads that generate to the event loop that replies: one request's answers as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from veil.gateway.account import Account, Cancelled, End
from veil.gateway.failures import ApiError, from_error, stopping
from veil.gateway.fair_queue import FairQueue, Job
from veil.gateway.generation import Generator
from veil.gateway.sampling import Sampling
from veil.gateway.transcript import Piece

_LOOK_S = 0.5


@dataclass(frozen=True)
class Event:
    """A piece of answer ``index``, or its end."""

    index: int
    what: Piece | End


class Answers:
    """The answers to one request, as they come. Leaving ``async with`` cancels what still runs.

    Iterating yields `Event` and raises `ApiError` where the generation failed. Making one raises it when the queue is full.
    ``lost`` is asked now and then whether waiting is in vain.
    """

    def __init__(
        self,
        queue: FairQueue,
        caller: str,
        work: Callable[[Answers], None],
        lost: Callable[[], ApiError | None] = lambda: None,
    ) -> None:
        self.account = Account()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | ApiError | None] = asyncio.Queue()
        self._work = work
        self._lost = lost
        self._queue = queue
        self.job = Job(caller, self._run)
        queue.submit(self.job)

    def emit(self, event: Event) -> None:
        """Pass an event on; called in the generating thread."""
        self._put(event)

    def close(self) -> None:
        """Say that no event follows; called in the generating thread, which may go on to hide how long the answers were."""
        self._put(None)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Event]:
        while True:
            event = await self._next()
            if event is None:
                return
            if isinstance(event, ApiError):
                raise event
            yield event

    async def _next(self) -> Event | ApiError | None:
        """The next event, unless it is known that none will come."""
        coming = asyncio.ensure_future(self._events.get())
        try:
            while not (await asyncio.wait({coming}, timeout=_LOOK_S))[0]:
                error = self._lost()
                if error is not None:
                    return error
            return coming.result()
        finally:
            coming.cancel()

    async def __aenter__(self) -> Answers:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stop what runs or waits; nothing if it is over."""
        self._queue.cancel(self.job)

    def _run(self) -> None:
        """Generate in a thread of the queue. Nothing that is logged here can hold a prompt or an answer."""
        try:
            self._work(self)
            self._put(None)
        except Cancelled:
            self._put(stopping())  # whoever waits still is told why there is no more
        except Exception as error:
            self._put(from_error(error))

    def _put(self, event: Event | ApiError | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the gateway is stopping
            self.job.cancelled.set()


def texts(
    queue: FairQueue,
    caller: str,
    generator: Generator,
    prompts: Sequence[list[int]],
    n: int,
    sampling: Sampling,
    owner: str = "",
) -> Answers:
    """``n`` answers to each prompt; answer ``j`` to prompt ``i`` has the index ``i·n + j``."""

    def work(answers: Answers) -> None:
        for place, ids in enumerate(prompts):
            for branch in range(n):
                index = place * n + branch

                def emit(piece: Piece, index: int = index) -> None:
                    answers.emit(Event(index, piece))

                def over(end: End, index: int = index) -> None:
                    answers.emit(Event(index, end))
                    if index == len(prompts) * n - 1:
                        answers.close()

                generator.answer(ids, sampling, branch, answers.account, answers.job.cancelled, emit, owner, over)

    return Answers(queue, caller, work, generator.served.in_vain)


def vectors(
    queue: FairQueue, caller: str, generator: Generator, inputs: Sequence[list[int]], found: list[list[float]]
) -> Answers:
    """Embeddings, put into ``found`` in order; no events."""

    def work(answers: Answers) -> None:
        for ids in inputs:
            found.append(generator.embed(ids, answers.account, answers.job.cancelled))

    return Answers(queue, caller, work, generator.served.in_vain)
