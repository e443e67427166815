"""The engine refuses what does not fit, each with one clear error, changes nothing by it, and works afterwards."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from veil.crypto import public
from veil.errors import QuotaExceeded, RowReused, UnknownBatch, UnknownSession, WireError
from veil.kernels import reference
from veil.kernels.cpu import backend as cpu_backend
from veil.kernels.cpu import online
from veil.kernels.interface import Rows
from veil.kernels.reference_kernels import ReferenceKernels
from veil.kernels.ring import ring_of
from veil.params import packed_bytes
from veil.random import SecretRng
from veil.server import store
from veil.server.engine import MOST_BATCHES, record_bytes
from veil.server.local import LocalServer
from veil.wire.messages import BatchUpload, Span, Upload

BOTH = ("body", "head")


class Client:
    """A hand-made client of one session: it makes uploads and rows, right or wrong."""

    def __init__(self, pair: Any, seed: int = 1) -> None:
        self.pair, self.params, self.server, self.engine = pair, pair.params, pair.server, pair.engine
        self.rng = SecretRng.insecure_for_tests(seed)
        self.name = self.server.open()

    def batch(self, number: int) -> BatchUpload:
        params, kernels = self.params, self.pair.kernels
        a = public.outer_polynomials(self.pair.seed, params)
        secret = self.rng.ternary(params.n).reshape(1, params.k, params.m)
        errors = kernels.errors(self.rng, 3.2).draw(1, params.terms, params.N)
        z = self.rng.ternary(params.N)[None]
        return BatchUpload(number, kernels.encrypt_batches(a, z, secret, errors, ring_of(params))[0])

    def upload(self, *numbers: int, segments: Any = BOTH) -> Upload:
        return Upload(tuple(self.batch(number) for number in numbers), tuple(segments))

    def prepare(self, upload: Upload) -> None:
        self.server.prepare(self.name, upload.batches, upload.segments)

    def row_bytes(self, group: int) -> int:
        info = self.pair.manifest.groups[group]
        return packed_bytes(info.width, info.input_bits)

    def rows(self, group: int, count: int = 1, seed: int = 0) -> np.ndarray:
        draw = np.random.default_rng(seed)
        return draw.integers(0, 256, (count, self.row_bytes(group)), dtype=np.uint8)

    def slots(self, group: int) -> int:
        groups = self.pair.manifest.groups
        return int(groups[group].rows) if 0 <= group < len(groups) else 1

    def evaluate(self, group: int, spans: list[Span], data: np.ndarray, slots: int | None = None) -> np.ndarray:
        """As a service does: the same bytes may come again."""
        slots = self.slots(group) if slots is None else slots
        claim = self.server.admission.claim(self.server.store.find(self.name), group, spans, data, slots)
        return np.array(self.engine.answer([claim])[0])


@pytest.fixture
def client(pair: Any) -> Iterator[Client]:
    """A session with batch 0 for body and head; at the end the engine must still serve it, from row 5 on."""
    client = Client(pair)
    client.prepare(client.upload(0))
    yield client
    assert client.evaluate(0, [Span(0, 5, 1)], client.rows(0)).shape == (1, packed_bytes(51, 16))
    client.prepare(client.upload(1000, 1001))
    spans = [Span(1000, 0, 1), Span(1001, 3, 1)]
    assert client.evaluate(2, spans, client.rows(2, 2)).shape == (2, packed_bytes(90, 17))
    client.server.close(client.name)


# What works -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [0, 1, 2])
def test_replies_are_the_product_less_the_rows_of_the_shares(pair: Any, client: Client, group: int) -> None:
    """In the order of the spans, whatever batches they are of."""
    client.prepare(client.upload(1, 2))
    spans = [Span(2, 3, 2), Span(0, 0, 1), Span(1, 7, 1)]
    data, info = client.rows(group, 4), pair.manifest.groups[group]
    session = client.server.store.find(client.name)
    found = client.evaluate(group, spans, data)
    own = [Rows(session.batches[span.batch].shares[info.segment], span.first, span.count) for span in spans]
    bits = info.input_bits, info.result_bits
    expected = ReferenceKernels().answer(data, pair.weights[group], own, pair.manifest.starts[group], bits)
    np.testing.assert_array_equal(found, expected)


def test_a_row_s_answer_does_not_depend_on_the_rows_beside_it(client: Client) -> None:
    rows = client.rows(1, 4)
    together = client.evaluate(1, [Span(0, 0, 4)], rows)
    other = Client(client.pair)  # of the same seed, so of the same batch
    other.prepare(other.upload(0))
    alone = [other.evaluate(1, [Span(0, row, 1)], rows[row : row + 1]) for row in range(4)]
    np.testing.assert_array_equal(np.concatenate(alone), together)
    other.server.close(other.name)


def test_claims_are_answered_together_and_each_gets_its_own(client: Client) -> None:
    server, engine, session = client.server, client.engine, client.server.store.find(client.name)
    parts = [(Span(0, 0, 2), client.rows(1, 2, 1)), (Span(0, 2, 1), client.rows(1, 1, 2))]
    claims = [server.admission.claim(session, 1, [span], data, 300) for span, data in parts]
    together = [np.array(own) for own in engine.answer(claims, serial=True)]
    for (span, data), own in zip(parts, together, strict=True):
        np.testing.assert_array_equal(own, client.evaluate(1, [span], data))
    assert [engine.work(claim) for claim in claims] == [2 * 300 * 64, 300 * 64]


@pytest.mark.parametrize("joins", [False, True])
def test_results_are_where_they_are_said_to_be(client: Client, monkeypatch: pytest.MonkeyPatch, joins: bool) -> None:
    """Of one group, or of several where the engine joins groups."""
    server, engine, session = client.server, client.engine, client.server.store.find(client.name)
    monkeypatch.setattr(engine, "joins_groups", joins)
    groups = (1, 0, 2, 1) if joins else (1, 1)
    parts = [(group, Span(0, row, 1), client.rows(group, 1, row)) for row, group in enumerate(groups)]
    claims = [server.admission.claim(session, group, [span], data, client.slots(group)) for group, span, data in parts]
    found = engine.results(claims)
    for (group, span, data), (first, last) in zip(parts, found.places, strict=True):
        np.testing.assert_array_equal(found.packed[first:last], client.evaluate(group, [span], data)[0])


@pytest.mark.parametrize("slots", [1, 30, 50])
def test_a_prompt_asks_for_the_first_outputs_only(client: Client, slots: int) -> None:
    rows = client.rows(0, 2)
    whole = reference.unpack(client.evaluate(0, [Span(0, 0, 2)], rows), 51, 16)
    part = reference.unpack(client.evaluate(0, [Span(0, 0, 2)], rows, slots), slots, 16)
    np.testing.assert_array_equal(part, whole[:, :slots])


@pytest.mark.parametrize("slots", [0, -1, 52, 1 << 32])
def test_other_outputs_than_a_group_has_are_refused(client: Client, slots: int) -> None:
    with pytest.raises(WireError, match=f"{slots} outputs of group 0, which has 51"):
        client.evaluate(0, [Span(0, 0, 1)], client.rows(0), slots)
    assert client.evaluate(0, [Span(0, 0, 1)], client.rows(0, seed=4)).size, "nothing was spent"


def test_the_same_bytes_give_the_same_reply(client: Client) -> None:
    """A lost reply: the client may send the identical request again, and nothing else."""
    first = client.evaluate(1, [Span(0, 0, 2)], client.rows(1, 2))
    np.testing.assert_array_equal(client.evaluate(1, [Span(0, 0, 2)], client.rows(1, 2)), first)


def test_nothing_comes_twice_where_nothing_can_be_lost(client: Client) -> None:
    """In process there is no resend: the same bytes again are a second use."""
    server, rows = client.server, client.rows(1)
    server.evaluate(client.name, 1, [Span(0, 0, 1)], rows, 300)
    with pytest.raises(RowReused):
        server.evaluate(client.name, 1, [Span(0, 0, 1)], rows, 300)
    with pytest.raises(RowReused):
        client.evaluate(1, [Span(0, 0, 1)], rows)
    assert server.evaluate(client.name, 1, [Span(0, 1, 1)], rows, 300).shape == (1, packed_bytes(300, 15))


def test_no_rows_give_no_bytes(client: Client) -> None:
    assert client.evaluate(0, [], client.rows(0, 0)).shape == (0, packed_bytes(51, 16))


def test_no_batches_may_be_sent(client: Client) -> None:
    client.prepare(Upload((), BOTH))


def test_a_batch_without_the_head_answers_the_body(client: Client) -> None:
    client.prepare(client.upload(1, segments=["body"]))
    assert client.evaluate(0, [Span(1, 0, 1)], client.rows(0)).size
    with pytest.raises(UnknownBatch, match="batch 1 is not prepared for the head"):
        client.evaluate(2, [Span(1, 0, 1)], client.rows(2))


def test_released_batches_are_gone(client: Client) -> None:
    client.prepare(client.upload(1, 2))
    client.server.release(client.name, [1])
    with pytest.raises(UnknownBatch, match="batch 1 is not prepared"):
        client.evaluate(0, [Span(1, 0, 1)], client.rows(0))
    assert client.evaluate(0, [Span(2, 0, 1)], client.rows(0)).size
    client.server.release(client.name, [1, 77])


def test_one_row_is_spent_for_all_groups_at_once(pair: Any, client: Client) -> None:
    """What a pass that is replayed as a whole asks for."""
    server, span = client.server, Span(0, 0, 1)
    found = server.claim_row(client.name, [0, 1, 2], span)
    batch = server.store.find(client.name).batches[0]
    assert set(found) == {"body", "head"}
    for name, rows in found.items():
        assert rows.material is batch.shares[name] and (rows.first, rows.count) == (0, 1)
    for group in range(3):
        with pytest.raises(RowReused):
            client.evaluate(group, [span], client.rows(group))


def test_a_closed_session_is_gone(pair: Any) -> None:
    other = Client(pair)
    other.prepare(other.upload(0))
    other.server.close(other.name)
    for call in (
        lambda: other.evaluate(0, [Span(0, 0, 1)], other.rows(0)),
        lambda: other.server.evaluate(other.name, 0, [Span(0, 0, 1)], other.rows(0), 51),
        lambda: other.prepare(other.upload(1)),
        lambda: other.server.release(other.name, [0]),
        lambda: other.server.claim_row(other.name, [0], Span(0, 0, 1)),
    ):
        with pytest.raises(UnknownSession):
            call()


def test_session_names_cannot_be_guessed(pair: Any) -> None:
    names = {pair.server.open() for _ in range(20)}
    assert len(names) == 20
    assert all(len(bytes.fromhex(name)) == 16 for name in names)
    for name in names:
        pair.server.close(name)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_other_bytes_for_used_rows_are_refused(client: Client) -> None:
    first = client.evaluate(1, [Span(0, 0, 2)], client.rows(1, 2))
    with pytest.raises(RowReused, match="rows from 0 of batch 0 were used before, with other bytes"):
        client.evaluate(1, [Span(0, 0, 2)], client.rows(1, 2, 9))
    np.testing.assert_array_equal(client.evaluate(1, [Span(0, 0, 2)], client.rows(1, 2)), first)


@pytest.mark.parametrize("span", [Span(0, 0, 1), Span(0, 1, 1), Span(0, 0, 3), Span(0, 1, 2)])
def test_the_same_bytes_in_other_spans_are_refused(client: Client, span: Span) -> None:
    """A resend is whole: rows cut otherwise are not the request that was lost."""
    rows = client.rows(1, 4)
    client.evaluate(1, [Span(0, 0, 2)], rows[:2])
    with pytest.raises(RowReused):
        client.evaluate(1, [span], rows[span.first : span.first + span.count])


def test_spans_go_up(client: Client) -> None:
    """Rows that were passed over cannot be used any more; another group's rows are its own."""
    client.evaluate(1, [Span(0, 3, 1)], client.rows(1))
    with pytest.raises(RowReused, match="rows from 1 of batch 0"):
        client.evaluate(1, [Span(0, 1, 1)], client.rows(1))
    assert client.evaluate(0, [Span(0, 1, 1)], client.rows(0)).size
    assert client.evaluate(1, [Span(0, 4, 1)], client.rows(1)).size


