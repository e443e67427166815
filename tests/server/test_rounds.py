"""What is usual is answered in rounds, on a GPU's server: as the serving loop by itself would, and nothing else is."""

from __future__ import annotations

import gc
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
import pytest

from server.joining import JoiningKernels
from veil.bench.load_shapes import random_model
from veil.bench.load_user import LoadTraffic, User
from veil.client.connection import Address, Connection
from veil.kernels.backend import kernels_for
from veil.kernels.interface import JoinedProduct, Kernels
from veil.network.frames import Frames
from veil.network.timeouts import Timeouts
from veil.server.batch_table import BatchTable
from veil.server.config import ServerConfig, server_limits
from veil.server.engine import Engine
from veil.server.hosted import HostedBundle
from veil.server.listen import Server
from veil.server.row_io import AVAILABLE
from veil.server.store import SessionStore
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="a GPU's server runs on Linux")

MODEL = random_model("tiny")
GROUPS = len(MODEL.manifest.groups)
ROWS = MODEL.params.T


class Guest:
    """A session with three prepared batches, the same bytes for each guest, and a connection of the row lane."""

    def __init__(self, server: Server) -> None:
        address = Address(target=f"127.0.0.1:{server.port}", token=None, tls=False, allow_no_tls=True)
        self.connection = Connection(address, Timeouts(connect_s=30.0))
        (bundle,) = self.connection.describe()
        traffic = LoadTraffic.of(bundle.name, bundle.fingerprint, bundle.header, 1, 3)
        request = pb.OpenRequest(protocol=methods.PROTOCOL, bundle=traffic.name, fingerprint=traffic.fingerprint)
        opened = self.connection.unary("Open", request, pb.OpenReply, 30.0)
        self.name = opened.session
        _, parts = User(traffic, self.name).upload(3)
        self.connection.upload("Prepare", parts, pb.PrepareReply, 60.0)
        self.socket = address.socket(opened.rows_port, 60.0)
        self.frames = Frames(self.socket, 1 << 24)
        self.frames.send(seal(pb.LaneHello(protocol=methods.PROTOCOL, session=self.name, ticket=opened.rows_ticket)))
        assert unseal(self.frames.receive(), pb.EvaluateReply).error == ""
        self.sequence = 0

    def message(self, group: int, first: int, count: int = 1, *, batch: int = 0, seed: int = 0, slots: int = 0) -> bytes:
        """A request, sealed; its rows are a function of ``seed`` and the place."""
        info = MODEL.manifest.groups[group]
        nbytes = (info.width * info.input_bits + 7) // 8
        draw = np.random.default_rng([seed, group, batch, first])
        spans = [batch, first, count] if count <= ROWS else [0, 0, ROWS, 1, 0, ROWS, 2, 0, ROWS]
        self.sequence += 1
        return seal(
            pb.EvaluateRequest(
                session=self.name,
                sequence=self.sequence,
                group=group,
                spans=spans,
                rows=draw.bytes(nbytes * count),
                slots=slots,
            )
        )

    def receive(self) -> pb.EvaluateReply:
        return unseal(self.frames.receive(), pb.EvaluateReply)

    def ask(self, *where: int, **options: int) -> pb.EvaluateReply:
        self.frames.send(self.message(*where, **options))
        return self.receive()

    def ended(self) -> bool:
        """Whether the server ended the connection; what it says before is passed over."""
        try:
            while self.frames.receive() is not None:
                continue
        except OSError:
            pass
        return True

    def close(self) -> None:
        self.frames.close()
        self.connection.close()


@dataclass
class House:
    server: Server
    kernels: Kernels

    def guest(self) -> Guest:
        return Guest(self.server)


@contextmanager
def house(kernels: Kernels, *copies: Kernels) -> Iterator[House]:
    limits = replace(server_limits(32, 1.0), batch_ttl_s=600.0)
    others = tuple(Engine.build(MODEL, own) for own in copies)
    hosted = HostedBundle(Engine.build(MODEL, kernels), "0" * 64, None, others)
    with Server({"tiny": hosted}, SessionStore(limits), ServerConfig(port=0, limits=limits)) as server:
        yield House(server, kernels)


@pytest.fixture(scope="module")
def without_rounds() -> Iterator[House]:
    with house(kernels_for("cpu")) as own:
        yield own


@pytest.fixture
def plain(without_rounds: House) -> Iterator[Guest]:
    """A guest of a server without rounds."""
    guest = without_rounds.guest()
    yield guest
    guest.close()


@pytest.fixture
def joining() -> Iterator[House]:
    with house(JoiningKernels()) as own:
        yield own


@pytest.fixture
def few() -> Iterator[House]:
    """A server whose rounds have four rows at most."""
    with house(JoiningKernels(4)) as own:
        yield own


