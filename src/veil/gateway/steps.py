"""One answer as it comes, read for every API alike: words, pieces of calls, and the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from veil.gateway.account import End
from veil.gateway.answers import Answers
from veil.gateway.calls import Call, CallReader
from veil.gateway.tools import Use


@dataclass(frozen=True)
class Step:
    """What came: words, pieces of calls, and why the answer is over if it is."""

    words: str
    calls: list[Call]
    end: End | None


async def steps(answers: Answers, use: Use | None) -> AsyncIterator[Step]:
    """The steps of the only answer to a request. `ApiError`."""
    reader = None if use is None else CallReader(use)
    async for event in answers:
        end = event.what if isinstance(event.what, End) else None
        text = event.what.text if not isinstance(event.what, End) else ""
        if reader is None:
            yield Step(text, [], end)
            continue
        words, calls = reader.feed(text)
        if end is not None:
            words += reader.end()
            end = End("tool_calls") if reader.count and end.reason == "stop" else end
        if words or calls or end:
            yield Step(words, calls, end)
