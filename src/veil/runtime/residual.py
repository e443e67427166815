"""The residual stream of a fused model, as the norms see it during one forward pass. It stays with the client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from veil.bundle.manifest import Manifest, NormFusion
from veil.errors import BundleError, StreamChanged
from veil.runtime.norms import Norm, norm_of
from veil.runtime.plain_row import one_row
from veil.runtime.sighting import Sighting

REMEDY = "compile the model with fuse_norms='off'"


@dataclass(frozen=True, eq=False)
class _Seen:
    source: torch.Tensor
    result: Sighting


class ResidualStream:
    """Keeps what the norms of a manifest's fusions read and gave, from `clear` to `clear`, while ``active``.

    Where asking a device waits for it (``asks_cheaply`` is false), whether the stream was left alone is noted there for each
    fusion and asked once, by `ask`. Raises `BundleError` for a norm that is not there or is none.
    """

    def __init__(self, model: nn.Module, manifest: Manifest, *, asks_cheaply: bool = True) -> None:
        self.active = False
        self.unasked: list[NormFusion] = []
        """The fusions of this pass whose stream is noted and was not asked for."""
        self._asks_cheaply = asks_cheaply
        self._noted: torch.Tensor | None = None
        self._seen: dict[str, _Seen] = {}
        self._norms: dict[str, Norm] = {}
        fusions = [group.fusion for group in manifest.groups if group.fusion]
        self._places = {fusion.after: place for place, fusion in enumerate(fusions)}
        for name in dict.fromkeys(name for fusion in fusions for name in (fusion.before, fusion.after)):
            try:
                module = model.get_submodule(name)
            except AttributeError:
                raise BundleError(f"the model has no module {name!r} to fuse over") from None
            norm = norm_of(module)
            if norm is None:
                raise BundleError(f"the model's {name!r} is no norm that can be fused over")
            self._norms[name] = norm
            module.register_forward_hook(self._note(name))

    def clear(self) -> None:
        """Forget the last pass, and what was noted in one that failed."""
        self._seen.clear()
        self.take_unasked()

    def take_unasked(self) -> list[NormFusion]:
        """The fusions that `ask` would have asked for; it no longer will."""
        unasked, self.unasked = self.unasked, []
        return unasked

    def ask(self) -> None:
        """Raise `StreamChanged` if the stream was changed in this pass, where `factor` has not said so."""
        unasked = self.take_unasked()
        if unasked:
            assert self._noted is not None
            same = self._noted.tolist()
            for fusion in unasked:
                if not same[self._places[fusion.after]]:
                    raise _changed(fusion)

    def before(self, fusion: NormFusion, x: torch.Tensor) -> torch.Tensor:
        """The stream that the layer reading ``x`` [..., in] is about to add to: [..., width] float, as many rows."""
        seen = self._seen.get(fusion.before)
        if seen is None or seen.source.shape[-1] != fusion.width or _count(seen.source) != _count(x):
            raise StreamChanged(f"no stream of these rows passed {fusion.before} in this forward pass; {REMEDY}")
        return seen.source

    def check_reader(self, fusion: NormFusion, x: torch.Tensor) -> None:
        """Raise `StreamChanged` unless x [..., width] float is what the fusion's norm gave last in this pass, unchanged."""
        seen = self._seen.get(fusion.after)
        if seen is None or not seen.result.holds(x):
            raise StreamChanged(f"a layer behind {fusion.after} reads something else; {REMEDY}")

    def factor(self, fusion: NormFusion, before: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """ρ [T, 1] float32 of what the fusion's norm read, which must be ``before + added``, the sum taken exactly."""
        rows = self._seen[fusion.after].source.reshape(-1, fusion.width)
        total = before.reshape(-1, fusion.width) + added.reshape(-1, fusion.width)
        if self._asks_cheaply or rows.shape != total.shape:
            if not torch.equal(rows, total):
                raise _changed(fusion)
        else:
            self._note_whether(fusion, (rows == total).all())
        return self._norms[fusion.after].factor(rows)

    def _note_whether(self, fusion: NormFusion, same: torch.Tensor) -> None:
        """Keep an answer [] bool where it was made; that place is the same in every pass, so that a graph can hold this.

        Of a fusion that a pass comes to again, no answer may be lost.
        """
        if self._noted is None or (not self.unasked and self._noted.device != same.device):
            with torch.inference_mode(False):  # what is made in inference mode cannot be written to outside
                self._noted = torch.zeros(len(self._places), dtype=torch.bool, device=same.device)
        place = self._noted[self._places[fusion.after]]
        if fusion in self.unasked:
            place.logical_and_(same.to(place.device))
        else:
            self.unasked.append(fusion)
            place.copy_(same)  # from another device too, where a model's parts are on several

    def row_factor(self, fusion: NormFusion, before: torch.Tensor, added: torch.Tensor) -> np.float32 | None:
        """`factor` of one row, where all three are plain ones on this processor, else None."""
        from veil.kernels.cpu.local_rows import factor_row

        rows = [one_row(own) for own in (self._seen[fusion.after].source, before, added)]
        if any(own is None or own.size != fusion.width for own in rows):
            return None
        after, stream, addend = (np.ascontiguousarray(own).reshape(-1) for own in rows if own is not None)
        norm = self._norms[fusion.after]
        factor = factor_row(after, stream, addend, norm.epsilon, norm.centred)
        if np.isnan(factor):
            self.factor(fusion, before, added)  # says what is wrong, if not only a number that is none
            return None
        return np.float32(factor)

    def _note(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
            if self.active and args:
                self._seen[name] = _Seen(args[0], Sighting(result))

        return hook


def _changed(fusion: NormFusion) -> StreamChanged:
    return StreamChanged(f"the stream was changed on its way to {fusion.after}; {REMEDY}")


def _count(x: torch.Tensor) -> int:
    return x.numel() // x.shape[-1]
