"""Messages that are received, taken apart and answered together: what they say, what is left to be read by itself."""

from __future__ import annotations

import socket
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from veil.server import arrivals
from veil.server.arrivals import Arrivals
from veil.server.row_io import (
    BATCH,
    COUNT,
    FIRST,
    GROUP,
    OTHER,
    PART,
    RECEIVED,
    SEQUENCE,
    SLOTS,
    STATE,
    WHOLE,
)
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import CHECK_TAG, seal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each message is read by itself")
NAME = "0123456789abcdef" * 2
ROOM = 4096


class Wires:
    """Connections with a place each, and the clients' ends of them."""

    def __init__(self, count: int, together: bool) -> None:
        self.arrivals = Arrivals(count, ROOM, together=together)
        pairs = [socket.socketpair() for _ in range(count)]
        self.clients = [own for own, _ in pairs]
        self.servers = [own for _, own in pairs]
        self.places = [self.place(own) for own in self.servers]

    def place(self, connection: socket.socket) -> int:
        found = self.arrivals.add(connection.fileno(), NAME)
        assert found is not None
        return found

    def receive(self, *which: int) -> list[list[int]]:
        return self.arrivals.receive([self.places[own] for own in which])

    def close(self) -> None:
        for own in (*self.clients, *self.servers):
            own.close()


@pytest.fixture(params=[False, True], ids=["one thread", "several threads"])
def wires(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wires]:
    monkeypatch.setattr(arrivals, "_SOME", 2)
    made = Wires(3, request.param)
    yield made
    made.close()


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def sealed(body: bytes) -> bytes:
    return body + bytes((CHECK_TAG,)) + zlib.crc32(body).to_bytes(4, "little")


def request(**other: Any) -> pb.EvaluateRequest:
    usual: dict[str, Any] = {"session": NAME, "sequence": 7, "group": 3, "spans": [2, 5, 1], "rows": b"row"}
    return pb.EvaluateRequest(**usual | other)


def test_usual_messages_are_taken_apart_together(wires: Wires) -> None:
    asked = [
        request(),
        request(sequence=1 << 40, group=0, spans=[300, 0, 2], rows=b"\x00\x7d" * 700, slots=129),
        request(spans=[1 << 62, 63, 4], rows=bytes(4)),
    ]
    for client, own in zip(wires.clients, asked, strict=True):
        client.sendall(framed(seal(own)))
    for place, own, found in zip(wires.places, asked, wires.receive(0, 1, 2), strict=True):
        assert found[STATE] == WHOLE and found[RECEIVED] == len(seal(own))
        assert (found[SEQUENCE], found[GROUP], found[SLOTS]) == (own.sequence, own.group, own.slots)
        assert [found[BATCH], found[FIRST], found[COUNT]] == list(own.spans)
        assert wires.arrivals.rows(place, found).tobytes() == own.rows
        assert len(wires.arrivals.rows(place, found)) == own.spans[2]
        assert bytes(wires.arrivals.take(place, found)) == framed(seal(own))


@pytest.mark.parametrize(
    "data",
    [
        framed(seal(request(release=[1]))),
        framed(seal(request(spans=[1, 2, 3, 4, 5, 6]))),
        framed(seal(request(spans=[]))),
        framed(seal(request(spans=[1, 2]))),
        framed(seal(request(spans=[1, 1 << 63, 1]))),
        framed(seal(request(session=NAME[::-1]))),
        framed(seal(request(session=NAME[:-1]))),
        framed(seal(request(sequence=0))),
        framed(seal(request(rows=b""))),
        framed(seal(request())[:-1] + b"!"),
        framed(seal(request())[:-5]),
        framed(sealed(request().SerializeToString() * 2)),
        framed(sealed(request().SerializeToString() + b"\x40\x01")),
        framed(sealed(request().SerializeToString()[:-1])),
        framed(sealed(request().SerializeToString() + b"\x38" + b"\x80" * 10)),
        framed(seal(request(group=1)))[:4] + seal(request(group=1)) + b"and more",
        (ROOM - 3).to_bytes(4, "little") + b"too long for its place",
        framed(b""),
    ],
)
def test_what_is_unusual_is_left_whole(wires: Wires, data: bytes) -> None:
    wires.clients[0].sendall(data)
    wires.clients[1].sendall(framed(seal(request())))
    found, usual = wires.receive(0, 1)
    assert found[STATE] == OTHER and usual[STATE] == WHOLE
    assert bytes(wires.arrivals.take(wires.places[0], found)) == data
    wires.clients[0].sendall(framed(seal(request())))
    assert wires.receive(0)[0][STATE] == WHOLE, "what was taken is forgotten"