@pytest.mark.parametrize("second", [0, 2])
def test_one_row_twice_in_a_request_is_refused(client: Client, second: int) -> None:
    data = np.concatenate([client.rows(1), client.rows(1, seed=second)])
    spans = [Span(0, 0, 1), Span(0, 0, 1)]
    with pytest.raises(RowReused):
        client.server.evaluate(client.name, 1, spans, data, 300)
    if second:
        with pytest.raises(RowReused):
            client.evaluate(2, spans, np.concatenate([client.rows(2), client.rows(2, seed=second)]))


@pytest.mark.parametrize("group", [-1, 3, 10**9])
def test_an_unknown_group_is_refused(client: Client, group: int) -> None:
    with pytest.raises(WireError, match=f"group {group} is not one of 3"):
        client.evaluate(group, [Span(0, 0, 1)], client.rows(0))


@pytest.mark.parametrize("more", [-1, 1, 10])
def test_rows_of_another_length_are_refused(client: Client, more: int) -> None:
    length = client.row_bytes(0)
    with pytest.raises(WireError, match=f"for 1 rows of {length} bytes"):
        client.evaluate(0, [Span(0, 0, 1)], np.zeros((1, length + more), np.uint8))
    with pytest.raises(WireError, match="for 2 rows"):
        client.evaluate(0, [Span(0, 0, 2)], client.rows(0))
    assert client.evaluate(0, [Span(0, 0, 1)], client.rows(0)).size, "what was refused spent nothing"


