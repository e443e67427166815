"""The engine refuses what does not fit, each with one clear error, changes nothing by it, and works afterwards."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from veil.crypto import public
from veil.crypto.secret import OuterKey, inner_secret
from veil.errors import MaskReused, UnknownMask, UnknownSession, WireError
from veil.kernels import cpu
from veil.params import packed_bytes
from veil.random import SecretRng
from veil.server import arithmetic, store
from veil.wire import codec
from veil.wire.messages import MaskUpload

BOTH = ("body", "head")


@dataclass(frozen=True)
class Upload:
    """What a client sends ahead: an epoch's keys, if it is new, and masks of it."""

    epoch: int
    keys: bytes | None
    masks: tuple[MaskUpload, ...]
    segments: tuple[str, ...]


class Client:
    """A hand-made client of one session: it makes uploads and rows, right or wrong."""

    def __init__(self, pair: Any, seed: int = 1) -> None:
        self.pair, self.params, self.engine = pair, pair.params, pair.engine
        self.rng = SecretRng.insecure_for_tests(seed)
        self.name = self.engine.open()
        self.key = self.new_key()

    def new_key(self) -> OuterKey:
        return OuterKey(self.params, cpu, self.rng)

    def keys(self) -> bytes:
        halves = self.key.galois_keys(public.key_halves(self.pair.seed, self.params))
        return codec.encode_keys(halves, self.params, cpu)

    def mask(self, number: int, index: int) -> MaskUpload:
        half = public.mask_half(self.pair.seed, self.params, index % self.params.masks_per_epoch)
        secret = inner_secret(self.rng, self.params)
        encrypted = OuterKey(self.params, cpu, self.rng).encrypt_mask(index % 4, half, secret)
        return MaskUpload(number, index, codec.encode_mask(encrypted, self.params, cpu))

    def upload(self, *masks: tuple[int, int], epoch: int = 0, first: bool = False, segments: Any = BOTH) -> Upload:
        made = tuple(self.mask(number, index) for number, index in masks)
        return Upload(epoch, self.keys() if first else None, made, tuple(segments))

    def prepare(self, upload: Upload) -> None:
        if upload.keys is not None:
            self.engine.load_epoch(self.name, upload.epoch, upload.keys)
        self.engine.prepare(self.name, upload.epoch, upload.masks, upload.segments)

    def row_bytes(self, group: int) -> int:
        return packed_bytes(self.pair.manifest.groups[group].width, self.params.spec.input_bits)

    def row(self, group: int, seed: int = 0) -> bytes:
        return np.random.default_rng(seed).bytes(self.row_bytes(group))

    def evaluate(self, group: int, masks: list[int], data: bytes) -> bytes:
        return self.engine.evaluate(self.name, group, masks, data)


@pytest.fixture
def client(pair: Any) -> Iterator[Client]:
    """A session of epoch 0 with mask 0 (set 0) for body and head; at the end the engine must still serve it."""
    client = Client(pair)
    client.prepare(client.upload((0, 0), first=True))
    yield client
    reply = client.evaluate(0, [0], client.row(0))
    assert len(reply) == packed_bytes(51, client.params.spec.result_bits)
    client.key = client.new_key()
    client.prepare(client.upload((1000, 0), (1001, 1), epoch=1000, first=True))
    assert client.evaluate(2, [1000, 1001], client.row(2, 1) + client.row(2, 2))
    client.engine.close(client.name)


# What works -----------------------------------------------------------------------------------------------------------


def test_replies_are_the_kernel_s_answer_with_the_mask_s_share(pair: Any, client: Client) -> None:
    """Two sessions with one upload get one answer; a row's answer does not depend on the rows beside it."""
    client.prepare(client.upload((1, 1), (2, 2)))
    rows = [client.row(1, seed) for seed in (1, 2)]
    together = client.evaluate(1, [1, 2], rows[0] + rows[1])
    alone = [client.evaluate(1, [number], row) for number, row in zip((1, 2), rows, strict=True)]
    assert together == alone[0] + alone[1]


