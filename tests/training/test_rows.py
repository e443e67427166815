"""Rows for gradients: a line of their own in the pool, made offline for the next step, spent once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from veil.bundle.manifest import Group, Layer, Manifest, make_groups
from veil.client.background import BackgroundMaker, OfflineRows
from veil.client.pool import RowPool
from veil.crypto import public
from veil.crypto.batch import BatchMaker, RowBatch
from veil.errors import RowReused
from veil.kernels.backend import kernels_for
from veil.params import Params
from veil.random import SecretRng
from veil.seed import PublicSeed
from waiting import until

ROWS = 4
Q, HEAD, BACK_HEAD, BACK_Q = 0, 1, 2, 3
FORWARD = make_groups([(Layer("q", "linear", 8, 6, 8, False), 1), (Layer("head", "linear", 8, 20, 8, False), 2)], "head")


def transposed(index: int) -> Group:
    own = FORWARD.groups[index]
    return Group((Layer(f"{own.name}.transposed", "linear", own.rows, own.width, 8, False),), "back", transposed=index)


MANIFEST = Manifest((*FORWARD.groups, transposed(HEAD), transposed(Q)))


def batch(number: int) -> RowBatch:
    return RowBatch(number, np.zeros((ROWS, 1), dtype=np.uint32), {}, 4, ROWS)


@pytest.fixture
def pool() -> RowPool:
    made = RowPool(MANIFEST)
    made.start_session("s")
    return made


def test_gradients_take_rows_of_their_own_line(pool: RowPool) -> None:
    pool.add("s", [batch(0)], full=True)
    assert pool.take(BACK_Q, 1, 0) is None and pool.missing(BACK_Q, 3, 0).back == 3
    pool.add("s", [batch(1), batch(2)], back=True)
    taken = pool.take(BACK_HEAD, 6, 0)
    assert taken is not None
    assert [(part.batch.number, part.first, part.count) for part in taken[1]] == [(1, 0, 4), (2, 0, 2)]
    assert pool.unused(full=True) == ROWS and pool.unused_back == 2
    assert pool.take(BACK_HEAD, 3, 0) is None, "each row once"
    with pytest.raises(RowReused):
        taken[1][0].batch.take(BACK_HEAD, 1)


def test_a_pass_that_starts_lets_used_batches_go(pool: RowPool) -> None:
    pool.add("s", [batch(1), batch(2)], back=True)
    pool.take(BACK_HEAD, 5, 0)
    _, gone = pool.level()
    assert gone == [1] and pool.unused_back == 3, "the groups that asked for nothing lose the same rows"
    taken = pool.take(BACK_Q, 1, 0)
    assert taken is not None and taken[1][0].first == 1


def test_the_next_step_is_made_ready_both_ways(pool: RowPool) -> None:
    class Maker:
        batches = SimpleNamespace(batch_bytes=1 << 20)

        def __init__(self) -> None:
            self.made: list[str] = []

        def stop(self) -> None: ...

        def make(self, rows: int, *, full: bool) -> None:
            self._add("full" if full else "prompt", full=full)

        def make_back(self, rows: int) -> None:
            self._add("back", back=True)

        def _add(self, kind: str, **line: bool) -> None:
            self.made.append(kind)
            pool.add("s", [batch(10 + len(self.made))], **line)

    maker = Maker()
    background = BackgroundMaker(maker, pool, OfflineRows(tokens=0, prompt_rows=0), ROWS)  # type: ignore[arg-type]
    try:
        until(lambda: background.full)
        assert maker.made == []
        background.expect_step(6)
        until(lambda: background.full and pool.unused_back == 8 and pool.unused(full=True) == 8)
        assert sorted(maker.made) == ["back", "back", "full", "full"]
        background.expect_step(0)
        pool.take(BACK_Q, 8, 0)
        assert background.full, "training is over"
        assert background.wait_for(BACK_HEAD, 12, 0)[1], "who waits gets rows all the same"
    finally:
        background.stop()


def test_a_batch_for_gradients_has_pads_for_them_alone() -> None:
    params, kernels = Params.insecure_tiny(), kernels_for("cpu")
    seed, slots, rng = PublicSeed(b"x" * 32), MANIFEST.segments, SecretRng.insecure_for_tests(1)
    tables = {name: np.zeros((params.T, params.blocks(own) * params.w), dtype=np.uint32) for name, own in slots.items()}
    maker = BatchMaker(params, seed, MANIFEST.widths, slots, tables, kernels, rng, back=2)
    _, (forward,) = maker.make([0], ["body", "head"])
    _, (back,) = maker.make([1], ["back"])
    words = [params.elements(width) * params.r for width in MANIFEST.widths]
    assert forward.pads.shape == (params.T, words[0] + words[1]) and back.pads.shape == (params.T, words[2] + words[3])
    assert [maker.group_start(group) for group in range(4)] == [0, words[0], 0, words[2]]
    assert set(forward.shares) == {"body", "head"} and set(back.shares) == {"back"}
    with pytest.raises(AssertionError):
        maker.make([2], ["body", "back"])


def _slots() -> dict[str, int]:
    return MANIFEST.segments


def test_transposed_groups_share_no_public_polynomials() -> None:
    seed, params = PublicSeed(b"x" * 32), Params.insecure_tiny()
    assert len({public.inner_polynomials(seed, params, group, 8).tobytes() for group in range(4)}) == 4
