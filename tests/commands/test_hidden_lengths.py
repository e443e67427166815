"""Ctrl-C during a padded answer: the answer is not shown any further, and goes on for the server."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from veil.commands.hidden_lengths import lengths_hidden
from veil.runtime.padding import Padding


def test_the_first_interrupt_lets_an_answer_go_on_unseen(capsys: pytest.CaptureFixture[str]) -> None:
    hybrid: Any = SimpleNamespace(padding=None, cancel_check=None)
    padded = []
    with pytest.raises(KeyboardInterrupt), lengths_hidden(hybrid, Padding()):
        hybrid.cancel_check()
        os.kill(os.getpid(), signal.SIGINT)
        try:
            hybrid.cancel_check()
        finally:
            padded.append(hybrid.padding)  # where `generate` pads
    assert padded == [Padding()] and hybrid.cancel_check is None
    assert "Ctrl-C again ends at once" in capsys.readouterr().err


def test_the_second_interrupt_ends_it_at_once() -> None:
    hybrid: Any = SimpleNamespace(padding=None, cancel_check=None)
    with pytest.raises(KeyboardInterrupt), lengths_hidden(hybrid, Padding()):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()


def test_nothing_changes_without_a_padding() -> None:
    hybrid: Any = SimpleNamespace(padding=None, cancel_check=None)
    before = signal.getsignal(signal.SIGINT)
    with lengths_hidden(hybrid, None), lengths_hidden(None, Padding()):
        assert signal.getsignal(signal.SIGINT) is before and hybrid.cancel_check is None