def test_the_same_bytes_give_the_same_reply(client: Client) -> None:
    """A lost reply: the client may send the identical request again, and nothing else."""
    first = client.evaluate(1, [0], client.row(1))
    assert client.evaluate(1, [0], client.row(1)) == first


def test_no_rows_give_no_bytes(client: Client) -> None:
    assert client.evaluate(0, [], b"") == b""


def test_a_mask_without_the_head_answers_the_body(client: Client) -> None:
    client.prepare(client.upload((1, 1), segments=["body"]))
    assert client.evaluate(0, [1], client.row(0, 5))
    with pytest.raises(UnknownMask, match="mask 1 is not prepared for the head"):
        client.evaluate(2, [1], client.row(2))


def test_masks_of_the_last_epoch_stay_until_they_are_released(client: Client) -> None:
    client.prepare(client.upload((1, 1)))
    client.key = client.new_key()
    client.prepare(client.upload((2, 0), epoch=1, first=True))
    assert client.evaluate(0, [1, 2], client.row(0, 1) + client.row(0, 2))


def test_released_masks_are_gone(client: Client) -> None:
    client.prepare(client.upload((1, 1), (2, 2)))
    client.engine.release(client.name, [1])
    with pytest.raises(UnknownMask, match="mask 1 is not prepared"):
        client.evaluate(0, [1], client.row(0))
    assert client.evaluate(0, [2], client.row(0))
    client.engine.release(client.name, [1, 77])


def test_a_closed_session_is_gone(pair: Any) -> None:
    other = Client(pair)
    other.prepare(other.upload((0, 0), first=True))
    other.engine.close(other.name)
    for call in (
        lambda: other.evaluate(0, [0], other.row(0)),
        lambda: other.prepare(other.upload((1, 1))),
        lambda: other.engine.release(other.name, [0]),
    ):
        with pytest.raises(UnknownSession):
            call()


def test_session_names_cannot_be_guessed(pair: Any) -> None:
    names = {pair.engine.open() for _ in range(20)}
    assert len(names) == 20
    assert all(len(bytes.fromhex(name)) == 16 for name in names)
    for name in names:
        pair.engine.close(name)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_other_bytes_for_a_used_mask_are_refused(client: Client) -> None:
    first = client.evaluate(1, [0], client.row(1))
    with pytest.raises(MaskReused, match="mask 0 was used for group 1 with other bytes"):
        client.evaluate(1, [0], client.row(1, 9))
    assert client.evaluate(1, [0], client.row(1)) == first


def test_one_mask_for_two_rows_is_refused(client: Client) -> None:
    for second in (client.row(1), client.row(1, 2)):
        with pytest.raises(MaskReused, match="one mask for two rows"):
            client.evaluate(1, [0, 0], client.row(1) + second)


@pytest.mark.parametrize("group", [-1, 3, 10**9])
def test_an_unknown_group_is_refused(client: Client, group: int) -> None:
    with pytest.raises(WireError, match=f"group {group} is not one of 3"):
        client.evaluate(group, [0], client.row(0))


@pytest.mark.parametrize("more", [-1, 1, 10])
def test_rows_of_another_length_are_refused(client: Client, more: int) -> None:
    length = client.row_bytes(0)
    with pytest.raises(WireError, match=f"{length + more} bytes for 1 rows of 70 words, expected {length}"):
        client.evaluate(0, [0], bytes(length + more))
    with pytest.raises(WireError, match="for 2 rows"):
        client.evaluate(0, [0, 1], client.row(0))


@pytest.mark.parametrize("number", [-1, 1, 2**40])
def test_a_mask_that_is_not_prepared_is_refused(client: Client, number: int) -> None:
    with pytest.raises(UnknownMask, match=f"mask {number} is not prepared"):
        client.evaluate(0, [number], client.row(0))


def test_another_session_s_mask_is_refused(pair: Any, client: Client) -> None:
    stranger = Client(pair, seed=2)
    stranger.prepare(stranger.upload((7, 0), first=True))
    with pytest.raises(UnknownMask, match="mask 7 is not prepared"):
        client.evaluate(0, [7], client.row(0))
    assert stranger.evaluate(0, [7], client.row(0))
    stranger.engine.close(stranger.name)


