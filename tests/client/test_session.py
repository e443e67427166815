"""A client session against a real engine: right results, rows of offline batches, and bytes that are counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from veil.client.background import OfflineRows
from veil.errors import NotFiniteActivation, QuotaExceeded, ServerUnreachable, UnknownBatch, UnknownSession
from veil.network.timeouts import Timeouts
from veil.server.local import LocalServer
from veil.server.store import Limits, SessionStore
from veil.wire.messages import BatchUpload
from waiting import until


@pytest.mark.parametrize("rows", [1, 2, 7, 20])
@pytest.mark.parametrize("group", [0, 1, 2])
def test_results_are_the_exact_product_plus_the_predicted_noise(pair: Any, group: int, rows: int) -> None:
    """No error beyond 6 predicted standard deviations among at most 6,000; rows come of several batches."""
    session = pair.session()
    session.begin_forward()
    x = pair.inputs(group, rows)
    result = session.evaluate(group, x)
    assert result.dtype == np.float32
    assert result.shape == (rows, pair.manifest.groups[group].rows)
    assert (abs(pair.errors(group, x, result)) < 6).all()
    session.close()


def test_error_variance_is_the_predicted_one(pair: Any) -> None:
    """400 rows of group 1 in 50 batches: 120,000 results; a tiny secret of 96 coefficients adds 1 % to the deviation."""
    session = pair.session()
    x = pair.inputs(1, 400)
    errors = pair.errors(1, x, session.evaluate(1, x))
    assert (errors**2).mean() == pytest.approx(1.0, rel=5 * math.sqrt(2 / errors.size + 1 / (2 * 96 * 50)))
    session.close()


def test_a_prompt_s_rows_may_ask_for_fewer_outputs(pair: Any, calls: Any) -> None:
    session = pair.session()
    x = pair.inputs(0, 5)
    result = session.evaluate(0, x, 30)
    assert result.shape == (5, 30)
    padded = np.concatenate([result, np.zeros((5, 21), np.float32)], axis=1)
    assert (abs(pair.errors(0, x, padded))[:, :30] < 6).all()
    (call,) = [call for call in calls if call.method == "evaluate"]
    assert call.args[4] == 30 and call.reply.shape == (5, 60)
    assert session.stats.bytes_down_online == call.reply.nbytes
    prepared = [call.args[2] for call in calls if call.method == "prepare"]
    assert prepared == [("body", "head")], "what is left of a prompt's last batch serves the tokens after it"
    session.close()


def test_rows_of_zeros_and_no_rows(pair: Any) -> None:
    session = pair.session()
    x = np.zeros((2, 70), dtype=np.float32)
    np.testing.assert_array_equal(session.evaluate(0, x), np.zeros((2, 51), np.float32))
    assert session.evaluate(0, x[:0]).shape == (0, 51)
    session.close()


def test_bytes_are_those_that_cross_the_transport(pair: Any, calls: Any) -> None:
    session = pair.session()
    for step in range(3):
        session.begin_forward()
        for group, rows in ((0, 4), (1, 4), (2, 1)):
            session.evaluate(group, pair.inputs(group, rows, seed=step))
    evaluated = [call for call in calls if call.method == "evaluate"]
    stats = session.stats
    assert stats.bytes_up_online == sum(call.args[3].nbytes for call in evaluated)
    assert stats.bytes_down_online == sum(call.reply.nbytes for call in evaluated)
    assert stats.bytes_up_online == 3 * (4 * 210 + 4 * 184 + 219)
    assert stats.trips == len(evaluated) == 9
    batches = [batch for call in calls if call.method == "prepare" for batch in call.args[1]]
    assert stats.rows_made == len(batches) * pair.params.T
    assert stats.bytes_up_offline == len(batches) * (pair.params.batch_bytes + BatchUpload.HEADER_BYTES)
    assert all(batch.data.nbytes == pair.params.batch_bytes for batch in batches)
    assert stats.bytes_down_offline == 0
    assert stats.rows == 12
    session.close()


def test_whole_batches_of_prompt_rows_are_prepared_without_the_head(pair: Any, calls: Any) -> None:
    """A prompt of 20 rows that needs one row of logits: two batches of 8 for the body alone, and one with the head."""
    session = pair.session()
    session.begin_forward()
    session.evaluate(0, pair.inputs(0, 20))
    session.evaluate(1, pair.inputs(1, 20))
    session.evaluate(2, pair.inputs(2, 1))
    prepared = [(len(call.args[1]), tuple(call.args[2])) for call in calls if call.method == "prepare"]
    assert prepared == [(2, ("body",)), (1, ("body", "head"))]
    session.close()


def test_used_batches_are_released_at_the_next_forward_pass(pair: Any, calls: Any) -> None:
    session = pair.session()
    before = pair.server.store.batch_count
    session.begin_forward()
    session.evaluate(0, pair.inputs(0, 19))
    made = pair.server.store.batch_count - before
    session.begin_forward()
    used = {span.batch for call in calls if call.method == "evaluate" for span in call.args[2] if span.count == 8}
    released = [number for call in calls if call.method == "release" for number in call.args[1]]
    assert sorted(released) == sorted(used)
    assert pair.server.store.batch_count - before == made - len(used) == 1
    session.close()


def test_rows_that_are_reserved_take_the_place_of_used_ones(pair: Any, calls: Any) -> None:
    """Between passes used batches go before new ones are made; while a pass is under way its rows stay where they are."""
    session, rows = pair.session(), pair.params.T
    session.reserve(body=2 * rows)
    session.begin_forward()
    session.evaluate(0, pair.inputs(0, 2 * rows), slots=pair.manifest.groups[0].rows)
    session.reserve(full=1)
    assert not [call for call in calls if call.method == "release"]
    session.evaluate(1, pair.inputs(1, 2 * rows), slots=pair.manifest.groups[1].rows)
    session.end_forward()
    calls.clear()
    session.reserve(body=2 * rows)
    assert [call.method for call in calls] == ["release", "prepare"]
    assert len(calls[0].args[1]) == 2
    session.close()


def test_reserve_makes_rows_offline(pair: Any, calls: Any) -> None:
    session = pair.session()
    session.reserve(body=9, full=2)
    assert session.stats.rows_made == 24
    assert (session.ready.prompt_rows, session.ready.tokens) == (16, 8)
    session.reserve(body=16, full=8)
    assert session.stats.rows_made == 24, "they are there"
    session.begin_forward()
    session.evaluate(0, pair.inputs(0, 17))
    session.evaluate(2, pair.inputs(2, 2))
    assert session.stats.rows_made == 24
    assert session.stats.rows_ready == session.stats.rows == 17
    session.close()


def test_close_forgets_batches_on_both_sides(pair: Any) -> None:
    sessions, memory = pair.server.store.count, pair.server.store.used_bytes
    session = pair.session()
    session.reserve(full=3)
    assert pair.server.store.count == sessions + 1
    session.close()
    assert session.ready.tokens == 0
    assert pair.server.store.count == sessions
    assert pair.server.store.used_bytes == memory


def test_a_closed_session_makes_no_more_rows(pair: Any) -> None:
    session = pair.session()
    session.close()
    with pytest.raises(ServerUnreachable, match="the session was closed"):
        session.reserve(full=1)


def test_an_activation_that_is_not_finite_names_its_layer(pair: Any, calls: Any) -> None:
    session = pair.session()
    for bad in (np.nan, np.inf, -np.inf):
        x = pair.inputs(0, 2)
        x[1, 3] = bad
        with pytest.raises(NotFiniteActivation, match=r"q\+k"):
            session.evaluate(0, x)
    assert "evaluate" not in {call.method for call in calls}
    session.close()


@pytest.mark.parametrize("lost", [ServerUnreachable("lost")])
def test_batches_of_an_upload_whose_answer_was_lost_are_released(
    pair: Any, calls: Any, monkeypatch: pytest.MonkeyPatch, lost: Exception
) -> None:
    """They arrived, but the client cannot know; it makes others, and the server keeps those only."""
    session = pair.session()
    before = pair.server.store.batch_count
    prepare, failures = type(pair.server).prepare, [lost]

    def lose(engine: Any, *args: Any) -> None:
        prepare(engine, *args)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(type(pair.server), "prepare", lose)
    session.reserve(full=3)
    uploads = [[batch.number for batch in call.args[1]] for call in calls if call.method == "prepare"]
    data = [batch.data.tobytes() for call in calls if call.method == "prepare" for batch in call.args[1]]
    assert [call.args[1] for call in calls if call.method == "release"] == [uploads[0]]
    assert len(uploads) == 2 and uploads[0] != uploads[1]
    assert len(set(data)) == len(data), "not a byte of the first upload goes again"
    assert pair.server.store.batch_count == before + 1
    session.close()


# A server that forgets --------------------------------------------------------------------------------------------------


def rows_sent(calls: Any) -> list[tuple[str, int, int, int]]:
    """(session, group, batch, row) of every row that was sent."""
    return [
        (call.args[0], call.args[1], span.batch, row)
        for call in calls
        if call.method == "evaluate"
        for span in call.args[2]
        for row in range(span.first, span.first + span.count)
    ]


@pytest.mark.parametrize("forget", ["session", "batches"])
def test_a_server_that_forgot_gets_fresh_rows(pair: Any, calls: Any, forget: str) -> None:
    """Another session with other secrets; what was under way is encrypted anew under rows that were never used."""
    session, store = pair.session(), pair.server.store
    session.evaluate(0, pair.inputs(0, 3))
    name = session.pool.session
    own = store.find(name)
    if forget == "session":
        store.close(own)
    else:
        store.release(own, list(own.batches))
    x = pair.inputs(0, 2)
    assert (abs(pair.errors(0, x, session.evaluate(0, x))) < 6).all()
    assert session.stats.sessions_lost == 1
    assert session.pool.session != name
    sent = rows_sent(calls)
    assert len(sent) == len(set(sent)) == 3 + 2 + 2
    data = [row.tobytes() for call in calls if call.method == "evaluate" for row in call.args[3]]
    assert len(set(data)) == len(data)
    uploads = [batch.data.tobytes() for call in calls if call.method == "prepare" for batch in call.args[1]]
    assert len(set(uploads)) == len(uploads)
    session.close()


@pytest.mark.parametrize("error", [UnknownSession("gone"), UnknownBatch("gone")])
def test_a_server_that_forgets_every_time_is_an_error(
    pair: Any, calls: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    session = pair.session()

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(LocalServer, "evaluate", fail)
    with pytest.raises(type(error), match="gone"):
        session.evaluate(0, pair.inputs(0, 1))
    assert session.stats.sessions_lost == 2
    session.close()


def test_a_session_that_is_lost_while_rows_are_made_is_replaced(pair: Any) -> None:
    session, store = pair.session(), pair.server.store
    store.close(store.find(session.pool.session))
    session.reserve(full=1)
    assert session.stats.sessions_lost == 1
    assert session.ready.tokens == 8
    session.close()


def test_a_quota_is_an_error_and_not_tried_again(pair: Any, calls: Any) -> None:
    store = SessionStore(Limits(max_batches_per_session=1))
    session = pair.session(LocalServer(pair.engine, store))
    session.reserve(full=8)
    with pytest.raises(QuotaExceeded, match="1 batches of rows wait and 1 more"):
        session.reserve(full=9)
    assert len([call for call in calls if call.method == "prepare"]) == 2
    session.close()


def test_rows_are_made_in_the_background(pair: Any) -> None:
    session = pair.session(offline_rows=OfflineRows(tokens=9, prompt_rows=9), timeouts=Timeouts(retry_s=0.1))
    until(lambda: (session.ready.tokens, session.ready.prompt_rows) == (16, 16))
    x = pair.inputs(1, 12)
    assert (abs(pair.errors(1, x, session.evaluate(1, x))) < 6).all()
    session.close()