@pytest.mark.parametrize("number", [-1, 1, 2**40])
def test_a_batch_that_is_not_prepared_is_refused(client: Client, number: int) -> None:
    with pytest.raises(UnknownBatch, match=f"batch {number} is not prepared"):
        client.evaluate(0, [Span(number, 0, 1)], client.rows(0))


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (8, 1), (7, 2), (0, 9), (2**62, 1), (1 << 63, 1)])
def test_rows_that_no_batch_has_are_refused(client: Client, first: int, count: int) -> None:
    with pytest.raises(WireError, match="not those of a batch"):
        client.evaluate(0, [Span(0, first, count)], client.rows(0, count))


def test_spans_that_add_up_but_are_none_are_refused(client: Client) -> None:
    """Counts of 3, 0 and -2 are one row together; nothing is spent by it."""
    for spans in ([Span(0, 0, 3), Span(0, 3, -2)], [Span(0, 0, 1), Span(0, 1, 0)]):
        with pytest.raises(WireError, match="not those of a batch"):
            client.evaluate(0, spans, client.rows(0))
    assert client.evaluate(0, [Span(0, 0, 1)], client.rows(0, seed=4)).size


def test_a_request_with_one_wrong_span_spends_nothing(client: Client) -> None:
    with pytest.raises(UnknownBatch):
        client.evaluate(0, [Span(0, 0, 1), Span(9, 0, 1)], client.rows(0, 2))
    assert client.evaluate(0, [Span(0, 0, 1)], client.rows(0, seed=4)).size


