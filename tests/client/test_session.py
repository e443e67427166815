"""A client session against a real engine: right results, masks ahead in epochs, and bytes that are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil import noise
from veil.errors import NotFiniteActivation, ServerUnreachable, WireError
from veil.kernels import cpu
from veil.model.quantize import clear_product, row_norms


def exact(pair: Any, group: int, x: np.ndarray, tau: np.ndarray) -> np.ndarray:
    return clear_product(pair.weights[group], x, tau, cpu)


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("group", [0, 1, 2])
def test_results_are_the_exact_product_plus_the_predicted_noise(pair: Any, group: int, rows: int) -> None:
    """No error beyond 6 predicted standard deviations among at most 2,100 (expected: 4·10^-6 of them)."""
    session = pair.session()
    session.begin_forward()
    x, tau = pair.inputs(group, rows)
    result = session.evaluate(group, x, tau)
    assert result.dtype == np.int32
    assert result.shape == (rows, pair.manifest.groups[group].rows)
    deviation = np.sqrt(noise.result(pair.params, row_norms(pair.weights[group])))
    assert (abs(result.astype(np.int64) - exact(pair, group, x, tau)) < 6 * deviation).all()
    session.close()


def test_error_variance_is_the_predicted_one(pair: Any) -> None:
    """64 rows of group 1, 19,200 results, mean square of error over prediction within 25 % of 1."""
    session = pair.session()
    x, tau = pair.inputs(1, 64)
    errors = session.evaluate(1, x, tau).astype(np.int64) - exact(pair, 1, x, tau)
    ratio = errors**2 / noise.result(pair.params, row_norms(pair.weights[1]))
    assert ratio.mean() == pytest.approx(1.0, rel=0.25)
    session.close()


def test_rows_of_zeros_and_no_rows(pair: Any) -> None:
    session = pair.session()
    x = np.zeros((2, 70), dtype=np.float32)
    deviation = np.sqrt(noise.result(pair.params, row_norms(pair.weights[0])))
    assert (abs(session.evaluate(0, x, np.zeros(2))) < 6 * deviation).all()
    assert session.evaluate(0, x[:0], np.zeros(0)).shape == (0, 51)
    session.close()


def test_bytes_are_those_that_cross_the_transport(pair: Any, calls: Any) -> None:
    session = pair.session()
    for step in range(3):
        session.begin_forward()
        for group, rows in ((0, 4), (1, 4), (2, 1)):
            session.evaluate(group, *pair.inputs(group, rows, seed=step))
    evaluated = [call for call in calls if call.method == "evaluate"]
    stats = session.stats
    assert stats.bytes_up_online == sum(len(call.args[3]) for call in evaluated)
    assert stats.bytes_down_online == sum(len(call.reply) for call in evaluated)
    assert stats.bytes_up_online == 3 * (4 * 3 * 70 + 4 * 3 * 64 + 3 * 70)
    keys = [call for call in calls if call.method == "load_epoch"]
    masks = [mask for call in calls if call.method == "prepare" for mask in call.args[2]]
    assert stats.masks == len(masks)
    assert stats.bytes_up_ahead == len(keys) * pair.params.epoch_key_bytes + len(masks) * (pair.params.mask_bytes + 5)
    assert stats.bytes_down_ahead == 0
    assert stats.rows == 12
    session.close()


def test_prompt_rows_are_prepared_without_the_head(pair: Any, calls: Any) -> None:
    """A prompt of 6 rows that needs one row of logits: 5 masks for the body alone."""
    session = pair.session()
    session.begin_forward()
    session.evaluate(0, *pair.inputs(0, 6))
    session.evaluate(1, *pair.inputs(1, 6))
    session.evaluate(2, *pair.inputs(2, 1))
    prepared = [(len(call.args[2]), tuple(call.args[3])) for call in calls if call.method == "prepare"]
    assert sum(count for count, segments in prepared if segments == ("body",)) == 5
    assert {segments for _, segments in prepared} == {("body",), ("body", "head")}
    session.close()


def test_used_masks_are_released_at_the_next_forward_pass(pair: Any, calls: Any) -> None:
    session = pair.session()
    session.begin_forward()
    session.evaluate(0, *pair.inputs(0, 3))
    used = next(call.args[2] for call in calls if call.method == "evaluate")
    before = pair.engine.store.mask_count
    session.begin_forward()
    released = [number for call in calls if call.method == "release" for number in call.args[1]]
    assert sorted(released) == sorted(used)
    assert pair.engine.store.mask_count == before - 3
    session.close()


def test_reserve_makes_masks_ahead(pair: Any, calls: Any) -> None:
    session = pair.session()
    session.reserve(body=5, full=2)
    assert session.stats.masks == 7
    session.begin_forward()
    session.evaluate(0, *pair.inputs(0, 7))
    session.evaluate(2, *pair.inputs(2, 2))
    assert session.stats.masks == 7
    session.close()


def test_close_forgets_keys_and_masks_on_both_sides(pair: Any) -> None:
    sessions, memory = pair.engine.store.count, pair.engine.store.used_bytes
    session = pair.session()
    session.reserve(full=3)
    assert pair.engine.store.count == sessions + 1
    session.close()
    assert pair.engine.store.count == sessions
    assert pair.engine.store.used_bytes == memory


def test_an_activation_that_is_not_finite_names_its_layer(pair: Any, calls: Any) -> None:
    session = pair.session()
    x, tau = pair.inputs(0, 2)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(NotFiniteActivation, match=r"q\+k"):
            session.evaluate(0, x, np.array([tau[0], bad]))
    assert {call.method for call in calls} == {"open"}
    session.close()


@pytest.mark.parametrize("reply", [b"", b"\0" * 10, b"\0" * 200])
def test_a_reply_of_another_length_is_refused(pair: Any, monkeypatch: pytest.MonkeyPatch, reply: bytes) -> None:
    session = pair.session()
    monkeypatch.setattr(type(pair.engine), "evaluate", lambda *args: reply)
    with pytest.raises(WireError, match="expected"):
        session.evaluate(0, *pair.inputs(0, 1))
    monkeypatch.undo()
    session.close()


def test_masks_of_an_upload_whose_answer_was_lost_are_released(
    pair: Any, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They arrived, but the client cannot know; it makes others, and the server keeps those only."""
    session = pair.session()
    before = pair.engine.store.mask_count
    prepare, lost = type(pair.engine).prepare, [ServerUnreachable("lost")]

    def lose(engine: Any, *args: Any) -> None:
        prepare(engine, *args)
        if lost:
            raise lost.pop()

    monkeypatch.setattr(type(pair.engine), "prepare", lose)
    session.reserve(full=3)
    uploads = [[mask.number for mask in call.args[2]] for call in calls if call.method == "prepare"]
    assert [call.args[1] for call in calls if call.method == "release"] == [uploads[0]]
    assert len(uploads) == 2
    assert pair.engine.store.mask_count == before + 3
    session.close()
