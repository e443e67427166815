"""Ctrl-C at every moment of a client's work: whatever it cuts off, closing ends.

Python runs a signal's handler before a function's first step and after each call into C. A profiler is told of the same
moments, so it can raise ``KeyboardInterrupt`` at the first, the second, … of them, where a signal comes by chance.
"""

from __future__ import annotations

import itertools
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veil.client import connection as connection_module
from veil.client import remote as remote_module
from veil.client.background import OfflineRows
from veil.client.connection import Address, Connection
from veil.client.remote import RemoteTransport
from veil.client.stats import Stats
from veil.flag import Flag
from veil.network.timeouts import Timeouts
from veil.wire.messages import Span

BRIEF = Timeouts(connect_s=0.1, reply_s=1.0, retry_s=0.02, pause_s=0.005)
WITHIN_S = 60.0

# Where an object's end or a weak reference's callback is cut off, Python only says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def in_destructor(frame: FrameType | None) -> bool:
    """Whether an object's end is under way, which may be another trial's; Python ignores what is raised there."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def interrupted_at(moment: int, work: Callable[[], object]) -> bool:
    """Do some work, interrupted at one of the moments where a signal's handler can run; False if it ended before."""
    count = 0

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        if event in ("call", "c_return") and frame.f_code.co_filename != __file__ and not in_destructor(frame):
            count += 1
            if count == moment:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        work()
    except BaseException:
        pass
    finally:
        sys.setprofile(None)
    return count >= moment


def ends(trial: Callable[[], bool], moment: int) -> bool:
    """A trial in a thread of its own, which has to end; what it returned."""
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(trial()), daemon=True)
    thread.start()
    thread.join(WITHIN_S)
    if thread.is_alive():
        at = "".join(traceback.format_stack(sys._current_frames()[thread.ident or 0])[-6:])
        raise AssertionError(f"interrupted at moment {moment}, it does not end:\n{at}")
    assert said, "the trial failed"
    return said[0]


def moments(trial: Callable[[int], bool]) -> int:
    """Trials at one moment after the other until the work ends before it; how many."""
    for moment in itertools.count(1):
        if not ends(lambda: trial(moment), moment):  # noqa: B023  (it has ended)
            return moment
    raise AssertionError


def test_rows_for_a_server_that_is_gone(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams begin and fail, pauses pass, channels are renewed: gRPC's own code would wait for ever for a cut-off call."""
    monkeypatch.setattr(remote_module, "GOODBYE_S", 0.05)
    monkeypatch.setattr(connection_module, "_CLOSING_S", 0.5)
    address, data = Address(target="127.0.0.1:9"), np.zeros((1, 210), np.uint8)

    def trial(moment: int) -> bool:
        transport = RemoteTransport(pair.client_model, address, pair.kernels, Stats(), BRIEF, "0" * 64)
        reached = interrupted_at(moment, lambda: transport.evaluate("session", 0, [Span(0, 0, 1)], data, 51))
        transport.close("session")
        return reached

    assert moments(trial) > 30


def test_a_channel_whose_closing_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's does where a call, of a file say, was cut off as it began."""
    monkeypatch.setattr(connection_module, "_CLOSING_S", 0.02)
    connection, gone = Connection(Address(target="127.0.0.1:9"), BRIEF), threading.Event()
    channel = SimpleNamespace(close=gone.wait)
    connection._channel.close()
    for end in (connection.renew, connection.close):
        connection._channel = channel
        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        thread.join(WITHIN_S)
        assert not thread.is_alive()
    gone.set()


def test_rows_of_a_session(pair: Any) -> None:
    """Rows are waited for, taken and evaluated while a thread makes others: none of them keeps what another waits for."""
    x = pair.inputs(0, 1)

    def trial(moment: int) -> bool:
        session = pair.session(offline_rows=OfflineRows(tokens=4, prompt_rows=0))
        reached = interrupted_at(moment, lambda: (session.begin_forward(), session.evaluate(0, x), session.end_forward()))
        session.close()
        return reached

    assert moments(trial) > 30


def test_a_flag(pair: Any) -> None:
    """Waited for and set in one thread, as by a handler, it is set for others too."""

    def trial(moment: int) -> bool:
        flag = Flag()

        def work() -> None:
            flag.wait(0.001)
            flag.set()
            flag.wait()

        reached = interrupted_at(moment, work)
        flag.set()
        return flag.wait(WITHIN_S) and reached

    assert moments(trial) >= 3


def test_a_flag_is_set_and_cleared() -> None:
    flag = Flag()
    assert not flag.is_set() and not flag.wait(0.0)
    flag.set()
    flag.set()
    assert flag.is_set() and flag.wait() and flag.wait(0.0)
    flag.clear()
    flag.clear()
    assert not flag.wait(0.0)
    waiting = [threading.Thread(target=flag.wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
    flag.set()
    for thread in waiting:
        thread.join(WITHIN_S)
        assert not thread.is_alive()
