"""What the network transport does when something fails: the same bytes again, another way, another server, or an error."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from client.channels import Channel, Failure, FakeAddress, fails
from veil.bundle.fingerprint import fingerprint_of
from veil.client.connection import OfferedBundle
from veil.client.remote import SHORTEST_TTL_S, RemoteTransport
from veil.client.stats import Stats
from veil.errors import BundleError, CorruptMessage, IncompatibleServer, RowReused, ServerUnreachable, UnknownSession
from veil.network.timeouts import Timeouts
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal
from veil.wire.messages import BatchUpload, Span

HALF, SESSION, TICKET = "ab" * 32, "0" * 32, "1" * 32
SPANS, GROUP = [Span(0, 0, 2)], 0


class Server:
    """Answers the calls of a session by their names; ``opens`` are replies to ``Open``, the last one again and again."""

    def __init__(self, fingerprint: str) -> None:
        self.bundles = [pb.Bundle(name="m", fingerprint=fingerprint, digest=HALF, header="{}")]
        self.opens: list[pb.OpenReply] = [opened()]
        self.prepare: Callable[[Any], bytes] = lambda parts: (list(parts), seal(pb.PrepareReply()))[1]
        self.asked: list[pb.OpenRequest] = []
        self.asked_at: list[str] = []
        self.closed: list[str] = []
        self.down = 0
        """Calls that do not get through."""

    def answer(self, name: str, data: Any, target: str) -> bytes:
        if self.down:
            self.down -= 1
            raise Failure(grpc.StatusCode.UNAVAILABLE, "down")
        if name == "Describe":
            return seal(pb.DescribeReply(protocol=methods.PROTOCOL, bundles=self.bundles))
        if name == "Open":
            self.asked.append(unseal(data, pb.OpenRequest))
            self.asked_at.append(target)
            return seal(self.opens.pop(0) if len(self.opens) > 1 else self.opens[0])
        if name == "Close":
            self.closed.append(unseal(data, pb.CloseRequest).session)
            return seal(pb.CloseReply())
        assert name == "Prepare"
        return self.prepare(data)


def opened(**fields: Any) -> pb.OpenReply:
    given: dict[str, Any] = {"session": SESSION, "rows_port": 9, "rows_ticket": TICKET, "batch_ttl_s": 600} | fields
    return pb.OpenReply(**given)


class ServerAddress(FakeAddress):
    """An address at which a `Server` answers; ``others`` are those that it names."""

    def __init__(self, server: Server, target: str = "127.0.0.1:9") -> None:
        super().__init__()
        self.server, self.target = server, target
        self.elsewhere = lambda target: ServerAddress(server, target)

    def channel(self, keepalive_s: float) -> Channel:
        made = Channel(lambda _: b"")
        start = made.unary_unary

        def by_name(path: str) -> Callable[..., Any]:
            made.handler = lambda data: self.server.answer(path.rpartition("/")[2], data, self.target)
            return start(path)

        for kind in ("unary_unary", "stream_unary"):
            setattr(made, kind, by_name)
        self.channels.append(made)
        return made


class Stream:
    """A stream of rows that does with each exchange what it is told: give an error, or so many bytes."""

    def __init__(self, outcomes: list[Exception | None], size: int) -> None:
        self.outcomes, self.size = outcomes, size
        self.sent: list[list[bytes]] = []
        self.closed = 0

    def exchange(self, requests: Sequence[bytes], sequences: Sequence[int]) -> list[bytes]:
        self.sent.append(list(requests))
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome
        return [bytes(self.size)]

    def end(self) -> None:
        self.closed += 1

    close = end


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
def server(pair: Any) -> Server:
    model = pair.client_model
    return Server(fingerprint_of(model.params, model.seed, model.manifest))


@pytest.fixture
def transport(pair: Any, server: Server, stats: Stats) -> Iterator[RemoteTransport]:
    timeouts = Timeouts(pause_s=0.0, retry_s=5.0)
    address: Any = ServerAddress(server)
    made = RemoteTransport(pair.client_model, address, pair.kernels, stats, timeouts, HALF)
    yield made
    made.stop()


def rows(transport: RemoteTransport) -> tuple[np.ndarray, int, int]:
    """Two rows, their outputs, and the bytes of the reply to them."""
    group = transport._model.manifest.groups[GROUP]
    data = np.ones((2, (group.width * group.input_bits + 7) // 8), np.uint8)
    return data, group.rows, 2 * ((group.rows * group.result_bits + 7) // 8)


@pytest.fixture
def streams(transport: RemoteTransport, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Stream]]:
    """Has the transport's streams give these outcomes, one list for each stream; the streams that it opened."""

    def use(*outcomes: list[Exception | None]) -> list[Stream]:
        left, made = iter(outcomes), []

        def opens(session: str, tried: int) -> Stream:
            made.append(Stream(next(left), rows(transport)[2]))
            return made[-1]

        monkeypatch.setattr(transport, "_open_stream", opens)
        return made

    return use


