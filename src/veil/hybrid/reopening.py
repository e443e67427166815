"""Whether a bundle that was just written opens, and answers as the model did that it was made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from veil.bundle.terms import Terms
from veil.errors import BundleError, VeilError, one_line
from veil.runtime.adapters import adapters_off, base_of

if TYPE_CHECKING:
    from veil.hybrid.bundles import Bundles

_TOKENS = 8
_log = logging.getLogger("veil")
_REMEDY = "something of it is neither in its configuration nor in its weights; use it in this process, or save a plain model"
_ALL = Terms(no_cryptography=True, expert_leak="reveal")

Sample = tuple[tuple[object, ...], dict[str, object]]


def shortened(sample: Sample) -> Sample:
    """A call with one sequence of a few tokens, where its inputs are sequences of tokens; else as it is."""
    args, kwargs = sample
    values = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    if not values or not all(value.ndim == 2 and not value.is_floating_point() for value in values):
        return sample

    def cut(value: object) -> object:
        return value[:1, :_TOKENS].clone() if isinstance(value, torch.Tensor) else value

    return tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}


def check_reopens(hybrid: Bundles, folder: Path, sample: Sample | None) -> None:
    """`BundleError` unless the client half in ``folder`` opens and gives ``sample`` the answer that ``hybrid`` gives it.

    Both run in mode ``disable``, without adapters, which a bundle does not hold; a warning says so. Without a sample the
    half is opened only.
    """
    from veil.runtime import saved_model

    name = type(hybrid.model).__name__
    try:
        opened = saved_model.load_client(folder, _ALL, verify=False)
    except VeilError as error:
        raise BundleError(f"a bundle of this {name} would not open ({one_line(error)}): {_REMEDY}") from None
    if sample is None:
        return
    args, kwargs = sample
    expected = _answer(hybrid, args, kwargs)
    try:
        got = _answer(hybrid.reopened(opened), args, kwargs)
    except Exception as error:  # whatever a model does that misses a part of itself
        raise BundleError(f"a bundle of this {name} would not run ({one_line(error)}): {_REMEDY}") from None
    if not _same(expected, got):
        raise BundleError(f"a bundle of this {name} would answer something else: {_REMEDY}")


def _answer(hybrid: Bundles, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    training = hybrid.model.training
    hybrid.model.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), hybrid.mode_of_call("disable"):
            torch.manual_seed(0)
            with adapters_off(hybrid.model) as any_adapters:
                if any_adapters:
                    _log.warning("the bundle holds the model without its adapters; save those with save_pretrained")
                return base_of(hybrid.model)(*args, **kwargs)
    finally:
        hybrid.model.train(training)


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or one.shape != other.shape or one.dtype != other.dtype:
            return False
        coarse = 1e-4 if one.dtype in (torch.float32, torch.float64) else 3e-2
        return torch.allclose(one.cpu().float(), other.cpu().float(), rtol=coarse, atol=coarse, equal_nan=True)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and set(one) == set(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return isinstance(other, tuple | list) and len(one) == len(other) and all(map(_same, one, other))
    return True  # caches and the like: what they hold is seen in the outputs
