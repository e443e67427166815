"""Fronts by themselves: what they hand to the serving loop, and a reply that a connection does not take at once."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from veil.network.frames import LENGTH_BYTES
from veil.server.arrivals import Arrivals
from veil.server.batch_table import BatchTable, find_batch
from veil.server.front_io import ARRIVED, FRONT, LOOP, REPLY, UNSENT, await_sent, give, hand_of, hand_out
from veil.server.fronts import Fronts
from veil.server.row_io import AVAILABLE, OTHER, STATE, WHOLE
from veil.server.spending import SpentRows, spend
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal
from veil.wire.messages import Span

NAME = "0123456789abcdef" * 2


class Door:
    """A front with one connection, of a client that reads little, and the bell that it rings for the loop."""

    def __init__(self) -> None:
        self.arrivals = Arrivals(3, 1 << 16)
        self.bell, ring = socket.socketpair()
        self.ring = ring
        self.fronts = Fronts(self.arrivals, ring)
        self.client, self.server = socket.socketpair()
        self.client.settimeout(30.0)
        self.bell.settimeout(30.0)
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        self.server.setblocking(False)
        place = self.arrivals.add(self.server.fileno(), NAME, 5)
        assert place is not None
        self.place = place
        self.fronts.add(place, self.server.fileno())
        self.fronts.start()

    def send(self, sequence: int = 1) -> None:
        data = seal(pb.EvaluateRequest(session=NAME, sequence=sequence, spans=[0, 0, 1], rows=b"12345"))
        self.client.sendall(len(data).to_bytes(4, "little") + data)

    def hand(self) -> int:
        return int(hand_of(self.arrivals.hands, self.place))

    def hear(self) -> None:
        """Wait until the loop is rung for."""
        assert self.bell.recv(100)

    def answer(self, results: np.ndarray) -> int:
        """Have a round's results sent; how many replies did not go as a whole."""
        turns = np.array([[self.place, 0, results.size, 0]], np.int64)
        hand_out(self.arrivals.table, self.arrivals.hands, turns, results)
        return int(await_sent(self.arrivals.hands, turns, np.zeros(1, np.int64)))

    def close(self) -> None:
        self.fronts.stop()
        for one in (self.client, self.server, self.bell, self.ring):
            one.close()


@pytest.fixture
def door() -> Iterator[Door]:
    if not AVAILABLE:
        pytest.skip("a GPU's server runs on Linux")
    own = Door()
    yield own
    own.close()


def received(door: Door) -> bytes:
    data = b""
    while len(data) < LENGTH_BYTES or len(data) < LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little"):
        data += door.client.recv(1 << 20)
    return data[LENGTH_BYTES:]


def test_a_message_is_handed_over_and_its_reply_sent(door: Door) -> None:
    door.fronts.give(door.place)
    for sequence in (1, 2, 3):
        door.send(sequence)
        door.hear()
        assert door.hand() == ARRIVED and door.arrivals.table[door.place, STATE] == WHOLE
        results = np.arange(sequence, sequence + 40, dtype=np.uint8)
        assert door.answer(results) == 0
        reply = unseal(received(door), pb.EvaluateReply)
        assert (reply.sequence, reply.rows) == (sequence, results.tobytes())


def test_what_is_not_its_fronts_is_not_received(door: Door) -> None:
    door.send()
    assert door.hand() == LOOP
    assert not select.select([door.bell], [], [], 0)[0]
    door.fronts.give(door.place)
    door.hear()
    assert door.hand() == ARRIVED


def test_an_end_is_handed_over(door: Door) -> None:
    door.fronts.give(door.place)
    door.client.shutdown(socket.SHUT_WR)
    door.hear()
    assert door.hand() == ARRIVED and door.arrivals.table[door.place, STATE] == OTHER


def test_a_reply_that_is_not_taken_at_once_is_left_to_the_loop(door: Door) -> None:
    door.fronts.give(door.place)
    door.send(7)
    door.hear()
    results = np.arange(1 << 20, dtype=np.uint8)
    assert door.answer(results) == 1 and door.hand() == UNSENT
    sequence, rows, sent = door.arrivals.unsent(door.place)
    assert (sequence, rows) == (7, results.tobytes()) and 0 < sent < 1 << 20
    reply = seal(pb.EvaluateReply(sequence=7, rows=rows))
    whole = len(reply).to_bytes(4, "little") + reply
    assert door.client.recv(sent, socket.MSG_WAITALL) == whole[:sent]


def test_hands_are_one_words() -> None:
    hands = np.zeros(4, np.int64)
    give(hands, 2, REPLY)
    assert hands.tolist() == [0, 0, REPLY, 0] and hand_of(hands, 2) == REPLY
    assert len({LOOP, FRONT, ARRIVED, REPLY, UNSENT}) == 5


# Rows and sessions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [spend, spend.py_func], ids=["compiled", "as it is written"])
def test_rows_are_spent_once(rule: object) -> None:
    """As a dictionary of spans says, for some thousand spans at random."""
    assert callable(rule)
    draw = np.random.default_rng(5)
    for _ in range(60):
        counts, digests, known, upto = (
            np.zeros(17, np.int16),
            np.zeros(16, np.uint64),
            dict[int, tuple[int, int | None]](),
            0,
        )
        for _ in range(60):
            first = int(draw.integers(16))
            count, digest, again = int(draw.integers(1, 17 - first)), int(draw.integers(2)), bool(draw.integers(2))
            if first >= upto:
                upto, known[first], allowed = first + count, (count, digest if again else None), True
            else:
                allowed = again and known.get(first) == (count, digest)
            assert rule(counts, digests, first, count, np.uint64(digest), again) == allowed


def test_a_table_knows_each_sessions_batches() -> None:
    table = BatchTable(lambda values: int(values.ctypes.data))
    segments, shares = {"body": 3, "head": 2}, {"head": np.zeros((4, 2), np.uint32)}
    sessions = [table.open() for _ in range(100)]
    places = {}
    for number in range(3):
        for session in sessions:
            places[session, number] = table.put(session, number, shares, SpentRows(2, 4), segments, 1.0)

    def found(session: int, number: int) -> int:
        return int(find_batch(table.batches, table.heads, table.names, session, number))

    assert all(found(*key) == place for key, place in places.items())
    assert found(sessions[0], 3) == -1
    table.drop(sessions[0], places[sessions[0], 1], shares)
    assert [found(sessions[0], number) for number in range(3)] == [places[sessions[0], 0], -1, places[sessions[0], 2]]
    for number in (0, 2):
        table.drop(sessions[0], places[sessions[0], number], shares)
    table.close(sessions[0])
    new = table.open()
    place = table.put(new, 0, shares, SpentRows(2, 4), segments, 1.0)
    assert new != sessions[0] and found(new, 0) == place and found(sessions[0], 0) == -1
    assert all(found(session, 2) == places[session, 2] for session in sessions[1:])


def test_spent_rows_without_a_digest_come_once() -> None:
    spent = SpentRows(1, 8)
    spent.claim(0, Span(0, 2, 3), None)
    for digest in (None, 0, 7):
        with pytest.raises(Exception, match="used before"):
            spent.claim(0, Span(0, 2, 3), digest)
    spent.claim(0, Span(0, 5, 3), 7)
    spent.claim(0, Span(0, 5, 3), 7)