def test_another_session_s_batch_is_refused(pair: Any, client: Client) -> None:
    stranger = Client(pair, seed=2)
    stranger.prepare(stranger.upload(7))
    with pytest.raises(UnknownBatch, match="batch 7 is not prepared"):
        client.evaluate(0, [Span(7, 0, 1)], client.rows(0))
    assert stranger.evaluate(0, [Span(7, 0, 1)], client.rows(0)).size
    stranger.server.close(stranger.name)


@pytest.mark.parametrize("name", ["", "00" * 16, "nonsense"])
def test_an_unknown_session_is_refused(client: Client, name: str) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: client.server.evaluate(name, 0, [Span(0, 0, 1)], client.rows(0), 51),
        lambda: client.server.prepare(name, client.upload(1).batches, BOTH),
        lambda: client.server.claim_row(name, [0], Span(0, 0, 1)),
        lambda: client.server.close(name),
    )
    for call in calls:
        with pytest.raises(UnknownSession, match="does not know this session"):
            call()


# Uploads --------------------------------------------------------------------------------------------------------------


def refused(client: Client, upload: Upload, message: str) -> None:
    """A `WireError` that names the fault, no memory taken, and no batch kept."""
    store = client.server.store
    before = store.used_bytes, store.batch_count
    with pytest.raises(WireError, match=message):
        client.prepare(upload)
    assert (store.used_bytes, store.batch_count) == before


@pytest.mark.parametrize("segments", [(), ("tail",), ("body", "tail"), ("body", "body")])
def test_unknown_or_repeated_segments_are_refused(client: Client, segments: tuple[str, ...]) -> None:
    refused(client, client.upload(1, segments=segments), "expected some of")
    client.prepare(client.upload(1))


@pytest.mark.parametrize("numbers", [(0, 1), (2, 1), (1, 1), (-1, 1)])
def test_batch_numbers_grow(client: Client, numbers: tuple[int, int]) -> None:
    """A number is a batch for ever: rows of one that was released do not come back under it."""
    refused(client, client.upload(*numbers), "batch numbers do not grow")
    client.prepare(client.upload(5))
    client.server.release(client.name, [5])
    refused(client, client.upload(5), "batch numbers do not grow")
    refused(client, client.upload(4), "batch numbers do not grow")


