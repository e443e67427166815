"""Busy processes begin before the measurement and end with it, whatever ends it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from veil.bench import busy


def test_as_many_run_as_asked_and_none_outlives_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def start(*args: Any, **settings: Any) -> subprocess.Popen[str]:
        started.append(popen(*args, **settings))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with busy.beside(2):
        assert len(started) == 2 and all(process.poll() is None for process in started)
    assert all(process.poll() == 0 for process in started)
    with pytest.raises(KeyError), busy.beside(1):
        raise KeyError("the measurement failed")
    assert started[2].poll() == 0
    with busy.beside(0):
        assert len(started) == 3


def test_a_process_that_cannot_start_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="its own message is above"), busy.beside(1):
        pytest.fail("the block began")