def evaluate(transport: RemoteTransport) -> np.ndarray:
    data, slots, _ = rows(transport)
    found: np.ndarray = transport.evaluate(SESSION, GROUP, SPANS, data, slots)
    return found


# Rows -----------------------------------------------------------------------------------------------------------------


def test_after_a_broken_stream_the_same_bytes_go_over_a_new_one(
    transport: RemoteTransport, streams: Callable[..., list[Stream]], stats: Stats
) -> None:
    made = streams([None, ServerUnreachable("gone")], [CorruptMessage("bits")], [None])
    assert evaluate(transport).shape[0] == 2
    evaluate(transport)
    assert [stream.closed for stream in made] == [1, 1, 0]
    assert made[0].sent[1] == made[1].sent[0] == made[2].sent[0] != made[0].sent[0]
    assert stats.reconnects == 2


def test_what_the_server_says_ends_the_stream_and_is_not_tried_again(
    transport: RemoteTransport, streams: Callable[..., list[Stream]]
) -> None:
    made = streams([RowReused("row 3")])
    with pytest.raises(RowReused):
        evaluate(transport)
    assert made[0].closed == 1 and transport.stream is None


def test_who_stops_while_rows_go_is_told_that_the_session_was_closed(
    transport: RemoteTransport, streams: Callable[..., list[Stream]]
) -> None:
    made = streams([ServerUnreachable("ended")])
    transport.open()
    transport.stop()
    with pytest.raises(ServerUnreachable, match="session was closed"):
        evaluate(transport)
    assert made[0].sent == [], "nothing goes out after a stop"


def test_a_server_of_a_cluster_that_fails_again_and_again_is_given_up(
    transport: RemoteTransport, server: Server, streams: Callable[..., list[Stream]]
) -> None:
    server.opens = [opened(server="127.0.0.1:10"), opened()]
    transport.open()
    streams(*([ServerUnreachable("gone")] for _ in range(9)))
    with pytest.raises(UnknownSession, match="fresh keys"):
        evaluate(transport)


def test_a_server_without_a_front_is_waited_for(transport: RemoteTransport, streams: Callable[..., list[Stream]]) -> None:
    made = streams(*([ServerUnreachable("gone")] for _ in range(5)), [None])
    assert evaluate(transport).shape[0] == 2 and len(made) == 6


# Batches --------------------------------------------------------------------------------------------------------------


def test_an_upload_that_fails_is_not_repeated_and_its_channel_is_given_up(
    transport: RemoteTransport, server: Server
) -> None:
    tries = itertools.count(1)
    server.prepare = lambda parts: fails(Failure(grpc.StatusCode.UNAVAILABLE, f"try {next(tries)}"))(list(parts))
    channel: Any = transport.offline._channel
    with pytest.raises(ServerUnreachable, match="try 1"):
        transport.prepare(SESSION, [BatchUpload(3, np.zeros(4, np.uint8))], ["body"])
    assert channel.closed and transport.offline._channel is not channel
    assert next(tries) == 2


