"""Answers whose lengths a server is not to see: padded, and after Ctrl-C padded to their end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from veil.commands.interrupts import interrupts_set
from veil.flag import Flag
from veil.hybrid.model import HybridFHEModel
from veil.runtime.padding import Padding

SAID = "veil: the rest of the answer is sent as rows of zeros, so that its length does not show; Ctrl-C again ends at once"


class _Interrupted(Exception):
    """Ctrl-C, where the pass is to go on to its end."""


@contextmanager
def lengths_hidden(hybrid: HybridFHEModel | None, padding: Padding | None) -> Iterator[None]:
    """While it is entered, answers are padded; the first Ctrl-C ends what is shown, the second everything.

    Nothing without a model or a padding. Raises `KeyboardInterrupt` after the first Ctrl-C, once the answer is padded.
    """
    if hybrid is None or padding is None:
        yield
        return
    gone = Flag()
    before, hybrid.cancel_check = hybrid.cancel_check, partial(_stop_if, gone)
    hybrid.padding = padding
    try:
        with interrupts_set(gone, SAID):
            yield
    except _Interrupted:
        raise KeyboardInterrupt from None
    finally:
        hybrid.cancel_check = before


def _stop_if(gone: Flag) -> None:
    if gone.is_set():
        raise _Interrupted
