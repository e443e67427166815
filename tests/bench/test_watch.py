"""Time is added up by label while the block runs, and the functions are themselves again afterwards."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from veil.bench.watch import KERNELS, Watch, kernel_targets, synchronizing
from veil.kernels import cpu, reference


class Owner:
    def work(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def fail(self) -> None:
        raise KeyError("no")


def test_seconds_and_calls_are_counted_until_taken() -> None:
    original = Owner.work
    with Watch([(Owner, "work", "sleep"), (Owner, "fail", "fail")]) as watch:
        assert Owner().work(0.01) == 0.01
        Owner().work(0.01)
        with pytest.raises(KeyError):
            Owner().fail()
        spent = watch.take()
        assert spent["sleep"].calls == 2 and 0.02 <= spent["sleep"].seconds < 1.0
        assert spent["fail"].calls == 1 and spent["other"].calls == 0
        assert watch.take()["sleep"].calls == 0
    assert Owner.work is original


def test_functions_come_back_after_an_error() -> None:
    original = Owner.work
    with pytest.raises(ZeroDivisionError), Watch([(Owner, "work", "sleep")]):
        raise ZeroDivisionError
    assert Owner.work is original


def test_threads_are_added_up() -> None:
    with Watch([(Owner, "work", "sleep")]) as watch:
        threads = [threading.Thread(target=Owner().work, args=(0.01,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert watch.take()["sleep"].calls == 4


def test_a_device_finishes_inside_the_time() -> None:
    finished = []
    with Watch([(Owner, "work", "sleep")], lambda: finished.append(time.sleep(0.01))) as watch:
        Owner().work(0.0)
        assert watch.take()["sleep"].seconds >= 0.01
    assert len(finished) == 1
    assert synchronizing(cpu) is None and synchronizing(SimpleNamespace(name="cuda")) is not None


@pytest.mark.parametrize("kernels", [cpu, reference], ids=lambda module: module.name)
def test_every_watched_kernel_exists(kernels: object) -> None:
    assert {attribute for _, attribute, _ in kernel_targets(kernels)} == set(KERNELS)
