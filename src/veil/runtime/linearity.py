"""Whether a module computes its weight times the input plus its bias, and nothing else: found by trying."""

from __future__ import annotations

import torch
from torch import nn

_MAGNITUDES = (0.0, 1e-3, 1.0, 1e2, 1e4)
_ALLOWED = {torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""What rounding may change of a row, as a share of its largest output; 1e-3 for other types."""


def is_plain(module: nn.Module) -> bool:
    """Whether it runs the ``forward`` of nn.Linear or of transformers' Conv1D, so that nothing needs to be tried."""
    conv1d = f"{type(module).__module__}.{type(module).__name__}" == "transformers.pytorch_utils.Conv1D"
    return (conv1d or type(module).forward is nn.Linear.forward) and "forward" not in module.__dict__


def check_linear(module: nn.Module, weight: torch.Tensor) -> None:
    """Try a ``forward`` of its own on rows from zero to 10,000, together, alone and in a sequence; hooks do not run.

    ``weight`` is [out, in] of any float dtype. Raises `ValueError` for a module that gives what no linear layer would.
    """
    if is_plain(module):
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        rows = (
            torch.randn(len(_MAGNITUDES), weight.shape[1], device="cpu") * torch.tensor(_MAGNITUDES, device="cpu")[:, None]
        )
        rows = rows.to(weight)
        bias = getattr(module, "bias", None)
        expected = (rows @ weight.T if bias is None else rows @ weight.T + bias).float()
        tries = [rows, rows[None], *torch.split(rows, 1)]
        for part, right in zip(tries, [expected, expected[None], *torch.split(expected, 1)], strict=True):
            if not _fits(_tried(module, part), right, _ALLOWED.get(weight.dtype, 1e-3)):
                raise ValueError(
                    f"a {type(module).__name__} computes more than a linear layer; leave it out of module_names"
                )


def check_table(module: nn.Module, ids: torch.Tensor, table: torch.Tensor) -> None:
    """`ValueError` for an embedding whose row for a token id depends on its place or on its neighbours.

    ``table`` [rows, width] is its answer to ``ids`` [rows], all of them in order.
    """
    if type(module).forward is nn.Embedding.forward and "forward" not in module.__dict__:
        return
    some = ids[:: max(1, len(ids) // 16)].flip(0)
    for part in (some, some[None], some[:1], torch.cat([some, some])):
        got = _tried(module, part)
        if not isinstance(got, torch.Tensor) or not torch.equal(got, table[part]):
            raise ValueError(
                f"a {type(module).__name__} computes more than a row for each token id; leave it out of module_names"
            )


def _tried(module: nn.Module, rows: torch.Tensor) -> object:
    try:
        return module.forward(rows.clone())
    except Exception:  # whatever a module of its own kind wants that a linear layer does not
        return None


def _fits(got: object, expected: torch.Tensor, allowed: float) -> bool:
    if not isinstance(got, torch.Tensor) or got.shape != expected.shape:
        return False
    known = expected.isfinite().all(-1)
    most = allowed * expected.abs().amax(-1, keepdim=True) + 1e-7
    return bool(((got.float() - expected).abs() <= most)[known].all())
