"""Retries end when their time is over, and at once when they are told to."""

from __future__ import annotations

import threading
import time

from veil.flag import Flag
from veil.network.timeouts import Retries, Timeouts


def test_tries_go_on_until_the_time_is_over() -> None:
    now = [0.0]
    tries = Retries(1.0, 0.001, clock=lambda: now[0])
    assert tries.again() and tries.again()
    assert tries.count == 3
    now[0] = 1.0
    assert not tries.again()
    assert tries.count == 3


def test_a_pause_ends_when_it_is_told_to() -> None:
    stop = Flag()
    tries = Timeouts(retry_s=600.0, pause_s=300.0).retries(stop=stop)
    threading.Timer(0.05, stop.set).start()
    start = time.monotonic()
    assert not tries.again()
    assert not tries.again()
    assert time.monotonic() - start < 60