def test_an_upload_says_what_comes_and_then_sends_it(transport: RemoteTransport, server: Server) -> None:
    came: list[pb.PrepareRequest] = []

    def prepare(parts: Any) -> bytes:
        came.extend(unseal(part, pb.PrepareRequest) for part in parts)
        return seal(pb.PrepareReply())

    server.prepare = prepare
    transport.prepare(SESSION, [BatchUpload(n, np.full(4, n, np.uint8)) for n in (3, 4)], ["body", "head"])
    assert (came[0].header.batches, list(came[0].header.segments)) == (2, ["body", "head"])
    assert [(part.batch.number, part.batch.data) for part in came[1:]] == [(3, b"\3" * 4), (4, b"\4" * 4)]


# Sessions -------------------------------------------------------------------------------------------------------------


def test_a_session_opens_once_the_server_answers(transport: RemoteTransport, server: Server) -> None:
    server.down = 2
    assert transport.open() == SESSION
    assert transport.lane == (9, TICKET) and transport.batch_ttl_s == 600
    assert (server.asked[0].bundle, server.asked[0].protocol) == ("m", methods.PROTOCOL)


def test_without_a_port_for_rows_there_is_no_lane(transport: RemoteTransport, server: Server) -> None:
    server.opens = [opened(rows_port=0, rows_ticket="")]
    transport.open()
    assert transport.lane is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"session": "GET / HTTP/1.1\r\n"}, "distrust"),
        ({"rows_ticket": "EHLO x"}, "distrust"),
        ({"batch_ttl_s": SHORTEST_TTL_S - 1}, "for ever"),
        ({"server": "127.0.0.1:10"}, "elsewhere again"),
    ],
)
def test_a_session_of_another_form_is_refused(
    fields: dict[str, Any], words: str, transport: RemoteTransport, server: Server
) -> None:
    server.opens = [opened(**fields)]
    with pytest.raises(IncompatibleServer, match=words):
        transport.open()


def test_a_session_of_a_cluster_is_opened_where_the_front_says_and_the_next_at_the_front_again(
    transport: RemoteTransport, server: Server
) -> None:
    server.opens = [opened(server="127.0.0.1:10"), opened(), opened(server="127.0.0.1:11"), opened()]
    transport.open()
    assert transport.offline.address.target == "127.0.0.1:10"
    transport.open()
    assert transport.offline.address.target == "127.0.0.1:11"
    assert [target[-2:].strip(":") for target in server.asked_at] == ["9", "10", "9", "11"]


@pytest.mark.parametrize(
    ("bundles", "name", "words"),
    [
        ([], None, r"none of the server's bundles \(nothing\).*veil pull"),
        ([("m", "other", HALF)], None, "none of the server's bundles"),
        ([("m", "mine", HALF)], "n", "no bundle named 'n'; it serves 'm'"),
        ([("m", "mine", "cd" * 32)], None, "another client half of 'm'"),
        ([("m", "other", "cd" * 32)], "m", "another client half of 'm'"),
    ],
)
def test_only_the_other_half_of_ones_own_will_do(
    bundles: list[tuple[str, str, str]], name: str | None, words: str, transport: RemoteTransport, server: Server
) -> None:
    mine = server.bundles[0].fingerprint
    server.bundles = [
        pb.Bundle(name=own, fingerprint=mine if mark == "mine" else mark, digest=digest, header="{}")
        for own, mark, digest in bundles
    ]
    transport._name = name
    with pytest.raises(BundleError, match=words):
        transport.open()
    assert server.asked == []


def test_a_digest_that_is_ones_own_passes(transport: RemoteTransport) -> None:
    transport.check_half(OfferedBundle("m", "", HALF, (), {}))


def test_a_session_ends_with_a_goodbye_that_may_fail(transport: RemoteTransport, server: Server) -> None:
    transport.open()
    server.down = 1
    transport.close(SESSION)
    assert server.closed == []


def test_the_goodbye_names_the_session(
    transport: RemoteTransport, server: Server, streams: Callable[..., list[Stream]]
) -> None:
    made = streams([None])
    transport.open()
    evaluate(transport)
    transport.close(SESSION)
    assert server.closed == [SESSION] and made[0].closed >= 1