@pytest.mark.parametrize("name", ["", "00" * 16, "nonsense"])
def test_an_unknown_session_is_refused(client: Client, name: str) -> None:
    for call in (
        lambda: client.engine.evaluate(name, 0, [0], client.row(0)),
        lambda: client.engine.prepare(name, 0, client.upload((1, 1)).masks, BOTH),
        lambda: client.engine.load_epoch(name, 5, client.keys()),
    ):
        with pytest.raises(UnknownSession, match="does not know this session"):
            call()


# Uploads --------------------------------------------------------------------------------------------------------------


def refused(client: Client, upload: Upload, message: str) -> None:
    """A `WireError` that names the fault, no memory taken, and no mask kept."""
    store = client.engine.store
    before = store.used_bytes, store.mask_count
    with pytest.raises(WireError, match=message):
        client.prepare(upload)
    assert (store.used_bytes, store.mask_count) == before


@pytest.mark.parametrize("segments", [(), ("tail",), ("body", "tail"), ("body", "body")])
def test_unknown_or_repeated_segments_are_refused(client: Client, segments: tuple[str, ...]) -> None:
    refused(client, client.upload((1, 1), segments=segments), "expected some of")
    client.prepare(client.upload((1, 1)))


@pytest.mark.parametrize("index", [-1, 4, 2**31])
def test_a_set_out_of_range_is_refused(client: Client, index: int) -> None:
    refused(client, client.upload((1, index)), f"set {index} is not below 4|not below 4")
    client.prepare(client.upload((1, 1)))


def test_a_set_is_used_once_in_an_epoch(client: Client) -> None:
    """Rule 2, on the server's side."""
    refused(client, client.upload((1, 0)), "set of this epoch is used twice")
    refused(client, client.upload((1, 1), (2, 1)), "set of this epoch is used twice")
    client.prepare(client.upload((1, 1), (2, 2)))
    refused(client, client.upload((3, 2)), "set of this epoch is used twice")
    client.key = client.new_key()
    client.prepare(client.upload((3, 2), epoch=1, first=True))


@pytest.mark.parametrize("numbers", [(0, 1), (2, 1), (1, 1), (-1, 1)])
def test_mask_numbers_grow(client: Client, numbers: tuple[int, int]) -> None:
    refused(client, client.upload((numbers[0], 1), (numbers[1], 2)), "mask numbers do not grow")
    client.prepare(client.upload((5, 1)))
    refused(client, client.upload((5, 2)), "mask numbers do not grow")
    refused(client, client.upload((4, 2)), "mask numbers do not grow")


@pytest.mark.parametrize("epoch", [-1, 0])
def test_a_new_epoch_has_a_higher_number(client: Client, epoch: int) -> None:
    refused(client, client.upload((1, 1), epoch=epoch, first=True), f"epoch {epoch} is not newer than 0")
    client.prepare(client.upload((1, 1)))


@pytest.mark.parametrize("epoch", [-1, 1])
def test_masks_are_of_the_session_s_epoch(client: Client, epoch: int) -> None:
    refused(client, client.upload((1, 1), epoch=epoch), f"masks of epoch {epoch}, but the session's epoch is 0")
    client.prepare(client.upload((1, 1)))


def test_a_session_starts_with_keys(pair: Any) -> None:
    other = Client(pair)
    refused(other, other.upload((0, 0)), "masks of epoch 0, but the session's epoch is -1")
    refused(other, other.upload((0, 0), epoch=-1), "epoch")
    other.prepare(other.upload((0, 0), first=True))
    other.engine.close(other.name)


def test_more_masks_than_an_epoch_has_are_refused(client: Client) -> None:
    refused(client, client.upload(*[(n, n - 1) for n in range(1, 6)]), "5 masks at once, an epoch has 4|set")


