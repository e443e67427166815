"""How much of a model is left under veil, mode by mode against float, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from veil.hybrid.model import HybridFHEModel
from veil.progress import Progress
from veil.report.inside import beside, choose
from veil.report.layers import LayerQuality, WidthQuality

if TYPE_CHECKING:
    from veil.report.fusion import Variant

F64 = NDArray[np.float64]

WINDOW = 256
"""Tokens of one forward pass; each window is read on its own."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One way to run the model, on some text: ``kl`` in nats from float to it, ``top1`` the share of equal best tokens."""

    name: str
    tokens: int
    perplexity: float
    kl: float
    top1: float


@dataclass(frozen=True, kw_only=True)
class ModelCosts:
    """Bytes for a token row, and what preparing and answering it took in this process; a batch serves ``batch_rows``."""

    up_online_bytes: float
    down_online_bytes: float
    up_offline_bytes: float
    batch_bytes: int
    batch_rows: int
    hint_bytes: int
    remote_weights: int
    prepare_s: float
    online_s: float
    client_s: float
    check_s: float = 0.0
    checked: str | None = None


@dataclass(kw_only=True)
class Report:
    """Everything that `veil report` shows."""

    model: str
    origin: str
    text: str
    security_bits: float
    core_svp_bits: float
    bits: int
    modes: list[Fidelity] = field(default_factory=list)
    sample: list[Fidelity] = field(default_factory=list)
    layers: list[LayerQuality] = field(default_factory=list)
    widths: list[WidthQuality] = field(default_factory=list)
    by_bits: list[tuple[int, Fidelity]] = field(default_factory=list)
    fusion: list[Variant] = field(default_factory=list)
    costs: ModelCosts | None = None
    seconds: float = 0.0


def windows(ids: torch.Tensor, size: int = WINDOW) -> list[torch.Tensor]:
    """Token ids [1, T] cut into parts of ``size``; a rest of one token, which predicts nothing, is dropped."""
    parts = [ids[:, start : start + size] for start in range(0, ids.shape[1], size)]
    return [part for part in parts if part.shape[1] > 1]


def fidelity(
    hybrid: HybridFHEModel,
    parts: list[torch.Tensor],
    modes: tuple[str, ...] = ("disable", "simulate", "execute"),
    progress: Progress | None = None,
    stage: str = "reading the text",
) -> list[Fidelity]:
    """Perplexity, KL divergence and top-1 agreement of each mode on texts' token ids, each [1, T]; float comes first.

    ``hybrid`` is a compiled model that still has its float layers. ``progress`` is told of the stage called ``stage``.
    """
    if not isinstance(hybrid, HybridFHEModel):
        raise TypeError(f"hybrid is a {type(hybrid).__name__}, expected a compiled veil.HybridFHEModel")
    if not isinstance(parts, list | tuple) or not all(isinstance(part, torch.Tensor) and part.ndim == 2 for part in parts):
        raise TypeError(
            "parts are texts as token ids, a list of tensors [1, T], as a tokenizer returns with return_tensors='pt'"
        )
    progress = progress or (lambda stage, done, total: None)
    sums = {mode: np.zeros(3) for mode in ("torch", *modes)}
    done, steps, tokens = 0, len(parts) * (1 + len(modes)), sum(part.shape[1] - 1 for part in parts)
    progress(stage, 0, steps)
    for part in parts:
        exact = _log_probabilities(hybrid, "torch", part)
        for mode in sums:
            got = exact if mode == "torch" else _log_probabilities(hybrid, mode, part)
            sums[mode] += _compare(exact, got, part[0, 1:])
            done += 1
            progress(stage, done, steps)
    names = {"torch": "float"}
    return [
        Fidelity(
            name=names.get(mode, mode),
            tokens=tokens,
            perplexity=float(np.exp(loss / tokens)),
            kl=max(0.0, float(kl / tokens)),
            top1=float(same / tokens),
        )
        for mode, (loss, kl, same) in sums.items()
    ]


def _log_probabilities(hybrid: HybridFHEModel, mode: str, ids: torch.Tensor) -> torch.Tensor:
    choose(hybrid, mode)
    with torch.no_grad():
        logits = hybrid.model(beside(hybrid, ids)).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1).cpu()


def _compare(exact: torch.Tensor, got: torch.Tensor, truth: torch.Tensor) -> F64:
    """Sums over the tokens: negative log-likelihood, KL divergence, equal best tokens."""
    loss = -got.gather(1, truth[:, None]).double().sum()
    divergence = (exact.exp() * (exact - got)).sum(dim=1, dtype=torch.float64).sum()
    same = (exact.argmax(dim=1) == got.argmax(dim=1)).sum()
    return np.array([float(loss), float(divergence), float(same)])


def costs(hybrid: HybridFHEModel, run: Callable[[], object], rows: int) -> ModelCosts:
    """What ``run``, a pass of ``rows`` token rows in ``execute``, cost for each row; making rows, over all made so far."""
    hybrid.set_fhe_mode("execute")
    before = hybrid.stats.copy()
    run()
    whole, params = hybrid.stats, hybrid.params
    stats = whole - before
    return ModelCosts(
        up_online_bytes=stats.bytes_up_online / rows,
        down_online_bytes=stats.bytes_down_online / rows,
        up_offline_bytes=params.batch_bytes / params.T,
        batch_bytes=params.batch_bytes,
        batch_rows=params.T,
        hint_bytes=hybrid.hint_bytes,
        remote_weights=sum(group.rows * group.width for group in hybrid.manifest.groups),
        prepare_s=whole.seconds["prepare"] / max(whole.rows_made, 1),
        online_s=stats.seconds["online_server"] / rows,
        client_s=stats.seconds["client"] / rows,
        check_s=stats.seconds["check"] / rows,
        checked=hybrid.checked_against,
    )


def cost_rows(report: Report) -> list[tuple[str, str]]:
    """What it costs and how secure it is, as names and values."""
    rows: list[tuple[str, str]] = []
    if report.costs is not None:
        costs = report.costs
        rows += [
            ("up online, a token", f"{costs.up_online_bytes:,.0f} bytes"),
            ("down online, a token", f"{costs.down_online_bytes:,.0f} bytes"),
            ("up offline, a token", f"{costs.up_offline_bytes:,.0f} bytes"),
            ("up offline, a batch", f"{costs.batch_bytes:,} bytes for {costs.batch_rows} rows, one row a token"),
            ("remote weights", f"{costs.remote_weights:,} bytes"),
            ("the server's memory for its hint", f"{costs.hint_bytes / 2**30:.2f} GiB"),
            ("making a row of a batch", f"{1e3 * costs.prepare_s:.1f} ms"),
            ("the server's answers, a row of the sample", f"{1e3 * costs.online_s:.1f} ms"),
            ("the client's work, a row of the sample", f"{1e3 * costs.client_s:.1f} ms"),
        ]
        if costs.checked:
            rows.append(("  of it checking the answers", f"{1e3 * costs.check_s:.2f} ms, against {costs.checked}"))
    rows.append(("security", f"{report.security_bits:.1f} bits (MATZOV), about {report.core_svp_bits:.0f} by core-SVP"))
    rows.append(("this report took", f"{report.seconds:.0f} s"))
    return rows
