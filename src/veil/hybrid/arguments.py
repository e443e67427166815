"""Arguments of `HybridFHEModel`'s methods whose type cannot be right: one line where they are given."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from veil.bundle.terms import Terms
from veil.client.session import OfflineRows
from veil.given import count_given, one_given, path_given, text_given
from veil.network.timeouts import Timeouts


def check_connecting(
    bundle: object, name: object = None, terms: object = None, offline_rows: object = None, timeouts: object = None
) -> None:
    """`TypeError` for arguments of `HybridFHEModel.connect` or ``load``; the address checks its own."""
    path_given("bundle", bundle)
    if name is not None:
        text_given("name", name, "the name of one of the server's bundles")
    one_given("terms", terms, Terms, "Terms(expert_leak='reveal')")
    one_given("offline_rows", offline_rows, OfflineRows, "OfflineRows(tokens=48)", optional=True)
    one_given("timeouts", timeouts, Timeouts, "Timeouts(reply_s=30)", optional=True)


def check_speculating(model: object, draft: object, most: object) -> int:
    """How many tokens are drafted at most; `TypeError` and `ValueError` for what cannot draft for this model."""
    if not callable(getattr(model, "generate", None)):
        raise TypeError(f"speculating is for models that generate text; a {type(model).__name__} has no generate")
    if not isinstance(draft, str) and not (isinstance(draft, nn.Module) and hasattr(draft, "config")):
        raise TypeError(f"draft is a {type(draft).__name__}, expected 'lookup' or a small transformers model")
    return count_given("most", most, 1)


def checked_rows(offline_rows: object) -> OfflineRows | None:
    """What keeps rows ready, or None; `TypeError` for anything else."""
    one_given("offline_rows", offline_rows, OfflineRows, "OfflineRows(tokens=48)", optional=True)
    return offline_rows if isinstance(offline_rows, OfflineRows) else None


def checked_hints(hints: object) -> Path | None:
    """The folder of hints, or None; `TypeError` for anything else."""
    return None if hints is None else path_given("hints", hints)
