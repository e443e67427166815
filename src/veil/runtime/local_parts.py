"""What of a model stays with the client although it multiplies: said with its share of the parameters."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

_LEAST_SHARE = 0.005
_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_log = logging.getLogger("veil")


@dataclass(frozen=True)
class LocalPart:
    """Modules of one kind and place that are not remote: ``name`` with * for numbers, and their share of all parameters."""

    name: str
    kind: str
    share: float

    def __str__(self) -> str:
        return f"{self.name or 'the module itself'} ({self.kind}, {100 * self.share:.1f} % of the parameters)"


def local_parts(model: nn.Module, remote: Iterable[str]) -> tuple[LocalPart, ...]:
    """The parts with matrices that none of the modules named ``remote`` hold, largest first; lookup tables are none.

    Parts under 0.5 % of the model's parameters are left out. Shared parameters count once.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    inside = {id(part) for name in remote for part in modules[name].modules()}
    taken = {id(p) for name in remote for p in modules[name].parameters()}
    total = sum(parameter.numel() for parameter in model.parameters())
    found: dict[tuple[str, str], int] = {}
    for name, module in model.named_modules():
        if id(module) in inside or isinstance(module, nn.Embedding):
            continue
        own = [p for p in module._parameters.values() if p is not None and p.ndim >= 2 and id(p) not in taken]
        taken |= {id(p) for p in own}
        if own:
            key = (_NUMBER.sub(".*", name), type(module).__name__)
            found[key] = found.get(key, 0) + sum(p.numel() for p in own)
    parts = [LocalPart(name, kind, count / total) for (name, kind), count in found.items()]
    return tuple(sorted((part for part in parts if part.share >= _LEAST_SHARE), key=lambda part: -part.share))


def tell_local_parts(model: nn.Module, remote: Iterable[str]) -> None:
    """Log what stays with the client, as a warning: a user who asked for every layer should know."""
    parts = local_parts(model, remote)
    if parts:
        shown = ", ".join(map(str, parts[:3])) + (f" and {len(parts) - 3} more kinds" if len(parts) > 3 else "")
        _log.warning("not remote, and computed by the client: %s", shown)
