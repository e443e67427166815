"""The formula of a link."""

from __future__ import annotations

import pytest

from veil.bench.link import token_seconds
from veil.network.link import Link


def test_the_formula() -> None:
    link = Link(rtt_s=0.02, bytes_per_s=12.5e6)
    assert token_seconds(0.05, 121, 756_000, link) == pytest.approx(0.05 + 2.42 + 0.06048)
