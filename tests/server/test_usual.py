"""A request that was taken apart with others passes the checks of one that is read by itself, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veil.bench.load_shapes import random_model
from veil.errors import QuotaExceeded, RowReused, UnknownBatch, VeilError, WireError
from veil.kernels.backend import kernels_for
from veil.kernels.cpu.siphash import digest_of
from veil.kernels.interface import Rows
from veil.server.admission import Admission
from veil.server.budget import RowBudget
from veil.server.engine import Engine
from veil.server.metrics import Metrics
from veil.server.row_io import BATCH, COLUMNS, COUNT, DIGEST, FIRST, GROUP, RECEIVED, SEQUENCE, SLOTS
from veil.server.rows import RowAnswers
from veil.server.store import Limits, SessionStore
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal

Ask = Callable[..., Any]
ROWS_A_DAY = 40


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Side:
    """A server's checks with one session that has batch 3, ways to ask it, and its clock."""

    def __init__(self, together: bool, engine: Engine, folder: Path) -> None:
        self.together, self.clock = together, Clock()
        self.store = SessionStore(Limits(batch_ttl_s=10.0), self.clock)
        self.session = self.store.open("owner", engine)
        params, manifest = engine.model.params, engine.model.manifest
        shares = {name: np.zeros((params.T, slots), np.uint32) for name, slots in manifest.segments.items()}
        self.store.reserve(self.session, [3], 100)
        self.store.keep(self.session, {3: {"body": shares["body"]}}, 100)
        budget = RowBudget(ROWS_A_DAY, folder / f"{together}.json")
        self.stream = RowAnswers(Admission(self.store), None, Metrics(), "owner", lambda: None, budget)  # type: ignore[arg-type]
        self.stream.adopt(self.session.name)
        self.engine = engine

    def ask(self, group: int = 0, batch: int = 3, first: int = 0, count: int = 1, slots: int = 0, rows: bytes = b"") -> Any:
        rows = rows or bytes(self.engine.place(min(group, 8))[2] * count)
        if not self.together:
            spans = [batch, first, count]
            own = pb.EvaluateRequest(session=self.session.name, sequence=1, group=group, spans=spans, rows=rows, slots=slots)
            return self.stream.ask(seal(own))
        table = [0] * COLUMNS
        for column, value in ((GROUP, group), (BATCH, batch), (FIRST, first), (COUNT, count), (SLOTS, slots), (SEQUENCE, 1)):
            table[column] = value
        table[RECEIVED], table[DIGEST] = len(rows), int(np.uint64(digest_of(rows)).astype(np.int64))
        data = np.frombuffer(rows, np.uint8)[None]
        return self.stream.ask_usual(table, data.reshape(count, -1) if len(rows) % count == 0 else data)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.build(random_model("tiny"), kernels_for("cpu"))


@pytest.fixture
def sides(engine: Engine, tmp_path: Path) -> list[Side]:
    return [Side(together, engine, tmp_path) for together in (False, True)]


def outcome(side: Side, *asked: dict[str, Any]) -> Any:
    """What the last of some requests gives: its claim, or the error."""
    for before in asked[:-1]:
        side.ask(**before)
    try:
        found = side.ask(**asked[-1])
    except VeilError as error:
        return type(error), str(error)
    if found is None:
        return None
    _, claim, flow = found
    shares: list[Rows] = claim.shares
    return claim.group, claim.rows.tobytes(), claim.rows.shape, claim.slots, [(own.first, own.count) for own in shares], flow


@pytest.mark.parametrize(
    "asked",
    [
        [{}],
        [{"group": 2, "first": 5, "count": 3, "slots": 40}],
        [{}, {}],
        [{"first": 1, "count": 2}, {"first": 1, "count": 2}],
        [{}, {"group": 1}, {"first": 1}],
    ],
)
def test_what_is_allowed_gives_the_same_claim(sides: list[Side], asked: list[dict[str, Any]]) -> None:
    alone, together = (outcome(side, *asked) for side in sides)
    assert alone == together and alone[-1] == "owner"


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RowReused, [{}, {"rows": b"other"}]),
        (RowReused, [{"first": 4}, {"first": 3}]),
        (RowReused, [{"first": 0, "count": 2}, {"first": 0, "count": 1}]),
        (UnknownBatch, [{"batch": 4}]),
        (UnknownBatch, [{"group": 8, "rows": b"head"}]),
        (WireError, [{"first": 1 << 40}]),
        (WireError, [{"first": 60, "count": 5}]),
        (QuotaExceeded, [{"count": 8}] * 6),
    ],
)
def test_what_is_refused_is_refused_with_the_same_words(
    sides: list[Side], engine: Engine, error: type[VeilError], asked: list[dict[str, Any]]
) -> None:
    for own in asked:
        if "rows" in own:
            own["rows"] = own["rows"].ljust(engine.place(own.get("group", 0))[2], b".")
    alone, together = (outcome(side, *asked) for side in sides)
    assert alone == together and alone[0] is error


def test_an_expired_batch_is_refused_both_ways(sides: list[Side]) -> None:
    for side in sides:
        side.clock.now = 11.0
    alone, together = (outcome(side, {}) for side in sides)
    assert alone == together and alone[0] is UnknownBatch


@pytest.mark.parametrize(
    "asked", [{"group": 9}, {"rows": b"too short"}, {"slots": 1 << 20}, {"count": 3, "rows": b"not three alike"}]
)
def test_a_form_that_is_refused_is_left_to_be_read_by_itself(sides: list[Side], asked: dict[str, Any]) -> None:
    alone, together = sides
    assert outcome(alone, asked)[0] is WireError
    assert outcome(together, asked) is None
    assert outcome(together, {}) == outcome(alone, {}), "nothing was changed by it"


def test_a_session_that_was_closed_is_left_to_be_read_by_itself(sides: list[Side]) -> None:
    together = sides[1]
    together.store.close(together.session)
    assert outcome(together, {}) is None


@pytest.mark.parametrize("sequence", [1, 127, 128, 1 << 40])
@pytest.mark.parametrize(
    "parts", [[b"a"], [b"abc", b"", b"defg"], [b"x" * 127], [b"x" * 100, b"y" * 28], [b"z" * 70_000] * 3]
)
def test_a_reply_in_parts_has_the_bytes_of_a_whole_one(sides: list[Side], sequence: int, parts: list[bytes]) -> None:
    side = sides[0]
    _, claim, _ = side.ask()
    for _ in range(2):
        side.stream._sequence = sequence
        whole = side.stream.reply(claim, b"".join(parts))
        assert (
            b"".join(side.stream.reply_parts(claim, parts))
            == whole
            == seal(pb.EvaluateReply(sequence=sequence, rows=b"".join(parts)))
        )
