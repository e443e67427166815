"""Where a server is and how it is reached; single calls, what their failures stand for, and how often they are tried."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.channels import Failure, FakeAddress, connection, fails
from veil.client.connection import Address, offered_bundle
from veil.errors import BundleError, CorruptMessage, IncompatibleServer, RowReused, ServerUnreachable
from veil.flag import Flag
from veil.network.timeouts import Retries
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal

DIGEST = "ab" * 32


def described(**fields: Any) -> bytes:
    given: dict[str, Any] = {"protocol": methods.PROTOCOL, "version": "1.0"} | fields
    return seal(pb.DescribeReply(**given))


# Addresses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("127.0.0.1", f"127.0.0.1:{methods.DEFAULT_PORT}"),
        ("localhost:1", "localhost:1"),
        ("[::1]", f"[::1]:{methods.DEFAULT_PORT}"),
        ("[::1]:65535", "[::1]:65535"),
    ],
)
def test_an_address_has_a_port(given: str, target: str) -> None:
    assert Address(target=given).target == target


@pytest.mark.parametrize("given", ["", ":1", "a:", "a:0", "a:65536", "a:x", "a/b:1", "::1", "::1:1", "http://a:1"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        Address(target=given, allow_no_tls=True)


def test_another_machine_needs_tls_or_consent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--tls"):
        Address(target="192.0.2.1:1")
    assert not Address(target="192.0.2.1:1", allow_no_tls=True).is_here
    assert Address(target="192.0.2.1:1", tls=True).target == "192.0.2.1:1"
    assert Address(target="127.0.0.1:1").is_here


def test_another_server_is_reached_as_the_first_one_was() -> None:
    plain, protected = Address(target="127.0.0.1:1", token="t"), Address(target="192.0.2.1:1", tls=True)
    assert plain.elsewhere("127.0.0.1:2") == Address(target="127.0.0.1:2", token="t")
    assert protected.elsewhere("192.0.2.9:2").tls is True
    with pytest.raises(ValueError, match="no TLS"):
        plain.elsewhere("192.0.2.1:1")


def test_a_token_goes_with_calls_and_into_no_repr() -> None:
    address = Address(target="127.0.0.1:1", token="secret")
    assert address.metadata == (("authorization", "Bearer secret"),)
    assert Address(target="127.0.0.1:1").metadata == ()
    assert "secret" not in repr(address)
    for wrong in ("line\n", "ö"):
        with pytest.raises(ValueError, match="printable ASCII"):
            Address(target="127.0.0.1:1", token=wrong)


# Calls ----------------------------------------------------------------------------------------------------------------


def test_a_call_has_a_path_a_deadline_and_the_token() -> None:
    made, channels = connection(lambda data: seal(pb.CloseReply()) if unseal(data, pb.CloseRequest).session == "s" else b"")
    made.unary("Close", pb.CloseRequest(session="s"), pb.CloseReply, 3.0)
    assert channels[0].calls == [(f"/{methods.SERVICE}/Close", 3.0, FakeAddress.metadata)]


def test_an_upload_sends_what_it_is_given_in_order() -> None:
    came: list[bytes] = []

    def handler(parts: Iterable[bytes]) -> bytes:
        came.extend(parts)
        return seal(pb.PrepareReply())

    made, _ = connection(handler)
    made.upload("Prepare", [b"a", b"b"], pb.PrepareReply, 1.0)
    assert came == [b"a", b"b"]


def test_a_download_gives_what_came_before_it_broke() -> None:
    def handler(_: bytes) -> Iterator[bytes]:
        yield seal(pb.FetchReply(data=b"first"))
        raise Failure(grpc.StatusCode.UNAVAILABLE, "gone")

    made, _ = connection(handler)
    parts = made.download("Fetch", pb.FetchRequest(), pb.FetchReply, 1.0)
    assert next(parts).data == b"first"
    with pytest.raises(ServerUnreachable, match=r"unavailable: gone.*veil serve"):
        next(parts)


def test_a_failure_with_a_name_is_that_error_and_others_are_worth_a_retry() -> None:
    for failure, error, words in (
        (Failure(grpc.StatusCode.FAILED_PRECONDITION, "row 3", "row-reused"), RowReused, "the server says: row 3"),
        (Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "late"), ServerUnreachable, "127.0.0.1:9.*deadline exceeded: late"),
        (Failure(grpc.StatusCode.INTERNAL, "odd", "unheard-of"), ServerUnreachable, "internal: odd"),
    ):
        made, _ = connection(fails(failure))
        with pytest.raises(error, match=words):
            made.unary("Close", pb.CloseRequest(), pb.CloseReply, 1.0)
        with pytest.raises(error, match=words):
            made.both_ways("Evaluate", iter(()))


def test_a_reply_that_was_changed_on_the_way_is_noticed() -> None:
    sealed = bytearray(seal(pb.CloseReply()) or b"\0")
    sealed[-1] ^= 1
    made, _ = connection(lambda _: bytes(sealed))
    with pytest.raises(CorruptMessage):
        made.unary("Close", pb.CloseRequest(), pb.CloseReply, 1.0)


# What is served -------------------------------------------------------------------------------------------------------


def test_what_a_server_describes() -> None:
    bundle = pb.Bundle(name="m\x1b[2J", fingerprint="f", digest=DIGEST, header=json.dumps({"a": 1}))
    bundle.files.add(path="x/y", size=3, sha256="d")
    made, channels = connection(lambda _: described(bundles=[bundle]))
    (found,) = made.describe()
    assert (found.name, found.digest, found.header, found.files) == ("m [2J", DIGEST, {"a": 1}, (("x/y", 3, "d"),))
    assert channels[0].calls[0][1] == 7.0, "the first answer has the time for connecting"


def test_a_server_of_another_protocol_is_named_with_its_version() -> None:
    made, _ = connection(lambda _: described(protocol=1, version="0.1\n"))
    with pytest.raises(IncompatibleServer, match=r"protocol 1 \(veil 0.1 \).*update the older"):
        made.describe()


@pytest.mark.parametrize(
    ("code", "details", "words"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, "unknown service", "is not a veil server"),
        (grpc.StatusCode.UNAVAILABLE, "Ssl handshake failed: WRONG_VERSION_NUMBER", "answers without TLS"),
    ],
)
def test_something_else_that_answers_is_not_tried_again(code: grpc.StatusCode, details: str, words: str) -> None:
    made, _ = connection(fails(Failure(code, details)))
    with pytest.raises(IncompatibleServer, match=words):
        made.describe()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"header": "{"}, "not JSON"),
        ({"header": "[" * 100_000}, "not JSON"),
        ({"header": "[]"}, "not a header"),
        ({"digest": "AB" * 32}, "not a digest"),
        ({"digest": ""}, "not a digest"),
    ],
)
def test_a_description_of_another_form_is_refused(fields: dict[str, str], words: str) -> None:
    given: dict[str, Any] = {"name": "m", "header": "{}", "digest": DIGEST} | fields
    with pytest.raises(BundleError, match=words):
        offered_bundle(pb.Bundle(**given))


# Again ----------------------------------------------------------------------------------------------------------------


class Clock:
    """Time passes by a second at each look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def tries(within_s: float, stop: Flag | None = None) -> Retries:
    return Retries(within_s, 0.0, stop, Clock())


