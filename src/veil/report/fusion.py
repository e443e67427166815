"""A model with fused norms beside the same without: how good, how many round trips, bytes and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from veil.hybrid.model import HybridFHEModel
from veil.params import packed_bytes
from veil.progress import Progress
from veil.report import measure
from veil.report.measure import Fidelity

COLUMNS = ("norms", "KL, nats", "perplexity", "round trips", "bytes up", "bytes down", "weights", "hint, GiB")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compile: fidelity with simulated noise, and what a token row takes online; ``hint_bytes`` the server's."""

    name: str
    fidelity: Fidelity
    round_trips: int
    up_online_bytes: int
    down_online_bytes: int
    remote_weights: int
    hint_bytes: int
    unfused: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """In the order of `COLUMNS`."""
        return (
            self.name,
            f"{self.fidelity.kl:.4f}",
            f"{self.fidelity.perplexity:.3f}",
            str(self.round_trips),
            f"{self.up_online_bytes:,}",
            f"{self.down_online_bytes:,}",
            f"{self.remote_weights:,}",
            f"{self.hint_bytes / 2**30:.2f}",
        )


def variants(compiled: Callable[[str], HybridFHEModel], ids: torch.Tensor, progress: Progress) -> list[Variant]:
    """Measure token ids [1, T] on the models that ``compiled("off")`` and ``compiled("auto")`` give."""
    return [
        _variant(name, compiled(fuse_norms), ids, progress)
        for name, fuse_norms in (("as they are", "off"), ("fused", "auto"))
    ]


def _variant(name: str, hybrid: HybridFHEModel, ids: torch.Tensor, progress: Progress) -> Variant:
    found = measure.fidelity(hybrid, measure.windows(ids), ("simulate",), progress, f"norms {name}")
    groups = hybrid.manifest.groups
    return Variant(
        name=name,
        fidelity=found[1],
        round_trips=len(groups),
        up_online_bytes=sum(packed_bytes(group.width, group.input_bits) for group in groups),
        down_online_bytes=sum(packed_bytes(group.rows, group.result_bits) for group in groups),
        remote_weights=sum(group.rows * group.width for group in groups),
        hint_bytes=hybrid.hint_bytes,
        unfused=hybrid.unfused,
    )
