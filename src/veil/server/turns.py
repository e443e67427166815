"""Which rows are multiplied next: fair between those who ask, together where one product can answer several.

A plain data structure: no thread, no clock, no arithmetic. Order is by start-time fair queueing (Goyal, Vin and Cheng
1996): a request's tag is the virtual time at which it came, or the end of what its flow asked before, whichever is later;
virtual time is the tag of what is served. So who asks much waits behind himself, and who asks little is next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

from veil.kernels.interface import Rows
from veil.server.engine import Claim, Engine

PROMPT_ROWS = 16
"""A request of more rows than this is a prompt's."""

_PATIENT_S = 0.01
_COMPANY_S = 0.25
_SLACK = 8.0
_FIRST_RATE = 2e10


@dataclass(eq=False, slots=True)
class Asked:
    """Rows that wait for their product. ``done`` is called once, by the thread that answers, with the reply or an exception.

    ``flow`` says who asks. ``since`` is when it came, in seconds of any clock.
    """

    engine: Engine
    claim: Claim
    flow: str
    done: Callable[[Asked], object]
    since: float
    tag: float = 0.0
    pieces: list[bytes] = field(default_factory=list)
    failed: Exception | None = None
    begun: float = 0.0
    checked_s: float = 0.0
    seat: object = None
    """The connection that it came on, where it came on the row lane."""

    usual: bool = False
    """Whether it was received together with others, and may be answered so."""

    kind: int = 0
    """Equal for those that one product can answer: of one engine, group, and outputs. Set when it waits."""

    row_work: int = 0
    """Multiply-adds of one of its rows; set when it waits."""

    left: int = field(init=False)
    """Rows that no product was begun for."""

    prompt: bool = field(init=False)
    """Whether it is a prompt's."""

    def __post_init__(self) -> None:
        self.left = self.claim.count
        self.prompt = self.left > PROMPT_ROWS

    @property
    def reply(self) -> bytes:
        """All packed results, once it is done."""
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)


@dataclass(eq=False, slots=True)
class RowPiece:
    """Some of the rows of a request, from ``first``; whether the request has no others left."""

    asked: Asked
    claim: Claim
    last: bool