def rounds_of(own: House) -> list[int]:
    assert isinstance(own.kernels, JoiningKernels)
    return own.kernels.rounds


def at_once(*calls: Callable[[], object]) -> None:
    failed: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed, failed[0]


def expected_of(plain: Guest, asked: Sequence[tuple[tuple[int, ...], dict[str, int]]]) -> list[bytes]:
    """What a server without rounds answers."""
    made = []
    for where, options in asked:
        reply = plain.ask(*where, **options)
        assert reply.error == ""
        made.append(reply.rows)
    return made


def test_many_clients_get_what_each_would_alone(joining: House, plain: Guest) -> None:
    asked: list[tuple[tuple[int, ...], dict[str, int]]] = []
    for first in range(0, 4):
        asked += [((group, first), {}) for group in range(GROUPS - 1)]
        asked.append(((GROUPS - 1, first), {"slots": 40} if first % 2 else {}))
    asked += [((2, 4, 3), {}), ((3, 5, 2), {"batch": 1}), ((0, 7), {"slots": 17})]
    wanted = expected_of(plain, asked)
    guests = [joining.guest() for _ in range(4)]

    def pass_through(guest: Guest) -> None:
        for (where, options), rows in zip(asked, wanted, strict=True):
            reply = guest.ask(*where, **options)
            assert (reply.error, reply.sequence, reply.rows) == ("", guest.sequence, rows)

    at_once(*(lambda guest=guest: pass_through(guest) for guest in guests))
    assert sum(rounds_of(joining)) >= 4 * len(asked) - 8  # all but those that woke the loop
    for guest in guests:
        guest.close()


