"""A network and a server that fail at every point: the answer is the undisturbed one, or an error says what happened.

After each fault the client's record shows that no row of a batch was used twice for a layer group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from remote.proxy import DATA, Cut, Direction, Proxy
from veil.client.session import OfflineRows
from veil.errors import ServerUnreachable, VeilError
from veil.network.timeouts import Timeouts
from waiting import until

TIMEOUTS = Timeouts(connect_s=3.0, reply_s=0.6, prepare_s=2.0, retry_s=8.0, pause_s=0.01, keepalive_s=5.0)
TOKENS = 3
DIRECTIONS: tuple[Direction, Direction] = ("up", "down")


class Record:
    """Every (batch, row, group) that a client sent bytes for; adding one twice is the failure that must not happen."""

    def __init__(self, hybrid: Any) -> None:
        self.seen: set[tuple[int, int, int]] = set()
        transport = hybrid.sides.remote.transport
        original = transport.evaluate

        def evaluate(session: str, group: int, spans: Any, data: Any, slots: int) -> Any:
            for span in spans:
                for row in range(span.first, span.first + span.count):
                    assert (span.batch, row, group) not in self.seen, f"row {row} of {span} twice for group {group}"
                    self.seen.add((span.batch, row, group))
            return original(session, group, spans, data, slots)

        transport.evaluate = evaluate


@pytest.fixture(scope="module")
def undisturbed(bundle: Any) -> list[int]:
    return list(map(int, _tokens(bundle("llama").local)))


def _tokens(hybrid: Any, on_token: Callable[[int], None] | None = None) -> list[int]:
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Count(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if on_token is not None:
                on_token(ids.shape[1] - 6)
            return torch.zeros(len(ids), dtype=torch.bool)

    prompt = torch.arange(3, 9).unsqueeze(0)
    output = hybrid.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        pad_token_id=2,
        max_new_tokens=TOKENS,
        stopping_criteria=StoppingCriteriaList([Count()]),
    )
    return [int(token) for token in output[0, 6:]]


def generate_through(llama: Any, proxy: Proxy) -> tuple[list[int] | VeilError, Any]:
    """Connect and generate through a proxy: the tokens, or the error that was raised."""
    try:
        remote = llama.connect(proxy.port, timeouts=TIMEOUTS, offline_rows=OfflineRows(tokens=2, prompt_rows=0))
    except VeilError as error:
        return error, None
    Record(remote)
    try:
        return _tokens(remote), remote.stats.copy()
    except VeilError as error:
        return error, remote.stats.copy()
    finally:
        proxy.reset()
        remote.close()


@pytest.fixture
def line(llama: Any, serve: Any, proxy_to: Callable[[int], Proxy]) -> Iterator[Proxy]:
    """A proxy to a server of the tiny Llama."""
    with serve(llama, rows_port=None) as server:
        yield proxy_to(server.port)


def at(direction: Direction, index: int, harm: Callable[[bytes], bytes]) -> Callable[[Direction, int, bytes], bytes]:
    """Harm one DATA frame of one direction."""

    def apply(way: Direction, count: int, frame: bytes) -> bytes:
        return harm(frame) if (way, count) == (direction, index) else frame

    return apply


def cut(frame: bytes) -> bytes:
    raise Cut


def delayed(line: Proxy) -> Callable[[bytes], bytes]:
    """Send a frame when the client has given it up and connected anew."""

    def harm(frame: bytes) -> bytes:
        line.until_another_connection()
        return frame

    return harm


def flip(position: int) -> Callable[[bytes], bytes]:
    """Flip a bit of a frame, counted from its end if negative."""

    def harm(frame: bytes) -> bytes:
        at = position % len(frame)
        return frame[:at] + bytes([frame[at] ^ 4]) + frame[at + 1 :]

    return harm


def swap_payload(frame: bytes) -> bytes:
    """Keep the frame's length and replace its last bytes."""
    return frame[:-16] + bytes(16) if len(frame) > 40 else frame


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "duplicated": lambda frame: frame + frame,
    "truncated": lambda frame: frame[: 9 + (len(frame) - 9) // 2],
    "swallowed": lambda frame: b"",
    "bit of the payload": flip(-20),
    "bit of the check": flip(-1),
    "bit of the message length": flip(12),
    "bit of the frame length": flip(2),
    "bit of the frame type": flip(3),
    "bit of the stream": flip(8),
    "other payload": swap_payload,
}


def warm(remote: Any) -> None:
    """Wait until the pool is full."""
    until(lambda: remote.sides.remote.background.full)


def frames_of_a_generation(llama: Any, line: Proxy) -> dict[Direction, int]:
    line.reset()
    remote = llama.connect(line.port, timeouts=TIMEOUTS, offline_rows=OfflineRows(tokens=2, prompt_rows=0))
    _tokens(remote)
    counts = dict(line.counts)
    remote.close()
    line.reset()
    return counts


def test_the_connection_drops_at_every_message(llama: Any, line: Proxy, undisturbed: list[int]) -> None:
    counts = frames_of_a_generation(llama, line)
    assert min(counts.values()) > 30
    survived = 0
    for direction in DIRECTIONS:
        for index in range(counts[direction]):
            line.harm = at(direction, index, cut)
            result, stats = generate_through(llama, line)
            assert result == undisturbed, f"{direction} {index}: {result!r}"
            survived += stats.reconnects
    assert survived > 20