def test_a_message_comes_in_parts(wires: Wires) -> None:
    data = framed(seal(request(rows=bytes(range(200)))))
    for byte in data[:-1]:
        wires.clients[0].sendall(bytes([byte]))
        assert wires.receive(0)[0][STATE] == PART
    wires.clients[0].sendall(data[-1:])
    assert wires.receive(0)[0][STATE] == WHOLE


def test_an_end_and_an_error_are_left_to_the_connection(wires: Wires) -> None:
    wires.clients[0].close()
    assert [own[STATE] for own in wires.receive(0, 1)] == [OTHER, OTHER], "one ended, on the other nothing came"


def test_no_bytes_are_understood_in_another_way_than_by_protobuf(wires: Wires) -> None:
    """Spoilt bodies with a right checksum: what is taken apart means what protobuf reads."""
    draw = np.random.default_rng(5)
    usual = 0
    for _ in range(4000):
        body = bytearray(request(rows=draw.bytes(9), slots=4).SerializeToString())
        for at in draw.integers(0, len(body), draw.integers(1, 3)):
            body[at] = int(draw.choice([draw.integers(256), body[at] ^ 1 << draw.integers(8)]))
        data = bytes(body[: len(body) - int(draw.integers(2))])
        wires.clients[0].sendall(framed(sealed(data)))
        (found,) = wires.receive(0)
        rows = wires.arrivals.rows(wires.places[0], found).tobytes() if found[STATE] == WHOLE else b""
        wires.arrivals.take(wires.places[0], found)
        if found[STATE] != WHOLE:
            continue
        usual += 1
        own = pb.EvaluateRequest()
        try:
            own.ParseFromString(data)
        except DecodeError:
            pytest.fail(f"protobuf does not read {data!r}")
        assert own.session == NAME and own.rows == rows and not own.release
        assert (own.sequence, own.group, own.slots) == (found[SEQUENCE], found[GROUP], found[SLOTS])
        assert list(own.spans) == [found[BATCH], found[FIRST], found[COUNT]]
    assert usual > 100


def test_replies_have_the_very_bytes_of_sealed_ones(wires: Wires) -> None:
    results = np.random.default_rng(2).integers(0, 256, (6, 150), dtype=np.uint8)
    rows = {0: (4, 1), 1: (0, 3), 2: (5, 1)}
    for number, (_, count) in rows.items():
        own = request(sequence=10 ** (4 * number) + 1, spans=[0, 0, count], rows=bytes(count))
        wires.clients[number].sendall(framed(seal(own)))
    wires.receive(0, 1, 2)
    turns = [(wires.places[number], 150 * first, 150 * (first + count)) for number, (first, count) in rows.items()]
    sent = wires.arrivals.reply(results.reshape(-1), turns)
    for number, (first, count) in rows.items():
        own_reply = pb.EvaluateReply(sequence=10 ** (4 * number) + 1, rows=results[first : first + count].tobytes())
        assert wires.clients[number].recv(ROOM) == framed(seal(own_reply))
        assert sent[number] == len(framed(seal(own_reply)))


def test_what_a_connection_does_not_take_is_told(wires: Wires) -> None:
    wires.servers[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    results = np.zeros(1 << 20, np.uint8)
    for own in wires.clients[:2]:
        own.sendall(framed(seal(request())))
    wires.receive(0, 1)
    wires.clients[1].close()
    full, gone = wires.arrivals.reply(results, [(place, 0, 1 << 20) for place in wires.places[:2]])
    assert -(1 << 20) < full < -1 and gone == -1


def test_places_are_few_and_come_back() -> None:
    few = Arrivals(1, ROOM)
    place = few.add(0, NAME)
    assert place is not None and few.add(0, NAME) is None
    few.free(place)
    assert few.add(0, "a name of another form") is None and few.add(0, NAME) == place
