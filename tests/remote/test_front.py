"""A front with replicas in this process: clients go where they are placed, and on elsewhere when that ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
import torch

from veil.client import place
from veil.client.connection import Address
from veil.cluster.controller import Controller
from veil.cluster.front import Front
from veil.cluster.placement import Load, Scale
from veil.errors import AccessDenied, BundleError, IncompatibleServer, QuotaExceeded, UnknownSession
from veil.network.timeouts import Timeouts
from veil.network.tokens import Tokens, digest_of
from veil.server.config import ServerConfig
from waiting import until

QUICK = Timeouts(connect_s=3.0, reply_s=3.0, prepare_s=5.0, retry_s=10.0, pause_s=0.01, keepalive_s=1.0)


class InProcess:
    """`veil.cluster.controller.Replicas` that are servers of this process."""

    def __init__(self, serve: Any, bundle: Any, **options: Any) -> None:
        self._serve, self._bundle, self._options = serve, bundle, options
        self._stacks: dict[str, ExitStack] = {}
        self.servers: dict[str, Any] = {}

    def start(self) -> str:
        name = f"replica {len(self._stacks) + 1}"
        self._stacks[name] = ExitStack()
        self.servers[name] = self._stacks[name].enter_context(self._serve(self._bundle, **self._options))
        return name

    def load(self, name: str) -> Load | None:
        server = self.servers.get(name)
        if server is None:
            return None
        store = server.store
        return Load(
            address=f"127.0.0.1:{server.port}",
            sessions=store.count,
            most_sessions=8,
            used_bytes=store.used_bytes,
            memory_bytes=store.limits.memory_bytes,
            queued=server.queued,
        )

    def drain(self, name: str) -> None:
        self.servers[name].store.drain()

    def end(self, name: str) -> None:
        if self.servers.pop(name, None) is not None:
            self._stacks[name].close()

    def kill(self, name: str) -> None:
        """As far as clients see: it is gone from one moment to the next, with every session."""
        self.servers.pop(name)
        self._stacks[name].close()


class Sent:
    """Everything that a client sent for a row of a batch of a session: never two things, nor the same bytes for two rows."""

    def __init__(self, hybrid: Any) -> None:
        self.rows: dict[tuple[str, int, int, int], bytes] = {}
        self.sessions: set[str] = set()
        transport = hybrid.sides.remote.transport
        original = transport.evaluate

        def evaluate(session: str, group: int, spans: Any, data: Any, slots: int) -> Any:
            at = 0
            self.sessions.add(session)
            for span in spans:
                for row in range(span.first, span.first + span.count):
                    place = (session, span.batch, row, group)
                    assert place not in self.rows, f"{place} was used twice"
                    self.rows[place] = bytes(data[at])
                    at += 1
            return original(session, group, spans, data, slots)

        transport.evaluate = evaluate

    def check(self) -> None:
        assert len(set(self.rows.values())) == len(self.rows), "the same bytes went for two rows: a mask was used twice"


def channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address)


@pytest.fixture
def cluster(serve: Any, llama: Any) -> Iterator[tuple[Front, Controller, InProcess]]:
    replicas = InProcess(serve, llama, offer=True)
    controller = Controller(replicas, Scale(least=3, most=4), drain_s=0.0)
    front = Front(ServerConfig(port=0), controller.choose, controller.addresses, channel)
    try:
        for _ in range(2):
            controller.step()
        front.start()
        yield front, controller, replicas
    finally:
        front.stop()
        controller.stop()


def test_clients_go_on_when_a_replica_is_killed_one_drained_and_one_added(
    cluster: Any, llama: Any, generated: Any, expected: list[int]
) -> None:
    front, controller, replicas = cluster
    clients = [llama.connect(front.port, timeouts=QUICK) for _ in range(3)]
    controller.step()
    assert [load.sessions for load in controller.placement.loads] == [1, 1, 1]
    sent = [Sent(client) for client in clients]
    texts: list[list[list[int]]] = [[] for _ in clients]
    over = threading.Event()

    def work(place: int) -> None:
        with torch.random.fork_rng():
            while not over.is_set():
                texts[place].append(generated(clients[place]))

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(len(clients))]
    for thread in threads:
        thread.start()

    def until_each_wrote(more: int) -> None:
        goal = [len(own) + more for own in texts]
        until(
            lambda: (
                all(len(own) >= wanted for own, wanted in zip(texts, goal, strict=True))
                or not all(thread.is_alive() for thread in threads)
            ),
            120,
        )
        assert all(thread.is_alive() for thread in threads)

    until_each_wrote(1)
    first, second, _ = controller.names
    replicas.kill(first)
    controller.step()
    until_each_wrote(2)
    controller.add()
    controller.step()
    controller.drain(second)
    controller.step()
    controller.step()
    until_each_wrote(2)
    over.set()
    for thread in threads:
        thread.join(60)
    assert all(text == expected for own in texts for text in own)
    assert sum(len(own.sessions) for own in sent) >= 5, "two clients at least went on elsewhere"
    for own in sent:
        own.check()
    for client in clients:
        client.close()


def test_what_is_on_offer_is_fetched_through_the_front(cluster: Any, tmp_path: Any) -> None:
    from veil.client.connection import Connection
    from veil.wire import veil_pb2 as pb

    front, _, _ = cluster
    connection = Connection(Address(target=f"127.0.0.1:{front.port}"), QUICK)
    (bundle,) = connection.describe()
    path, size, _ = next(file for file in bundle.files if file[0] == "bundle.json")
    pieces = connection.download("Fetch", pb.FetchRequest(bundle=bundle.name, path=path), pb.FetchReply, 5.0)
    assert sum(len(piece.data) for piece in pieces) == size
    with pytest.raises(BundleError):
        list(connection.download("Fetch", pb.FetchRequest(bundle="other", path=path), pb.FetchReply, 5.0))
    connection.close()


def test_a_front_asks_for_tokens_and_says_when_there_is_no_room(llama: Any) -> None:
    config = ServerConfig(port=0, tokens=Tokens([digest_of("one")]))
    front = Front(config, lambda: None, list, channel)
    front.start()
    from veil.client.connection import Connection
    from veil.wire import methods
    from veil.wire import veil_pb2 as pb

    request = pb.OpenRequest(protocol=methods.PROTOCOL, bundle="llama")
    try:
        for token, refused in (("two", AccessDenied), ("one", QuotaExceeded)):
            connection = Connection(Address(target=f"127.0.0.1:{front.port}", token=token), QUICK)
            with pytest.raises(refused):
                connection.unary("Open", request, pb.OpenReply, 5.0)
            connection.close()
    finally:
        front.stop()


def test_a_front_cannot_send_a_client_where_it_would_not_go_by_itself() -> None:
    front = Address(target="127.0.0.1:9", token="secret")
    assert place.placed_at(front, "127.0.0.1:10").token == "secret"
    for elsewhere in ("example.org:10", "127.0.0.1:0", "127.0.0.1:10/x", ""):
        with pytest.raises(IncompatibleServer):
            place.placed_at(front, elsewhere)


def test_only_a_placed_session_is_given_up_after_failures() -> None:
    alone = place.Place("a:1")
    for _ in range(10):
        alone.failed()
    moved = place.Place("b:1", moved=True)
    moved.failed()
    moved.failed()
    moved.worked()
    moved.failed()
    moved.failed()
    with pytest.raises(UnknownSession):
        moved.failed()