def test_more_batches_than_an_upload_has_are_refused(client: Client) -> None:
    empty = BatchUpload(1, np.zeros(client.params.batch_bytes, np.uint8))
    too_many = tuple(dataclasses.replace(empty, number=number) for number in range(1, MOST_BATCHES + 2))
    refused(client, Upload(too_many, BOTH), f"{MOST_BATCHES + 1} batches at once, expected up to {MOST_BATCHES}")
    session = client.server.store.find(client.name)
    with pytest.raises(WireError, match="-1 batches at once"):
        client.server.admission.check_header(session, BOTH, -1)
    client.prepare(Upload(too_many[:MOST_BATCHES], BOTH))


@pytest.mark.parametrize("more", [-1, 1])
def test_data_of_another_length_is_refused(client: Client, more: int) -> None:
    data = np.zeros(client.params.batch_bytes + more, np.uint8)
    refused(client, Upload((BatchUpload(1, data),), BOTH), f"a batch has {len(data)} bytes, expected {len(data) - more}")
    client.prepare(client.upload(1))


@pytest.mark.parametrize("place", ["all", "first", "last"])
def test_coefficients_out_of_range_are_refused(client: Client, place: str) -> None:
    """All bits set is above every prime. The number of such a batch counts as used: a client never resends it."""
    data = np.array(client.batch(1).data)
    data[{"all": slice(None), "first": slice(3), "last": slice(-3, None)}[place]] = 255
    refused(client, Upload((BatchUpload(1, data),), BOTH), "coefficient is not below its modulus")
    with pytest.raises(UnknownBatch):
        client.evaluate(0, [Span(1, 0, 1)], client.rows(0))
    client.prepare(client.upload(2))
    assert client.evaluate(0, [Span(2, 0, 1)], client.rows(0)).size


def test_one_bad_batch_spoils_its_upload_and_no_other(client: Client) -> None:
    bad = BatchUpload(2, np.full(client.params.batch_bytes, 255, np.uint8))
    refused(client, Upload((client.batch(1), bad), BOTH), "coefficient is not below its modulus")
    with pytest.raises(UnknownBatch):
        client.evaluate(0, [Span(1, 0, 1)], client.rows(0))
    client.prepare(client.upload(3))


def test_closing_gives_all_memory_back(pair: Any) -> None:
    before = pair.server.store.used_bytes
    other = Client(pair)
    other.prepare(other.upload(0, 1))
    assert pair.server.store.used_bytes == before + 2 * pair.engine.batch_bytes(BOTH)
    other.server.close(other.name)
    assert pair.server.store.used_bytes == before


def test_memory_is_promised_before_anything_is_made(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is counted with all that it will hold: shares of whole blocks, and the record of its rows."""
    engine = pair.engine
    limits = store.Limits(memory_bytes=2 * engine.batch_bytes(["body"]) + 10)
    small = LocalServer(engine, store.SessionStore(limits))
    client = Client(pair)
    client.server, client.name = small, small.open()
    client.prepare(client.upload(0, 1, segments=["body"]))
    held = small.store.find(client.name).batches.values()
    shares = sum(own.nbytes for batch in held for own in batch.shares.values())
    assert shares < small.store.used_bytes == 2 * engine.batch_bytes(["body"])
    assert engine.batch_bytes(["body"]) == 4 * 8 * 22 * 16 + record_bytes(8, 3)
    monkeypatch.setattr(engine.hint, "prepare", None)
    with pytest.raises(QuotaExceeded, match="1 more batches of rows take"):
        client.prepare(client.upload(2))


# Failures -------------------------------------------------------------------------------------------------------------


def after(calls: int, error: Exception, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, but for the call after so many, which raises."""
    count = itertools.count()

    def wrapper(*args: Any) -> Any:
        if next(count) == calls:
            raise error
        return real(*args)

    return wrapper


class Two:
    """Two sessions, each with an upload of two batches admitted for one pass."""

    def __init__(self, pair: Any) -> None:
        self.engine, self.server, self.store = pair.engine, pair.server, pair.server.store
        self.clients = [Client(pair, seed) for seed in (1, 2)]
        for client in self.clients:
            client.prepare(client.upload(0))
        self.sessions = [self.store.find(client.name) for client in self.clients]
        self.before = [session.nbytes for session in self.sessions]
        self.uploads = [client.upload(1, 2) for client in self.clients]
        self.items = [
            self.server.admission.admit(session, upload) for session, upload in zip(self.sessions, self.uploads, strict=True)
        ]

    def served(self, which: int) -> None:
        """The upload's batches are there, and its memory is counted."""
        self.clients[which].evaluate(0, [Span(1, 0, 1), Span(2, 0, 1)], self.clients[which].rows(0, 2))
        each = self.items[which].batch_bytes
        assert (self.sessions[which].waiting, self.sessions[which].nbytes) == (0, self.before[which] + 2 * each)

    def given_back(self, which: int) -> None:
        """None of the upload's batches is there, nothing is promised, and the session serves on."""
        client, session = self.clients[which], self.sessions[which]
        assert (sorted(session.batches), session.waiting, session.nbytes) == ([0], 0, self.before[which])
        client.prepare(client.upload(3))
        assert client.evaluate(0, [Span(3, 0, 1)], client.rows(0)).size


@pytest.fixture
def two(pair: Any) -> Iterator[Two]:
    before = pair.server.store.used_bytes
    two = Two(pair)
    yield two
    for session in two.sessions:
        two.store.close(session)
    assert two.store.used_bytes == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("kernel"), WireError("bad")])