def test_more_rows_than_a_round_takes_wait_for_the_next(few: House, plain: Guest) -> None:
    asked = [((group, 3 * turn, 3), dict[str, int]()) for turn in range(ROWS // 3) for group in (0, 1)]
    wanted = expected_of(plain, asked)
    guests = [few.guest() for _ in range(5)]

    def pass_through(guest: Guest) -> None:
        for (where, options), rows in zip(asked, wanted, strict=True):
            assert guest.ask(*where, **options).rows == rows

    at_once(*(lambda guest=guest: pass_through(guest) for guest in guests))
    for guest in guests:
        guest.close()


def test_a_prompt_beside_others_is_the_serving_loops(joining: House, plain: Guest) -> None:
    prompt = [((0, 0, 3 * ROWS), dict[str, int]())]
    single = [((1, turn), dict[str, int]()) for turn in range(ROWS)]
    long, short = expected_of(plain, prompt), expected_of(plain, single)
    one, other = joining.guest(), joining.guest()

    def alone() -> None:
        assert one.ask(*prompt[0][0]).rows == long[0]

    def beside() -> None:
        for (where, _), rows in zip(single, short, strict=True):
            assert other.ask(*where).rows == rows

    at_once(alone, beside)
    assert max(rounds_of(joining), default=1) <= 2
    one.close()
    other.close()


def test_the_same_bytes_may_come_again_and_no_others(joining: House) -> None:
    guest = joining.guest()
    answers = [guest.ask(0, 0, seed=1).rows for _ in range(3)]
    assert answers[0] == answers[1] == answers[2] and len(answers[0]) > 0
    assert guest.ask(1, 0, seed=1).error == ""
    assert guest.ask(0, 0, seed=2).error == "row-reused"
    assert guest.ended()
    guest.close()


@pytest.mark.parametrize(
    ("where", "options", "error"),
    [
        ((0, 0), {"batch": 9}, "unknown-batch"),
        ((0, 64), {}, "wire"),
        ((0, 3, 2), {"slots": 1 << 20}, "wire"),
        ((0, 0, 1), {"slots": 97}, "wire"),
    ],
)
def test_what_is_refused_is_refused_as_ever(
    joining: House, where: tuple[int, ...], options: dict[str, int], error: str
) -> None:
    guest, other = joining.guest(), joining.guest()
    assert guest.ask(0, 5).error == other.ask(0, 5).error == ""
    assert guest.ask(*where, **options).error == error
    assert other.ask(1, 5).error == ""
    guest.close()
    other.close()


def test_messages_in_parts_and_before_their_answers(joining: House, plain: Guest) -> None:
    wanted = expected_of(plain, [((group, 6), {}) for group in range(4)])
    guest = joining.guest()
    assert guest.ask(0, 6).rows == wanted[0]
    whole = b"".join(len(data).to_bytes(4, "little") + data for data in (guest.message(group, 6) for group in (1, 2, 3)))
    for at in (0, 3, 50, len(whole) // 2, len(whole) - 2):
        end = next((other for other in (3, 50, len(whole) // 2, len(whole) - 2) if other > at), len(whole))
        guest.socket.sendall(whole[at:end])
    assert [guest.receive().rows for _ in range(3)] == wanted[1:]
    guest.close()


def test_clients_that_come_and_go(joining: House, plain: Guest) -> None:
    """Places, files and sessions are used again; nobody gets what another asked."""
    (wanted,) = expected_of(plain, [((2, 7), {})])
    steady = joining.guest()
    for turn in range(12):
        guest = joining.guest()
        assert guest.ask(2, 7).rows == wanted
        if turn % 3 == 0:
            guest.socket.sendall(b"\x40\0\0")
        if turn % 3 == 1:
            guest.connection.unary("Close", pb.CloseRequest(session=guest.name), pb.CloseReply, 30.0)
        guest.close()
        assert steady.ask(2, 7).rows == wanted
    steady.close()


def test_a_session_that_closed_has_no_rows(joining: House) -> None:
    """Its connection ends, and the numbers that its session had are no other's."""
    store = joining.server.store
    guest = joining.guest()
    assert guest.ask(0, 0).error == ""
    number = store.find(guest.name).number
    store.close(store.find(guest.name))
    other = joining.guest()
    assert store.find(other.name).number != number
    with suppress(OSError):
        guest.frames.send(guest.message(0, 1))
    assert guest.ended()
    assert other.ask(0, 1).error == ""
    guest.close()
    other.close()


def test_the_metrics_count_what_rounds_answered() -> None:
    with house(JoiningKernels()) as own:
        guest = own.guest()
        for row in range(ROWS):
            guest.ask(0, row)
        guest.close()
    read = own.server.metrics.registry.get_sample_value
    assert read("veil_rows_total") == read("veil_messages_total") == ROWS
    assert (read("veil_bytes_total", {"direction": "received"}) or 0) > ROWS * 100
    assert 0 < (read("veil_message_seconds_total", {"stage": "check"}) or 0) < 60


def test_connections_are_spread_over_files(joining: House) -> None:
    """A socket's number may be of a connection that ended."""
    spare = [socket.socket() for _ in range(20)]
    guest = joining.guest()
    for one in spare:
        one.close()
    again = joining.guest()
    assert guest.ask(0, 0).rows == again.ask(0, 0).rows
    guest.close()
    again.close()


class ChosenKernels(JoiningKernels):
    """Of one of several devices: products are made and finished by a thread that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen_by: set[int] = set()
        self.made_by: list[int] = []

    @contextmanager
    def chosen(self) -> Iterator[None]:
        self.chosen_by.add(threading.get_ident())
        yield
        self.chosen_by.discard(threading.get_ident())

    def joined(self) -> JoinedProduct:
        assert threading.get_ident() in self.chosen_by
        self.made_by.append(threading.get_ident())
        return super().joined()


def test_copies_answer_in_rounds_of_their_own(plain: Guest) -> None:
    """Each copy has half of the sessions, a thread that has chosen its device, and answers what one alone would."""
    first, second = ChosenKernels(), ChosenKernels()
    asked = [((group, row), dict[str, int]()) for row in range(ROWS) for group in range(GROUPS - 1)]
    wanted = expected_of(plain, asked)
    with house(first, second) as own:
        guests = [own.guest() for _ in range(4)]

        def pass_through(guest: Guest) -> None:
            for (where, options), rows in zip(asked, wanted, strict=True):
                assert guest.ask(*where, **options).rows == rows

        at_once(*(lambda guest=guest: pass_through(guest) for guest in guests))
        for kernels in (first, second):
            assert 2 * len(asked) - 8 <= sum(kernels.rounds) <= 2 * len(asked)
        assert len(set(first.made_by + second.made_by)) == 2
        for guest in guests:
            guest.close()
    assert not first.chosen_by and not second.chosen_by


def test_a_copy_forgets_no_batch_that_another_may_be_multiplying(joining: House) -> None:
    """What one engine's sessions dropped is kept until that engine's next round, whatever others' rounds do."""
    store, engine = joining.server.store, Engine.build(MODEL, JoiningKernels())
    store.tables[engine] = BatchTable(engine.kernels.address)
    session = store.open("", engine)
    shares = {name: np.zeros((ROWS, slots), np.uint32) for name, slots in MODEL.manifest.segments.items()}
    store.reserve(session, [0], 100)
    store.keep(session, {0: shares}, 100)
    known = weakref.ref(shares["head"])
    del shares
    store.release(session, [0])
    guest = joining.guest()
    assert guest.ask(0, 0).error == ""  # a round of the other engine
    gc.collect()
    assert known() is not None
    store.in_table(engine, lambda batches, _: batches.forget())
    gc.collect()
    assert known() is None
    store.close(session)
    guest.close()