@pytest.mark.parametrize("more", [-1, 1])
def test_data_of_another_length_is_refused(client: Client, more: int) -> None:
    good = client.upload((1, 1), epoch=1, first=True)
    assert good.keys is not None
    keys = bytes(len(good.keys) + more)
    refused(client, dataclasses.replace(good, keys=keys), f"epoch keys have {len(keys)} bytes")
    data = bytes(client.params.mask_bytes + more)
    short = dataclasses.replace(good, epoch=0, keys=None, masks=(MaskUpload(1, 1, data),))
    refused(client, short, f"a mask has {len(data)} bytes")
    client.prepare(good)


def test_coefficients_out_of_range_are_refused(client: Client) -> None:
    """All bits set is above every prime. The set and number of such a mask count as used: a client never resends them."""
    bad = MaskUpload(1, 1, b"\xff" * client.params.mask_bytes)
    refused(client, Upload(0, None, (bad,), BOTH), "coefficient is not below its modulus")
    with pytest.raises(UnknownMask):
        client.evaluate(0, [1], client.row(0))
    client.prepare(client.upload((2, 2)))
    good = client.upload((3, 1), epoch=1, first=True)
    bad_keys = dataclasses.replace(good, keys=b"\xff" * client.params.epoch_key_bytes)
    refused(client, bad_keys, "coefficient is not below its modulus")
    assert client.evaluate(0, [2], client.row(0, 3))


def test_one_bad_mask_spoils_its_upload_and_no_other(client: Client) -> None:
    bad = MaskUpload(2, 2, b"\xff" * client.params.mask_bytes)
    refused(client, Upload(0, None, (client.mask(1, 1), bad), BOTH), "coefficient is not below its modulus")
    with pytest.raises(UnknownMask):
        client.evaluate(0, [1], client.row(0))
    client.prepare(client.upload((3, 3)))


def test_closing_gives_all_memory_back(pair: Any) -> None:
    before = pair.engine.store.used_bytes
    other = Client(pair)
    other.prepare(other.upload((0, 0), (1, 1), first=True))
    assert pair.engine.store.used_bytes > before
    other.engine.close(other.name)
    assert pair.engine.store.used_bytes == before


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
    """Two sessions, each with an upload of two masks admitted for one batch."""

    def __init__(self, pair: Any) -> None:
        self.engine, self.store = pair.engine, pair.engine.store
        self.clients = [Client(pair, seed) for seed in (1, 2)]
        for client in self.clients:
            client.prepare(client.upload((0, 0), first=True))
        self.sessions = [self.store.find(client.name) for client in self.clients]
        self.before = [session.nbytes for session in self.sessions]
        self.uploads = [client.upload((1, 1), (2, 2)) for client in self.clients]
        self.batch = [
            self.engine.admit(session, upload) for session, upload in zip(self.sessions, self.uploads, strict=True)
        ]

    def served(self, which: int) -> None:
        """The upload's masks are there, and its memory is counted."""
        self.clients[which].evaluate(0, [1, 2], self.clients[which].row(0, 1) + self.clients[which].row(0, 2))
        each = self.batch[which].mask_bytes
        assert (self.sessions[which].waiting, self.sessions[which].nbytes) == (0, self.before[which] + 2 * each)

    def given_back(self, which: int) -> None:
        """None of the upload's masks is there, nothing is promised, and the session serves on."""
        client, session = self.clients[which], self.sessions[which]
        assert (sorted(session.masks), session.waiting, session.nbytes) == ([0], 0, self.before[which])
        client.prepare(client.upload((3, 3)))
        assert client.evaluate(0, [3], client.row(0, 3))


@pytest.fixture
def two(pair: Any) -> Iterator[Two]:
    before = pair.engine.store.used_bytes
    two = Two(pair)
    yield two
    for session in two.sessions:
        two.store.close(session)
    assert two.store.used_bytes == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("kernel"), WireError("bad")])
