"""The formula of a link, and delays that are as long as it says."""

from __future__ import annotations

import time

import pytest

from veil.bench.link import Link, delayed, token_seconds


class Transport:
    def evaluate(self, session: str, group: int, masks: list[int], data: bytes) -> bytes:
        if group < 0:
            raise ValueError("no")
        return data + data


def test_the_formula() -> None:
    link = Link(rtt_s=0.02, bytes_per_s=12.5e6)
    assert token_seconds(0.05, 121, 756_000, link) == pytest.approx(0.05 + 2.42 + 0.06048)
    assert link.round_trip_s(1000, 249_000) == pytest.approx(0.04)


@pytest.mark.parametrize("rtt_s", [0.0, 0.0002, 0.005])
def test_a_call_takes_longer_by_the_link(rtt_s: float) -> None:
    link, original = Link(rtt_s=rtt_s, bytes_per_s=1e6), Transport.evaluate
    with delayed(Transport, link):
        start = time.perf_counter()
        assert Transport().evaluate("s", 0, [1], b"x" * 1000) == b"x" * 2000
        assert time.perf_counter() - start >= rtt_s + 0.003
        with pytest.raises(ValueError):
            Transport().evaluate("s", -1, [1], b"")
    assert Transport.evaluate is original