class FairTurns:
    """Requests that wait, and the next product's.

    Rows of prompts and other rows have half of the time each while both wait, ``piece_s`` of a prompt at once: decoding
    clients wait for a piece and not for a prompt. ``most_rows`` go into one product beside a prompt's own. Not thread safe.
    """

    def __init__(self, most_rows: int = 64, piece_s: float = 0.002) -> None:
        self._most_rows, self._piece_s = most_rows, piece_s
        self._waiting: list[Asked] = []
        self._prompts = 0
        self._virtual = 0.0
        self._ends: dict[str, float] = {}
        self._spent = {True: 0.0, False: 0.0}
        self._rate = _FIRST_RATE
        self._latest: str | None = None
        self._mixed = float("-inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, asked: Asked) -> None:
        """Let rows wait."""
        self._note(asked)
        self._tag(asked)
        if asked.prompt and not self._prompts:
            self._spent[True] = max(self._spent[True], self._spent[False])
        elif not asked.prompt and len(self._waiting) == self._prompts:
            self._spent[False] = max(self._spent[False], self._spent[True] - self._piece_s)
        self._wait(asked)

    def alone(self, asked: Asked, now: float) -> list[RowPiece]:
        """As `add` and then `take`, for a request that comes while none waits: nothing is weighed."""
        self._note(asked)
        return [self._piece(asked, now)]

    def take(self, now: float) -> list[RowPiece]:
        """The pieces of the next product, all on one group and as many outputs; at least one request has to wait.

        An engine that joins groups gets those of all who wait for it.
        """
        waiting = self._waiting
        if len(waiting) == 1:
            (asked,), self._waiting, self._prompts = waiting, [], 0
            self._begin_anew()
            return [self._piece(asked, now)]
        chosen = self._chosen(now)
        self._virtual = max(self._virtual, chosen.tag)
        if len(self._ends) > 2 * len(waiting) + 64:
            self._ends = {flow: end for flow, end in self._ends.items() if end > self._virtual}
        alike: list[Asked] = []
        left: list[Asked] = []
        kind, joined = chosen.kind, chosen.engine if chosen.engine.joins_groups and not chosen.prompt else None
        for one in waiting:
            if one is not chosen:
                fits = not one.prompt and (one.kind == kind or one.engine is joined)
                (alike if fits else left).append(one)
        self._waiting = left
        self._prompts -= chosen.prompt
        pieces, room = [self._piece(chosen, now, len(alike) > 0)], self._most_rows
        room -= 0 if chosen.prompt else pieces[0].claim.count
        if sum(map(_left_of, alike)) > room:
            alike.sort(key=_tag_of)
        for other in alike:
            if other.left <= room:
                room -= other.left
                pieces.append(_whole(other))
            else:
                self._waiting.append(other)
        if not self._waiting:
            self._begin_anew()
        return pieces

    def took(self, pieces: list[RowPiece], seconds: float) -> None:
        """Note how long a product was; what is left of a prompt waits again."""
        first = pieces[0]
        self._spent[first.asked.prompt] += seconds
        if first.asked.prompt and seconds > 0:
            rate = sum(_work(piece.asked, piece.claim.count) for piece in pieces) / seconds
            self._rate += 0.2 * (rate - self._rate)
        for piece in pieces:
            if not piece.last and piece.asked.failed is None:
                self._tag(piece.asked)
                self._wait(piece.asked)

    def saw(self, flow: str, now: float) -> None:
        """Note that somebody is served elsewhere."""
        self._hear(flow, now)

    def _wait(self, asked: Asked) -> None:
        self._waiting.append(asked)
        self._prompts += asked.prompt

    def _note(self, asked: Asked) -> None:
        self._hear(asked.flow, asked.since)

    def _hear(self, flow: str, when: float) -> None:
        """When somebody else than the last asked: a prompt in company is cut."""
        if flow != self._latest:
            self._mixed = self._mixed if self._latest is None else when
            self._latest = flow

    def _begin_anew(self) -> None:
        """Nobody waits: what anybody had before counts no more."""
        self._virtual = max(self._ends.values(), default=self._virtual)
        self._ends.clear()

    def _tag(self, asked: Asked) -> None:
        if not asked.row_work:
            _weigh(asked)
        rows = min(asked.left, self._piece_rows(asked)) if asked.prompt else asked.left
        end = self._ends.get(asked.flow, 0.0)
        asked.tag = tag = end if end > self._virtual else self._virtual
        self._ends[asked.flow] = tag + _work(asked, rows)

    def _chosen(self, now: float) -> Asked:
        """Whose group is next: of the class whose time it is, the most rows of one group among those who are about level.

        Where as many wait for several groups, the first of these: who is behind comes to where others wait, and from then
        on they ask for one group after another together.
        """
        waiting = self._waiting
        if self._prompts and (self._prompts == len(waiting) or self._spent[True] <= self._spent[False]):
            return min((asked for asked in waiting if asked.prompt), key=_tag_of)
        others = [asked for asked in waiting if not asked.prompt] if self._prompts else waiting
        first = min(others, key=_tag_of)
        if first.engine.joins_groups:
            return first
        oldest = min(others, key=_since_of)
        if now - oldest.since > _PATIENT_S:
            return first if first.tag < oldest.tag else oldest
        level = first.tag + _SLACK * _work(first, 1)
        rows: dict[int, int] = {}
        leads: dict[int, Asked] = {}
        for asked in others:
            if asked.tag <= level:
                kind = asked.kind
                if kind in rows:
                    rows[kind] += asked.left
                    if asked.tag < leads[kind].tag:
                        leads[kind] = asked
                else:
                    rows[kind], leads[kind] = asked.left, asked
        return leads[max(rows, key=lambda kind: (rows[kind], -leads[kind].claim.group))]

    def _piece(self, asked: Asked, now: float, company: bool = False) -> RowPiece:
        if not asked.prompt or not (company or self._waiting or now - self._mixed < _COMPANY_S):
            return _whole(asked)
        count = min(asked.left, self._piece_rows(asked))
        first = asked.claim.count - asked.left
        asked.left -= count
        return RowPiece(asked, cut(asked.claim, first, first + count), not asked.left)

    def _piece_rows(self, asked: Asked) -> int:
        """Rows of a prompt that take about ``piece_s``, a multiple of 8."""
        if not asked.row_work:
            _weigh(asked)
        return max(8, int(self._rate * self._piece_s / _work(asked, 1)) // 8 * 8)


def cut(claim: Claim, first: int, last: int) -> Claim:
    """The rows of a claim from ``first`` up to ``last``."""
    shares, at = [], 0
    for part in claim.shares:
        begin, end = max(first, at), min(last, at + part.count)
        if begin < end:
            shares.append(Rows(part.material, part.first + begin - at, end - begin))
        at += part.count
    return Claim(claim.group, claim.rows[first:last], shares, claim.slots)


def _whole(asked: Asked) -> RowPiece:
    """All that is left of a request."""
    claim, count = asked.claim, asked.claim.count
    rest = claim if asked.left == count else cut(claim, count - asked.left, count)
    asked.left = 0
    return RowPiece(asked, rest, True)


_tag_of, _since_of, _left_of = attrgetter("tag"), attrgetter("since"), attrgetter("left")


def _weigh(asked: Asked) -> None:
    claim = asked.claim
    asked.kind = (id(asked.engine) << 48) + (claim.group << 32) + claim.slots
    asked.row_work = claim.slots * asked.engine.model.weights[claim.group].shape[1]


def _work(asked: Asked, rows: int) -> float:
    """Multiply-adds of so many of its rows; some for a message by itself."""
    return 1e5 + rows * asked.row_work
