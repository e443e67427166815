"""Messages on a socket that is never waited for: pieces, several at once, limits, and what the other side does not take."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from veil.errors import CorruptMessage
from veil.network.ready_frames import ReadyFrames

LIMIT = 1 << 20


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


@pytest.fixture
def ends() -> Iterator[tuple[ReadyFrames, socket.socket]]:
    near, far = socket.socketpair()
    frames = ReadyFrames(near, LIMIT)
    far.settimeout(10)
    yield frames, far
    frames.close()
    far.close()


def test_a_message_comes_when_all_of_it_is_there(ends: tuple[ReadyFrames, socket.socket]) -> None:
    frames, far = ends
    for byte in framed(b"rows"):
        assert frames.receive() is None
        far.sendall(bytes([byte]))
    assert frames.receive() == b"rows"
    assert not frames.held and frames.receive() is None


def test_of_several_messages_the_rest_is_held(ends: tuple[ReadyFrames, socket.socket]) -> None:
    frames, far = ends
    far.sendall(framed(b"one") + framed(b"") + framed(b"three")[:5])
    assert frames.receive() == b"one" and frames.held
    assert frames.receive() == b""
    assert frames.receive() is None and frames.held
    far.sendall(b"hree")
    assert frames.receive() == b"three" and not frames.held


def test_what_was_read_elsewhere_comes_first(ends: tuple[ReadyFrames, socket.socket]) -> None:
    frames, far = ends
    frames.put_back(framed(b"first")[:7])
    far.sendall(b"st")
    assert frames.receive() == b"first"


@pytest.mark.parametrize("rest", [b"", b"more than the length"])
def test_a_length_over_the_limit_is_refused_at_once(ends: tuple[ReadyFrames, socket.socket], rest: bytes) -> None:
    frames, far = ends
    far.sendall((LIMIT + 1).to_bytes(4, "little") + rest)
    with pytest.raises(CorruptMessage, match=f"at most {LIMIT} are allowed"):
        frames.receive()


def test_an_end_between_two_messages_is_no_break(ends: tuple[ReadyFrames, socket.socket]) -> None:
    frames, far = ends
    far.sendall(framed(b"rows"))
    far.shutdown(socket.SHUT_WR)
    assert frames.receive() == b"rows"
    with pytest.raises(EOFError):
        frames.receive()


def test_an_end_within_a_message_is_one(ends: tuple[ReadyFrames, socket.socket]) -> None:
    frames, far = ends
    far.sendall(framed(b"rows")[:6])
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError, match="after 6 bytes of a message"):
        frames.receive()


@pytest.mark.parametrize("elsewhere", [0, 3, 100])
def test_what_the_other_side_does_not_take_is_kept_and_goes_in_order(
    ends: tuple[ReadyFrames, socket.socket], elsewhere: int
) -> None:
    """Of the first message, ``elsewhere`` bytes were sent by somebody else, as the serving loop does."""
    frames, far = ends
    large, small = bytes(range(256)) * 16_000, b"small"
    whole = framed(large) + framed(small)
    assert not frames.send_rest(large, elsewhere)
    assert frames.unsent > 0 and not frames.send(small)
    came = bytearray(whole[:elsewhere])
    while len(came) < len(whole):
        came += far.recv(1 << 20)
        frames.flush()
    assert bytes(came) == whole and frames.unsent == 0 and frames.flush()
    assert frames.send(small)
    assert far.recv(100) == framed(small)
