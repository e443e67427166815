"""The models that are measured: by name, from a folder, or a series of widths. Shapes need no weights: speed is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from veil.bench.record import Subject
from veil.bundle.manifest import Manifest
from veil.progress import Progress
from veil.runtime.layers import RemoteLayer, float_weight_shape, kind_of

if TYPE_CHECKING:
    from veil.typing import LanguageModel

SHAPES = {
    "gpt2": "the shapes of GPT-2 124M, random weights",
    "llama-1b": "the shapes of Llama-3.2-1B, random weights",
}

SERIES_LAYERS = 4
SERIES_VOCABULARY = 32000
_SERIES_STEP = 256


@dataclass(eq=False)
class Loaded:
    """A model in evaluation mode, float32, what to call it and where it is from."""

    name: str
    origin: str
    model: LanguageModel

    def __post_init__(self) -> None:
        config = self.model.config.get_text_config()
        self.hidden_size = int(config.hidden_size)
        self.most_rows: int | None = getattr(config, "max_position_embeddings", None)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())


def load(name: str, progress: Progress | None = None) -> Loaded:
    """``gpt2`` or ``llama-1b`` with random weights, or what `veil.sources.models.load_model` takes: ``smollm2``, a
    folder.
    """
    if name in SHAPES:
        if progress:
            progress(f"making {SHAPES[name]}", 0, 1)
        return Loaded(name, SHAPES[name], _random({"gpt2": _gpt2, "llama-1b": _llama_1b}[name]))
    from veil.sources.models import load_model

    source = load_model(name, progress=progress)
    return Loaded(source.name, source.origin, source.model)


def of_width(width: int) -> Loaded:
    """A Llama of four layers of this hidden size (a multiple of 256), MLP four times as wide, 32,000 tokens."""
    check_width(width)
    sizes = {"num_hidden_layers": SERIES_LAYERS, "vocab_size": SERIES_VOCABULARY}
    model = _random(lambda: _llama(width, 4 * width, heads=width // 64, kv_heads=width // 256, **sizes))
    return Loaded(f"width-{width}", f"Llama of {SERIES_LAYERS} layers, hidden size {width}", model)


def check_width(width: int) -> None:
    """`ValueError` for a width that `of_width` does not make."""
    if width < _SERIES_STEP or width % _SERIES_STEP:
        raise ValueError(f"a width of {width} is not a multiple of {_SERIES_STEP}; try 512,1024,2048,4096")


def release_floats(model: nn.Module) -> None:
    """Drop the float weights of the remote layers, which a client does not hold."""
    for module in model.modules():
        if isinstance(module, RemoteLayer):
            module.inner = None


def layer_shapes(model: nn.Module) -> tuple[tuple[int, int, int], ...]:
    """(width, outputs, how many) of the linear layers, the head included, in the model's order."""
    counts: Counter[tuple[int, int]] = Counter()
    for module in model.modules():
        kind = kind_of(module)
        if kind is None or kind == "embedding":
            continue
        outputs, width = float_weight_shape(module, kind)
        counts[width, outputs] += 1
    return tuple((width, outputs, count) for (width, outputs), count in counts.items())


def describe(loaded: Loaded, manifest: Manifest) -> Subject:
    """The record's part about the model, from what was compiled."""
    layers = [layer for group in manifest.forward for layer in group.layers]
    counts = Counter((layer.in_features, layer.out_features) for layer in layers)
    return Subject(
        name=loaded.name,
        origin=loaded.origin,
        parameters=loaded.parameters,
        remote_weights=sum(group.rows * group.width for group in manifest.forward),
        remote_layers=len(layers),
        round_trips=len(manifest.forward),
        inputs=manifest.total_inputs,
        outputs=manifest.total_slots,
        hidden_size=loaded.hidden_size,
        shapes=tuple((width, outputs, count) for (width, outputs), count in counts.items()),
    )


def _random(make: Callable[[], LanguageModel]) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def _gpt2() -> LanguageModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def _llama_1b() -> LanguageModel:
    return _llama(2048, 8192, heads=32, kv_heads=8, num_hidden_layers=16, vocab_size=128256)


def _llama(width: int, inner: int, *, heads: int, kv_heads: int, **more: int) -> LanguageModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        **more,
    )
    return LlamaForCausalLM(config)