@pytest.mark.parametrize("name", ["delayed", *HARMS])
def test_one_frame_is_harmed(name: str, llama: Any, line: Proxy, undisturbed: list[int]) -> None:
    counts = frames_of_a_generation(llama, line)
    for direction in DIRECTIONS:
        for index in range(4, counts[direction], max(1, counts[direction] // 4)):
            line.harm = at(direction, index, delayed(line) if name == "delayed" else HARMS[name])
            result, _ = generate_through(llama, line)
            assert result == undisturbed or isinstance(result, VeilError), f"{direction} {index}: {result!r}"
            if name in ("delayed", "bit of the payload", "bit of the check", "other payload"):
                assert result == undisturbed, f"{direction} {index}: {result!r}"


def test_a_restart_in_mid_generation_is_survived(
    llama: Any, serve: Any, proxy_to: Callable[[int], Proxy], undisturbed: list[int]
) -> None:
    with serve(llama, rows_port=None) as first, serve(llama, rows_port=None) as second:
        proxy = proxy_to(first.port)
        remote = llama.connect(proxy.port, timeouts=TIMEOUTS, offline_rows=OfflineRows(tokens=2, prompt_rows=0))
        Record(remote)

        def restart(count: int) -> None:
            if count == 2:
                proxy.target = second.port
                proxy.cut()

        assert _tokens(remote, restart) == undisturbed
        assert remote.stats.sessions_lost >= 1
        remote.close()


def test_a_forgotten_session_in_mid_forward_is_survived(llama: Any, serve: Any, undisturbed: list[int]) -> None:
    """The server forgets the session between two layers, again and again."""
    with serve(llama) as server:
        remote = llama.connect(server.port, timeouts=TIMEOUTS)
        Record(remote)
        transport = remote.sides.remote.transport
        calls, original = [0], transport.evaluate

        def evaluate(*args: Any) -> bytes:
            calls[0] += 1
            if calls[0] in (3, 12, 20):
                for session in list(server.store.sessions.values()):
                    server.store.close(session)
            reply: bytes = original(*args)
            return reply

        transport.evaluate = evaluate
        assert _tokens(remote) == undisturbed
        assert remote.stats.sessions_lost == 3
        remote.close()


def test_expired_batches_are_made_anew(llama: Any, serve: Any, undisturbed: list[int]) -> None:
    from veil.server.store import Limits

    now = [0.0]
    with serve(llama, limits=Limits(batch_ttl_s=600.0, session_ttl_s=6000.0), clock=lambda: now[0]) as server:
        remote = llama.connect(server.port, timeouts=TIMEOUTS, offline_rows=OfflineRows(tokens=4, prompt_rows=8))
        Record(remote)
        warm(remote)
        assert server.store.batch_count == 2
        now[0] = 601.0
        assert _tokens(remote) == undisturbed
        assert remote.stats.sessions_lost >= 1
        remote.close()


def test_an_expired_session_says_so_and_is_replaced(llama: Any, serve: Any, undisturbed: list[int]) -> None:
    from veil.server.store import Limits

    now = [0.0]
    with serve(llama, limits=Limits(session_ttl_s=300.0), clock=lambda: now[0]) as server:
        remote = llama.connect(server.port, timeouts=TIMEOUTS, offline_rows=OfflineRows(tokens=1, prompt_rows=0))
        warm(remote)
        assert server.store.count == 1
        now[0] = 301.0
        until(lambda: server.store.count == 0)
        assert _tokens(remote) == undisturbed
        assert remote.stats.sessions_lost == 1
        remote.close()


def test_a_half_open_connection_is_noticed(llama: Any, line: Proxy, undisturbed: list[int]) -> None:
    remote = llama.connect(line.port, timeouts=TIMEOUTS, offline_rows=OfflineRows(tokens=10, prompt_rows=0))
    Record(remote)
    warm(remote)

    def go_silent(count: int) -> None:
        if count == 1:
            line.half_open()

    assert _tokens(remote, go_silent) == undisturbed
    assert remote.stats.reconnects >= 1
    remote.close()


def test_a_server_that_never_comes_back_is_an_error(llama: Any, line: Proxy, refusing_port: int) -> None:
    timeouts = Timeouts(connect_s=1.0, reply_s=0.5, prepare_s=1.0, retry_s=0.5, pause_s=0.02)
    remote = llama.connect(line.port, timeouts=timeouts)

    def vanish(count: int) -> None:
        if count == 1:
            line.target = refusing_port
            line.cut()

    start = time.monotonic()
    with pytest.raises(ServerUnreachable, match="is 'veil serve' running"):
        _tokens(remote, vanish)
    assert time.monotonic() - start < 60
    remote.close()


def test_a_network_that_gives_frames_piece_by_piece_gives_the_same_answer(
    llama: Any, line: Proxy, undisturbed: list[int]
) -> None:
    line.piece_bytes = 50
    result, stats = generate_through(llama, line)
    assert result == undisturbed
    assert stats.reconnects == 0


def test_the_proxy_sees_data_frames(line: Proxy) -> None:
    assert DATA == 0
