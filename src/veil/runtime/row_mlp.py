"""The shorter way of a gated MLP for one row; see `row_steps`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil.runtime.layers import is_hooked
from veil.runtime.router import Router
from veil.runtime.row_norms import activation_of
from veil.runtime.row_steps import Stand, close, is_plain, names_read, rows_to_try

F32 = NDArray[np.float32]
_NAMES = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})


class GatedStep:
    """``down(act(gate(x))·up(x))``, where gate and up are one group."""

    def __init__(self, module: Any) -> None:
        self.usable: bool | None = None
        self._module = module
        self._kind: int | None = None

    def answer(self, router: Router, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """See `row_steps.RowStep`."""
        module = self._module
        parts = module._modules
        gate, up, act = parts["gate_proj"], parts["up_proj"], parts["act_fn"]
        if len(args) != 1 or kwargs or not is_plain(gate) or not is_plain(up) or is_hooked(act):
            return None
        if self.usable is None:
            self._kind = activation_of(act)
            self.usable = self._kind is not None and self._agrees()
        if not self.usable:
            return None
        x = args[0]
        outputs = router.row_together((gate.name, up.name), x) if isinstance(x, torch.Tensor) else None
        if outputs is None:
            return None
        gate.passes.asked.update((gate.name, up.name))
        return module.down_proj(torch.from_numpy(self._activated(outputs)))

    def _activated(self, outputs: F32) -> F32:
        from veil.kernels.cpu.local_rows import activate_row

        out = np.empty((*outputs.shape[:-1], outputs.shape[-1] // 2), np.float32)
        activate_row(outputs.reshape(-1), self._kind, True, out.reshape(-1))
        return out

    def _agrees(self) -> bool:
        """Whether the module's own forward hands the same to its last layer."""
        width = self._module.down_proj.in_features
        for both in rows_to_try(2 * width):
            gate, up = torch.from_numpy(both[None, :width]), torch.from_numpy(both[None, width:])
            stand = Stand(self._module, gate_proj=lambda x, own=gate: own, up_proj=lambda x, own=up: own, down_proj=_same)
            found = type(self._module).forward(stand, gate)
            if not close(self._activated(both[None]), found):
                return False
        return True


def gated_step(module: nn.Module) -> GatedStep | None:
    """The step of a module that reads nothing but the four parts of a gated MLP, or None."""
    fits = names_read(module) == _NAMES and module._modules.keys() >= _NAMES
    return GatedStep(module) if fits and "forward" not in module.__dict__ else None


def _same(x: torch.Tensor) -> torch.Tensor:
    return x