def test_tries_go_over_new_channels_until_one_gets_through() -> None:
    lost = fails(Failure(grpc.StatusCode.UNAVAILABLE, "down"))
    made, channels = connection(lost, lambda _: b"\xff", lambda _: seal(pb.CloseReply()))
    made.retrying(lambda: made.unary("Close", pb.CloseRequest(), pb.CloseReply, 1.0), tries(100.0))
    assert [len(channel.calls) for channel in channels] == [1, 1, 1]
    assert [channel.closed for channel in channels] == [True, True, False]


def test_the_last_failure_is_the_one_that_is_told() -> None:
    made, channels = connection(fails(Failure(grpc.StatusCode.UNAVAILABLE, "down")))
    with pytest.raises(ServerUnreachable, match="down"):
        made.retrying(made.describe, tries(3.0))
    assert 2 <= len(channels) <= 4


def test_what_a_server_refuses_is_not_asked_again() -> None:
    made, channels = connection(fails(Failure(grpc.StatusCode.FAILED_PRECONDITION, "row 3", "row-reused")))
    with pytest.raises(RowReused):
        made.retrying(made.describe, tries(100.0))
    assert len(channels) == 1


def test_who_stops_is_not_kept_by_tries() -> None:
    stop = Flag()
    stop.set()
    made, channels = connection(fails(Failure(grpc.StatusCode.UNAVAILABLE, "down")))
    with pytest.raises(ServerUnreachable):
        made.retrying(made.describe, tries(1e9, stop))
    assert len(channels) == 1


def test_a_closed_connection_stays_closed() -> None:
    made, channels = connection(lambda _: seal(pb.CloseReply()))
    made.close()
    made.renew()
    assert [channel.closed for channel in channels] == [True]
    with pytest.raises(ServerUnreachable, match="closed channel"):
        made.unary("Close", pb.CloseRequest(), pb.CloseReply, 1.0)