def test_an_upload_that_cannot_be_read_fails_alone(two: Two, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(codec, "decode_mask", after(1, error, codec.decode_mask))
        assert two.engine.make(two.batch) == [error, None]
    two.given_back(0)
    two.served(1)


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_a_pass_that_fails_gives_every_promise_back(two: Two, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(two.engine.hint, "prepare", after(0, error, two.engine.hint.prepare))
        two.engine.make(two.batch)
    two.given_back(0)
    two.given_back(1)


@pytest.mark.parametrize("calls", [0, 3])
def test_an_upload_whose_shares_cannot_be_copied_fails_alone(two: Two, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """At its first mask, or when one mask is there."""
    error = MemoryError()
    with monkeypatch.context() as patch:
        patch.setattr(two.engine.arithmetic, "own", after(calls, error, two.engine.arithmetic.own))
        assert two.engine.make(two.batch) == [error, None]
    two.given_back(0)
    two.served(1)


def test_an_upload_whose_masks_cannot_be_kept_fails_alone(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    error = MemoryError()
    with monkeypatch.context() as patch:
        patch.setattr(store, "Mask", after(3, error, store.Mask))
        assert two.engine.make(two.batch) == [None, error]
    two.served(0)
    two.given_back(1)


def test_a_session_that_was_closed_meanwhile_fails_alone(two: Two) -> None:
    two.store.close(two.sessions[0])
    (error, none) = two.engine.make(two.batch)
    assert isinstance(error, UnknownSession) and none is None
    assert two.sessions[0].waiting == 0
    two.served(1)


class ClosedByReading(tuple[Any, ...]):
    """Keys whose session is closed by another thread when somebody looks at them."""

    close: Callable[[], None]

    def __getitem__(self, index: Any) -> Any:
        self.close()
        return super().__getitem__(index)


def test_a_session_may_be_closed_while_its_keys_are_read(two: Two) -> None:
    assert two.sessions[0].keys is not None
    two.sessions[0].keys = keys = ClosedByReading(two.sessions[0].keys)
    keys.close = lambda: two.store.close(two.sessions[0])
    two.engine.make(two.batch)
    assert (two.sessions[0].waiting, two.sessions[0].nbytes, two.sessions[0].masks) == (0, 0, {})
    two.served(1)


def test_keys_are_not_kept_for_a_session_that_was_closed(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Client(pair)
    session = pair.engine.store.find(other.name)

    def close_meanwhile(*args: Any) -> Any:
        pair.engine.close(other.name)
        return decode(*args)

    decode = codec.decode_keys
    monkeypatch.setattr(codec, "decode_keys", close_meanwhile)
    with pytest.raises(UnknownSession):
        pair.engine.load_epoch(other.name, 0, other.keys())
    assert session.keys is None and session.waiting == 0


def test_the_server_model_lists_weights_in_slot_order(pair: Any) -> None:
    rows = pair.server_model.hint_rows()
    assert {name: [part.group for part in parts] for name, parts in rows.items()} == {"body": [0, 1], "head": [2]}
    assert rows["body"][1].weights is pair.weights[1]


def test_the_weights_that_come_next_are_read_whole_their_beginning_last(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass takes groups in their order, and the first again after the last."""
    read: list[tuple[int, int, int]] = []
    monkeypatch.setattr(cpu, "read_lines", lambda weights, first, last: read.append((id(weights), first, last)))
    monkeypatch.setattr(arithmetic, "_STEP_BYTES", 1000)
    groups = len(pair.weights)
    for group, weights in enumerate(pair.weights):
        read.clear()
        steps = pair.engine.prefetch_after((group - 1) % groups)
        assert read == []
        count = sum(1 for _ in steps)
        assert count == len(read) == -(-weights.size // 1000)
        assert {which for which, _, _ in read} == {id(weights)}
        assert read[-1][1] == 0
        assert sorted(at for _, first, last in read for at in range(first, last)) == list(range(weights.size))


def test_no_more_is_read_ahead_than_caches_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    monkeypatch.setattr(cpu, "read_lines", lambda weights, first, last: read.append((first, last)))
    weights = np.empty((4096, 4096), dtype=np.int8)
    list(arithmetic.HostArithmetic([weights], cpu).prefetch(0))
    assert sum(last - first for first, last in read) == 8 << 20 < weights.size
    assert read[-1][0] == 0
