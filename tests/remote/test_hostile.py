"""Hostile input to a server: one error each, nothing allocated before the check, others are served on."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from veil.bundle.fingerprint import fingerprint_of
from veil.errors import BundleError
from veil.network.frames import Frames
from veil.network.tokens import Tokens, digest_of
from veil.params import packed_bytes
from veil.server.hosted import HostedBundle
from veil.server.offer import Offer
from veil.server.store import Limits
from veil.wire import failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal
from waiting import until

Q_GROUP = 0


class Attack:
    """A session opened by hand, its genuine uploads kept, and the parts of requests to bend."""

    def __init__(self, llama: Any, server: Any, client: Any) -> None:
        self.server, self.client = server, client
        model = llama.engine.model
        self.params, self.manifest = model.params, model.manifest
        self.fingerprint = fingerprint_of(model.params, model.seed, model.manifest)
        self.ticket = ""
        self.session = self.open()
        self.width = self.manifest.groups[Q_GROUP].width
        self.row_bytes = packed_bytes(self.width, self.manifest.groups[Q_GROUP].input_bits)

    def open(self) -> str:
        request = pb.OpenRequest(protocol=methods.PROTOCOL, bundle="llama", fingerprint=self.fingerprint)
        reply = unseal(self.client.unary("Open", seal(request)), pb.OpenReply)
        self.ticket = reply.rows_ticket
        return str(reply.session)

    def lane_rows(self, request: bytes, length: int | None = None) -> bytes:
        """The reply on the row lane to one message, which may announce another length."""
        hello = seal(pb.LaneHello(protocol=methods.PROTOCOL, session=self.session, ticket=self.ticket))
        with socket.create_connection(("127.0.0.1", self.server.service.rows_port), 3) as connection:
            frames = Frames(connection, 1 << 20)
            frames.send(hello)
            assert unseal(frames.receive(), pb.EvaluateReply).error == ""
            connection.sendall((len(request) if length is None else length).to_bytes(4, "little") + request)
            reply = frames.receive()
            frames.close()
        assert reply is not None
        return reply

    def header(self, **changes: Any) -> bytes:
        fields: dict[str, Any] = {"session": self.session, "batches": 1, "segments": ["body"]} | changes
        return seal(pb.PrepareRequest(header=pb.PrepareHeader(**fields)))

    def batch(self, number: int = 0, data: bytes | None = None) -> bytes:
        data = bytes(self.params.batch_bytes) if data is None else data
        return seal(pb.PrepareRequest(batch=pb.PrepareBatch(number=number, data=data)))

    def rows(self, **changes: Any) -> bytes:
        fields: dict[str, Any] = {"session": self.session, "sequence": 1, "group": Q_GROUP, "spans": [0, 0, 1]}
        fields["rows"] = bytes(self.row_bytes)
        return seal(pb.EvaluateRequest(**(fields | changes)))

    def prepare(self) -> None:
        self.client.upload([self.header(), self.batch()])


@pytest.fixture
def attack(llama: Any, serve: Any, raw: Any) -> Iterator[Attack]:
    with serve(llama) as server, raw(server.port) as client:
        yield Attack(llama, server, client)


def refused(name: str, call: Callable[[], Any], match: str = "") -> None:
    """The call fails with an error of this name and these words."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    metadata = dict(caught.value.trailing_metadata() or ())
    assert metadata.get(failures.ERROR_KEY) == name, caught.value
    assert match in (caught.value.details() or "")


def test_a_genuine_upload_of_zeros_is_taken(attack: Attack) -> None:
    attack.prepare()
    (reply,) = attack.client.rows([attack.rows()])
    assert unseal(reply, pb.EvaluateReply).sequence == 1


