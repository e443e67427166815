"""The first moment of the command: Ctrl-C while modules load ends it by the signal, and is the command's afterwards."""

from __future__ import annotations

import signal
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from veil.__main__ import main


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


class Cli(types.ModuleType):
    """Stands for `veil.cli`; notes what Ctrl-C does while it loads and when it runs."""

    seen: list[Any] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        self.seen.append(signal.getsignal(signal.SIGINT))
        return lambda: self.seen.append(signal.getsignal(signal.SIGINT))


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_while_modules_load(monkeypatch: pytest.MonkeyPatch, handler: None, before: Any) -> None:
    """A handler of the caller's, or none as in a background job of a shell, stays."""
    signal.signal(signal.SIGINT, before)
    cli = Cli("veil.cli")
    cli.seen = []
    monkeypatch.setitem(sys.modules, "veil.cli", cli)
    main()
    loading, running = cli.seen[0], cli.seen[-1]
    assert running is before
    assert loading is (signal.SIG_DFL if before is signal.default_int_handler else before)