def test_an_upload_that_cannot_be_read_fails_alone(two: Two, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with monkeypatch.context() as patch:
        kernels = two.engine.kernels
        patch.setattr(kernels, "decode_batches", after(0, error, kernels.decode_batches))
        assert two.server.admission.make(two.items) == [error, None]
    two.given_back(0)
    two.served(1)


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_a_pass_that_fails_gives_every_promise_back(two: Two, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(two.engine.hint, "prepare", after(0, error, two.engine.hint.prepare))
        two.server.admission.make(two.items)
    two.given_back(0)
    two.given_back(1)


def test_an_upload_whose_batches_cannot_be_kept_fails_alone(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    error = MemoryError()
    with monkeypatch.context() as patch:
        patch.setattr(store, "Batch", after(3, error, store.Batch))
        assert two.server.admission.make(two.items) == [None, error]
    two.served(0)
    two.given_back(1)


def test_a_session_that_was_closed_meanwhile_fails_alone(two: Two) -> None:
    two.store.close(two.sessions[0])
    (error, none) = two.server.admission.make(two.items)
    assert isinstance(error, UnknownSession) and none is None
    assert two.sessions[0].waiting == 0
    two.served(1)


def test_a_session_may_be_closed_while_its_batches_are_made(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = two.engine.hint.prepare

    def close_meanwhile(*args: Any) -> Any:
        two.store.close(two.sessions[0])
        return prepare(*args)

    with monkeypatch.context() as patch:
        patch.setattr(two.engine.hint, "prepare", close_meanwhile)
        two.server.admission.make(two.items)
    assert (two.sessions[0].waiting, two.sessions[0].nbytes, two.sessions[0].batches) == (0, 0, {})
    two.served(1)


# Ahead of the next group ------------------------------------------------------------------------------------------------


def test_the_weights_that_come_next_are_read_whole_their_beginning_last(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass takes groups in their order, and the first again after the last."""
    read: list[tuple[int, int, int]] = []
    monkeypatch.setattr(online, "read_lines", lambda own, first, last: read.append((id(own), first, last)))
    monkeypatch.setattr(cpu_backend, "STEP_BYTES", 1000)
    groups, loaded = len(pair.weights), pair.engine.weights
    for group, weights in enumerate(loaded):
        read.clear()
        steps = pair.engine.prefetch_after((group - 1) % groups)
        assert read == []
        count = sum(1 for _ in steps)
        assert count == len(read) == -(-weights.size // 1000)
        assert {which for which, _, _ in read} == {id(weights)}
        assert read[-1][1] == 0
        assert sorted(at for _, first, last in read for at in range(first, last)) == list(range(weights.size))


def test_no_more_is_read_ahead_than_caches_hold(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    monkeypatch.setattr(online, "read_lines", lambda own, first, last: read.append((first, last)))
    weights = np.empty((4096, 4096), dtype=np.int8)
    list(pair.kernels.prefetch(weights))
    assert sum(last - first for first, last in read) == 8 << 20 < weights.size
    assert read[-1][0] == 0