UPLOADS: dict[str, tuple[str, Callable[[Attack], list[bytes]], str]] = {
    "nothing": ("corrupt", lambda a: [], ""),
    "empty bytes": ("corrupt", lambda a: [b""], ""),
    "random bytes": ("corrupt", lambda a: [bytes(range(200))], ""),
    "a cut header": ("corrupt", lambda a: [a.header()[:-7]], ""),
    "no header": ("wire", lambda a: [a.batch()], "expected the header"),
    "two headers": ("wire", lambda a: [a.header(), a.header(), a.batch()], "expected the batch"),
    "a foreign session": ("unknown-session", lambda a: [a.header(session="0" * 32)], "open a new one"),
    "a huge count": ("wire", lambda a: [a.header(batches=1 << 31)], "batches at once"),
    "an unknown segment": ("wire", lambda a: [a.header(segments=["tail"])], "segments"),
    "a segment twice": ("wire", lambda a: [a.header(segments=["body", "body"])], "segments"),
    "no segment": ("wire", lambda a: [a.header(segments=[])], "segments"),
    "fewer batches": ("wire", lambda a: [a.header()], "0 batches came"),
    "more batches": ("wire", lambda a: [a.header(), a.batch(), a.batch(1)], "more batches"),
    "a short batch": ("wire", lambda a: [a.header(), a.batch(data=b"1")], "a batch has 1 bytes"),
    "a long batch": ("wire", lambda a: [a.header(), a.batch(data=bytes(a.params.batch_bytes + 1))], "expected"),
    "a batch out of range": (
        "wire",
        lambda a: [a.header(), a.batch(data=b"\xff" * a.params.batch_bytes)],
        "not below its modulus",
    ),
    "a number twice": ("wire", lambda a: [a.header(batches=2), a.batch(0), a.batch(0)], "do not grow"),
    "numbers that shrink": ("wire", lambda a: [a.header(batches=2), a.batch(5), a.batch(4)], "do not grow"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_a_bad_upload_is_one_error(name: str, attack: Attack) -> None:
    error, parts, words = UPLOADS[name]
    before = attack.server.store.used_bytes
    refused(error, lambda: attack.client.upload(parts(attack)), words)
    store = attack.server.store
    assert store.batch_count == 0
    assert store.used_bytes == before
    test_a_genuine_upload_of_zeros_is_taken(_again(attack))


def _again(attack: Attack) -> Attack:
    attack.session = attack.open()
    return attack


ROWS: dict[str, tuple[str, Callable[[Attack], bytes], str]] = {
    "empty bytes": ("corrupt", lambda a: b"", ""),
    "a flipped bit": ("corrupt", lambda a: a.rows()[:-9] + b"\x01" + a.rows()[-8:], "checksum"),
    "a foreign session": ("unknown-session", lambda a: a.rows(session="f" * 32), ""),
    "an unknown group": ("wire", lambda a: a.rows(group=10_000), "group 10000"),
    "an unknown batch": ("unknown-batch", lambda a: a.rows(spans=[99, 0, 1]), "batch 99"),
    "a batch of the other segment": ("unknown-batch", lambda a: _head_rows(a), "not prepared for the head"),
    "no whole span": ("wire", lambda a: a.rows(spans=[0, 0]), "spans of rows"),
    "rows that no batch has": ("wire", lambda a: a.rows(spans=[0, 8, 1]), "not those of a batch"),
    "rows far beyond": ("wire", lambda a: a.rows(spans=[0, (1 << 64) - 1, 1]), "not those of a batch"),
    "rows without number": ("wire", lambda a: a.rows(spans=[0, 0, 1 << 63]), ""),
    "a span of no rows": ("wire", lambda a: a.rows(spans=[0, 0, 1, 0, 1, 0]), "not those of a batch"),
    "more outputs than there are": ("wire", lambda a: a.rows(slots=1 << 31), "outputs of group 0"),
    "short rows": ("wire", lambda a: a.rows(rows=b"12"), "2 bytes for 1 rows"),
    "long rows": ("wire", lambda a: a.rows(rows=bytes(a.row_bytes + 1)), ""),
    "more spans than rows": ("wire", lambda a: a.rows(spans=[0, 0, 2]), ""),
    "a row twice": (
        "row-reused",
        lambda a: a.rows(spans=[0, 1, 1, 0, 1, 1], rows=bytes(a.row_bytes) + b"\x01" * a.row_bytes),
        "with other bytes",
    ),
    "a used row in a longer span": ("row-reused", lambda a: a.rows(spans=[0, 0, 2], rows=bytes(2 * a.row_bytes)), "used"),
    "other bytes for a used row": ("row-reused", lambda a: a.rows(rows=b"\x01" + bytes(a.row_bytes - 1)), "other bytes"),
}


def _head_rows(a: Attack) -> bytes:
    group = next(i for i, info in enumerate(a.manifest.groups) if info.segment == "head")
    count = packed_bytes(a.manifest.groups[group].width, a.manifest.groups[group].input_bits)
    return a.rows(group=group, rows=bytes(count))


@pytest.mark.parametrize("name", ROWS)
def test_bad_rows_are_one_error(name: str, attack: Attack) -> None:
    attack.prepare()
    first = attack.client.rows([attack.rows()])
    error, part, words = ROWS[name]
    refused(error, lambda: attack.client.rows([part(attack)]), words)
    assert attack.client.rows([attack.rows()]) == first, "the same bytes get the same answer"


@pytest.mark.parametrize("name", ROWS)
def test_bad_rows_are_one_error_on_the_lane(name: str, attack: Attack) -> None:
    attack.prepare()
    first = attack.lane_rows(attack.rows())
    assert unseal(first, pb.EvaluateReply).error == ""
    error, part, words = ROWS[name]
    reply = unseal(attack.lane_rows(part(attack)), pb.EvaluateReply)
    assert (reply.error, reply.rows) == (error, b"")
    assert words in reply.details
    assert attack.lane_rows(attack.rows()) == first, "the same bytes get the same answer"


def test_an_oversized_message_on_the_lane_is_refused_by_its_length(attack: Attack) -> None:
    for length in (attack.server.service.shared.message_bytes + 1, 1 << 31, (1 << 32) - 1):
        reply = unseal(attack.lane_rows(b"", length=length), pb.EvaluateReply)
        assert reply.error == "corrupt" and f"{length} bytes" in reply.details


def test_an_oversized_message_is_refused_by_its_length(attack: Attack) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        attack.client.rows([bytes(16 << 20)])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    attack.prepare()


def test_a_batch_does_not_come_twice(attack: Attack) -> None:
    attack.prepare()
    refused("wire", attack.prepare, "batch numbers do not grow")


def test_an_unknown_call_and_a_wrong_fingerprint(attack: Attack) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        attack.client.unary("Nothing", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    for fields, error in (
        ({"fingerprint": "0" * 64}, "bundle"),
        ({"bundle": "other"}, "bundle"),
        ({"protocol": 99}, "incompatible"),
    ):
        request: dict[str, Any] = {
            "protocol": methods.PROTOCOL,
            "bundle": "llama",
            "fingerprint": attack.fingerprint,
        } | fields
        refused(error, partial(attack.client.unary, "Open", seal(pb.OpenRequest(**request))))


def test_files_that_are_not_offered_do_not_leave(llama: Any, serve: Any, raw: Any) -> None:
    with serve(llama, offer=True) as server, raw(server.port) as client:
        fetch = client.channel.unary_stream(f"/{methods.SERVICE}/Fetch")
        for path in ("../server/weights.safetensors", "/etc/passwd", "", "tokenizer", "config.json/../config.json"):
            request = seal(pb.FetchRequest(bundle="llama", path=path))
            refused("wire", lambda: list(fetch(request, timeout=5)))  # noqa: B023  called at once
        whole = b"".join(
            unseal(piece, pb.FetchReply).data
            for piece in fetch(seal(pb.FetchRequest(bundle="llama", path="config.json")), timeout=5)
        )
        assert whole == (llama.path / "client" / "config.json").read_bytes()


def test_a_token_does_not_open_another_tokens_session(llama: Any, serve: Any, raw: Any) -> None:
    with serve(llama, tokens=Tokens([digest_of("one"), digest_of("two")])) as server, raw(server.port) as client:
        model = llama.engine.model
        fingerprint = fingerprint_of(model.params, model.seed, model.manifest)
        request = seal(pb.OpenRequest(protocol=methods.PROTOCOL, bundle="llama", fingerprint=fingerprint))
        one, two = ((("authorization", f"Bearer {name}"),) for name in ("one", "two"))
        session = unseal(client.unary("Open", request, metadata=one), pb.OpenReply).session
        close = seal(pb.CloseRequest(session=session))
        refused("unknown-session", lambda: client.unary("Close", close, metadata=two))
        refused("access", lambda: client.unary("Close", close))
        refused("access", lambda: client.unary("Close", close, metadata=(("authorization", "Bearer " + "x" * 5000),)))
        client.unary("Close", close, metadata=one)


def test_a_flood_of_sessions_stops_at_the_limit_and_others_go_on(llama: Any, serve: Any, raw: Any, generated: Any) -> None:
    with serve(llama, limits=Limits(max_sessions=8)) as server, raw(server.port) as client:
        remote = llama.connect(server.port)
        attack = Attack(llama, server, client)
        outcomes = []

        def flood() -> None:
            for _ in range(10):
                try:
                    outcomes.append(attack.open())
                except grpc.RpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017
                    outcomes.append("")

        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        tokens = generated(remote)
        for thread in threads:
            thread.join()
        assert tokens == generated(llama.local)
        assert sum(1 for outcome in outcomes if outcome) == 6
        assert server.store.count == 8
        remote.close()


def test_a_silent_stream_is_ended(llama: Any, serve: Any, raw: Any) -> None:
    with serve(llama, silent_s=0.3, sweep_s=0.1) as server, raw(server.port) as client:
        release = threading.Event()

        def silence() -> Iterator[bytes]:
            release.wait(10)
            yield b""

        with pytest.raises(grpc.RpcError) as caught:
            list(client.channel.stream_stream(f"/{methods.SERVICE}/Evaluate")(silence(), timeout=10))
        release.set()
        assert caught.value.code() is grpc.StatusCode.CANCELLED


def test_files_that_nobody_reads_are_ended_and_leave_room_for_others(
    llama: Any, serve: Any, raw: Any, tmp_path: Path
) -> None:
    """More streams than the server has threads, each stuck in a file that is too large to be sent unread."""
    shutil.copytree(llama.path / "client", tmp_path / "client")
    with (tmp_path / "client" / "large").open("wb") as file:
        file.truncate(16 << 20)
    with serve(llama, limits=Limits(max_sessions=8)) as server, raw(server.port) as client:
        server.service.shared.bundles["llama"] = HostedBundle(llama.engine, "0" * 64, Offer(tmp_path / "client"))
        fetch = client.channel.unary_stream(f"/{methods.SERVICE}/Fetch")
        calls, refused = [], []
        for _ in range(60):  # one after the other, as they go on being sent
            calls.append(fetch(seal(pb.FetchRequest(bundle="llama", path="large")), timeout=20))
            try:
                next(calls[-1])
            except grpc.RpcError as error:
                refused.append(error.code())
        assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 36
        assert server.service.calls.count == 24, "of 36: another address has room"
        server.service.calls.cancel_silent(0.0)  # as the server does when `silent_s` are over
        client.unary("Describe", seal(pb.DescribeRequest(protocol=methods.PROTOCOL)))
        until(lambda: server.service.calls.count == 0)


def test_a_server_half_is_not_offered(llama: Any) -> None:
    with pytest.raises(BundleError, match="is the server half of a bundle, expected the client half"):
        Offer(llama.path / "server")
