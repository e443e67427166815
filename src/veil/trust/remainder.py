"""What a client half computes itself: its tensors, its configuration and its tokenizer, against the trusted model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from veil.errors import HalfDiffers, one_line
from veil.progress import Progress
from veil.runtime.saved_model import Opened
from veil.sources.models import load_settings
from veil.sources.quiet import quiet
from veil.trust.trusted import TrustedWeights

if TYPE_CHECKING:
    from veil.typing import Config, LanguageModel, Tokenizer

_NOT_COMPUTED = frozenset(
    (
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "quantization_config",
    )
)
"""Fields of a configuration that change no result."""


def check_rest(opened: Opened, source: str, weights: TrustedWeights, progress: Progress) -> list[str]:
    """What could not be checked, in words; raises `HalfDiffers` for the first thing that is not the trusted model's."""
    config, tokenizer = load_settings(source, progress)
    _check_config(opened.model.config, config, weights.origin)
    unchecked = _check_tensors(opened.model, config, weights)
    unchecked += _check_tokenizer(opened.tokenizer, tokenizer, weights.origin)
    return [*unchecked, "divisors of inputs and corrections of biases, within what rounding explains"]


def _check_config(own: Config, trusted: Config, origin: str) -> None:
    found, expected = own.to_dict(), trusted.to_dict()
    names = sorted(set(found) | set(expected))
    other = [name for name in names if name not in _NOT_COMPUTED and found.get(name) != expected.get(name)]
    if other:
        raise HalfDiffers(f"the half's configuration has another {other[0]} than {origin}; distrust who made it")


def _check_tensors(model: LanguageModel, config: Config, weights: TrustedWeights) -> list[str]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    made: dict[str, torch.Tensor] | None = None
    unknown = []
    for name, own in named:
        trusted = weights.tensor(name)
        if trusted is None:
            made = _made_by_the_class(type(model), config) if made is None else made
            trusted = made.get(name)
        if trusted is None:
            unknown.append(name)
            continue
        if trusted.shape != own.shape or not torch.equal(trusted.to(own.dtype), own):
            raise HalfDiffers(f"the half's {name} is not that of {weights.origin}; distrust who made it")
    return [f"the half's {unknown[0]} and {len(unknown) - 1} more tensors"] if unknown else []


def _made_by_the_class(kind: type[LanguageModel], config: Config) -> dict[str, torch.Tensor]:
    """Buffers that a model computes from its configuration; parameters take no memory."""
    try:
        with quiet(), _parameters_without_memory(), torch.random.fork_rng(devices=[]):
            model = kind._from_config(config)
    except Exception:  # a class that cannot be made like this has no buffers to compare with
        return {}
    return {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if not buffer.is_meta}


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = registered  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _check_tokenizer(own: Tokenizer | None, trusted: Tokenizer | None, origin: str) -> list[str]:
    if own is None:
        return []
    if trusted is None:
        return ["the tokenizer and its chat template"]
    try:
        same = own.get_vocab() == trusted.get_vocab() and _pieces(own) == _pieces(trusted)
    except Exception as error:  # somebody else's tokenizer
        raise HalfDiffers(f"the half's tokenizer cannot be compared ({one_line(error)})") from None
    if not same:
        raise HalfDiffers(f"the half's tokenizer is not that of {origin}; distrust who made it")
    if (own.chat_template or None) != (trusted.chat_template or None):
        raise HalfDiffers(f"the half's chat template is not that of {origin}; distrust who made it")
    return []


def _pieces(tokenizer: object) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "" if backend is None else str(backend.to_str())
