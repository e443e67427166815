"""A model whose layers were replaced by remote ones, and what is kept beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn

from veil.bundle.compiled import Compiled
from veil.client.session import OfflineRows
from veil.client.stats import Stats
from veil.hybrid.calls import ModelCalls
from veil.hybrid.facts import CompiledFacts
from veil.hybrid.reopening import Sample
from veil.hybrid.sides import Sides
from veil.kernels.interface import Kernels
from veil.progress import Progress
from veil.runtime.experts import ExpertLeak
from veil.runtime.layers import COPY_REMEDY, RemoteLayer

if TYPE_CHECKING:
    from typing_extensions import Self

    from veil.client.connection import Address
    from veil.network.link import Link
    from veil.runtime.saved_model import Opened


class AttachedModel(CompiledFacts):
    """The part of `HybridFHEModel` that holds the torch model, its calls and, once it is compiled, both sides."""

    def _attach(self, model: nn.Module, layers: dict[str, RemoteLayer], expert_leak: ExpertLeak) -> None:
        self.model: nn.Module = model
        self.module_names = list(layers)
        self.stats = Stats()
        self.tokenizer: Any = None  # a PreTrainedTokenizerBase where there is one
        self.offline_rows: OfflineRows | None = None
        self.hints: Path | None = None
        self.cancel_check: Callable[[], None] | None = None
        self._layers = layers
        self._calls = ModelCalls(model, layers, expert_leak, self.stats, lambda: self.cancel_check)
        self._address: Address | None = None
        self._link: Link | None = None
        self._sample: Sample | None = None

    def _adopt(self, compiled: Compiled, kernels: Kernels, progress: Progress | None = None) -> Sides:
        calls = self._calls
        calls.sides = Sides(self.model, calls.forward, compiled, kernels, self.stats, calls.follow, progress)
        return calls.sides

    @classmethod
    def _opened(cls, opened: Opened, leak: ExpertLeak, kernels: Kernels, progress: Progress | None = None) -> Self:
        """The model of a client half that was read from disk."""
        hybrid = cls.__new__(cls)
        hybrid._attach(opened.model, opened.layers, leak)
        hybrid.tokenizer = opened.tokenizer
        hybrid._adopt(opened.compiled, kernels, progress)
        return hybrid

    def __copy__(self) -> Self:
        raise TypeError(COPY_REMEDY)

    def __deepcopy__(self, memo: object) -> Self:
        raise TypeError(COPY_REMEDY)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """It holds keys and sessions, which are not pickled."""
        raise TypeError(COPY_REMEDY)
