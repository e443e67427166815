"""How much of a model is left under veil: tokens, distributions and every layer, mode by mode, against float."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from veil import noise
from veil.errors import NotCompiled
from veil.model.hybrid import HybridFHEModel
from veil.model.quantize import clear_product, row_norms
from veil.model.router import Router
from veil.progress import Progress
from veil.report.eight_bit import eight_bit_product, eight_bit_service

if TYPE_CHECKING:
    from veil.report.folding import Variant

F64 = NDArray[np.float64]

EIGHT_BIT = "8-bit activations"
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
class LayerQuality:
    """Signal to noise of a layer's product in dB, encrypted, predicted and with 8-bit activations, on the same inputs.

    Every row counts alike, whatever its length. ``ratio`` is the measured error variance over the predicted one.
    """

    name: str
    snr_db: float
    predicted_db: float
    eight_bit_db: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Bytes for a token row, and what preparing and answering took in this process."""

    up_online_bytes: float
    down_online_bytes: float
    up_ahead_bytes: float
    masks: int
    hint_bytes: int
    remote_weights: int
    prepare_s: float
    online_s: float
    client_s: float


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
    by_bits: list[tuple[int, Fidelity]] = field(default_factory=list)
    folding: list[Variant] = field(default_factory=list)
    costs: Costs | None = None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class _Inside:
    """What measuring needs of a compiled model that has its weights."""

    router: Router
    weights: tuple[NDArray[np.int8], ...]
    kernels: ModuleType

    @classmethod
    def of(cls, hybrid: HybridFHEModel) -> _Inside:
        compiled, router = hybrid._compiled, hybrid._router
        if compiled is None or not isinstance(router, Router) or compiled.weights is None:
            raise NotCompiled("measuring needs a compiled model with its weights, on the CPU")
        return cls(router, compiled.weights, hybrid._kernels)


def windows(ids: torch.Tensor, size: int = WINDOW) -> list[torch.Tensor]:
    """Token ids [1, T] cut into parts of ``size``; a rest of one token, which predicts nothing, is dropped."""
    parts = [ids[:, start : start + size] for start in range(0, ids.shape[1], size)]
    return [part for part in parts if part.shape[1] > 1]


def fidelity(
    hybrid: HybridFHEModel, parts: list[torch.Tensor], modes: tuple[str, ...], progress: Progress, stage: str
) -> list[Fidelity]:
    """Perplexity, KL divergence and top-1 agreement of each mode; float (``torch``) comes first."""
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
    _choose(hybrid, mode)
    with torch.no_grad():
        logits = hybrid.model(ids).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1)


def _choose(hybrid: HybridFHEModel, mode: str) -> None:
    hybrid.set_fhe_mode("disable" if mode == EIGHT_BIT else mode)
    if mode == EIGHT_BIT:
        inside = _Inside.of(hybrid)
        inside.router.service = eight_bit_service(inside.weights, inside.kernels)


def _compare(exact: torch.Tensor, got: torch.Tensor, truth: torch.Tensor) -> F64:
    """Sums over the tokens: negative log-likelihood, KL divergence, equal best tokens."""
    loss = -got.gather(1, truth[:, None]).double().sum()
    divergence = (exact.exp() * (exact - got)).sum(dim=1, dtype=torch.float64).sum()
    same = (exact.argmax(dim=1) == got.argmax(dim=1)).sum()
    return np.array([float(loss), float(divergence), float(same)])


def layer_quality(hybrid: HybridFHEModel, ids: torch.Tensor, mode: str = "execute") -> list[LayerQuality]:
    """Every layer's error over one pass of token ids [1, T] in ``mode``, beside its prediction and 8-bit activations'."""
    return layer_quality_of(hybrid, lambda: hybrid.model(ids), mode)


def layer_quality_of(hybrid: HybridFHEModel, run: Callable[[], Any], mode: str = "execute") -> list[LayerQuality]:
    """`layer_quality` for a pass that ``run`` makes."""
    inside = _Inside.of(hybrid)
    router, weights, kernels = inside.router, inside.weights, inside.kernels
    seen: dict[int, list[F64]] = defaultdict(list)

    def observe(group: int, x: Any, tau: F64, values: Any) -> None:
        exact = clear_product(weights[group], x, tau, kernels).astype(np.float64)
        rough = eight_bit_product(weights[group], x, tau, kernels)
        parts = (exact, values - exact, rough - exact)
        per_value = [(part**2).sum(axis=0) for part in parts]
        predicted = noise.result(hybrid.params, row_norms(weights[group])) * len(x)
        seen[group].append(np.stack([*per_value, predicted]))

    _choose(hybrid, mode)
    router.observer = observe
    try:
        with torch.no_grad():
            run()
    finally:
        router.observer = None
    layers = []
    for name, (group, part) in hybrid.manifest.by_layer.items():
        if group in seen:
            scale = router.constants[group].scale[part].astype(np.float64) ** 2
            signal, error, rough, predicted = (np.sum(seen[group], axis=0)[:, part] * scale).sum(axis=1)
            layers.append(
                LayerQuality(
                    name=name,
                    snr_db=decibels(signal, error),
                    predicted_db=decibels(signal, predicted),
                    eight_bit_db=decibels(signal, rough),
                    ratio=float(error / predicted),
                )
            )
    return layers


def decibels(signal: float, error: float) -> float:
    """Ten times the logarithm of a ratio of powers."""
    return float(10 * np.log10(max(signal, 1e-300) / max(error, 1e-300)))


def costs(hybrid: HybridFHEModel, run: Callable[[], Any], rows: int) -> Costs:
    """What ``run``, a pass of ``rows`` token rows in ``execute``, cost for each row."""
    hybrid.set_fhe_mode("execute")
    before = hybrid.stats.copy()
    run()
    stats, params = hybrid.stats - before, hybrid.params
    return Costs(
        up_online_bytes=stats.bytes_up_online / rows,
        down_online_bytes=stats.bytes_down_online / rows,
        up_ahead_bytes=params.mask_bytes + params.epoch_key_bytes / params.masks_per_epoch,
        masks=stats.masks,
        hint_bytes=hybrid.hint_bytes,
        remote_weights=sum(weight.size for weight in _Inside.of(hybrid).weights),
        prepare_s=stats.seconds["prepare"] / max(stats.masks, 1),
        online_s=stats.seconds["online_server"] / rows,
        client_s=stats.seconds["client"] / rows,
    )


def cost_rows(report: Report) -> list[tuple[str, str]]:
    """What it costs and how secure it is, as names and values."""
    rows: list[tuple[str, str]] = []
    if report.costs is not None:
        costs = report.costs
        rows += [
            ("up online, a token", f"{costs.up_online_bytes:,.0f} bytes"),
            ("down online, a token", f"{costs.down_online_bytes:,.0f} bytes"),
            ("up ahead, a token", f"{costs.up_ahead_bytes:,.0f} bytes"),
            ("masks, a token", "1"),
            ("remote weights", f"{costs.remote_weights:,} bytes"),
            ("the server's memory for hint and digits", f"{costs.hint_bytes / 2**30:.2f} GiB"),
            ("making a mask", f"{1e3 * costs.prepare_s:.0f} ms"),
            ("the server's answers, a row of the sample", f"{1e3 * costs.online_s:.0f} ms"),
            ("the client's work, a row of the sample", f"{1e3 * costs.client_s:.0f} ms"),
        ]
    rows.append(("security", f"{report.security_bits:.1f} bits (MATZOV), about {report.core_svp_bits:.0f} by core-SVP"))
    rows.append(("this report took", f"{report.seconds:.0f} s"))
    return rows
