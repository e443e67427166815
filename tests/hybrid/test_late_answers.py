"""What kernels that answer late, as a GPU's do, say of a pass: at its end, never not at all, and of no other pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from veil.errors import StreamChanged
from veil.hybrid import model as hybrid_module
from veil.hybrid.model import HybridFHEModel
from veil.kernels.reference_kernels import ReferenceKernels
from veil.params import Params
from veil.runtime.modules import select_modules

TINY = Params.insecure_tiny(signal_db=60.0)
IDS, OTHER = torch.tensor([[5, 9, 11]]), torch.tensor([[7, 2, 3]])


class LateKernels(ReferenceKernels):
    """NumPy's kernels, of which nobody asks a thing before a pass ends."""

    asks_cheaply = False


class Push:
    """A hook that adds to what a module adds to the stream, in those of its calls that it is told."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: set[int] = set()
        self._seen = 0
        module.register_forward_hook(self._hook)

    def begin(self, *calls: int) -> None:
        """Add in these calls, counted from now on."""
        self.calls, self._seen = set(calls), 0

    def _hook(self, module: nn.Module, args: Any, result: Any) -> Any:
        by = 0.5 * (self._seen in self.calls)
        self._seen += 1
        return (result[0] + by, *result[1:])


class Cancelled(Exception):
    """What ends a pass in the middle."""


class Pair(nn.Module):
    """The difference of a model's logits for two texts, or those for one."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base

    def forward(self, ids: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        logits: torch.Tensor = self.base(ids, use_cache=False).logits
        return logits if other is None else logits - self.base(other, use_cache=False).logits


class Wrapper(nn.Module):
    """It asks the encoder by itself and then the model, which are planned one after the other, as within adapters."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base_model = base
        self.peft_config: dict[str, object] = {}

    def get_base_model(self) -> Any:
        return self.base_model

    def forward(self, ids: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        encoded = self.base_model.get_encoder()(input_ids=ids)
        logits: torch.Tensor = self.base_model(encoder_outputs=encoded, decoder_input_ids=first, use_cache=False).logits
        return logits


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., HybridFHEModel]]:
    """Compiles a model with fused norms for late kernels."""
    monkeypatch.setattr(hybrid_module, "kernels_for", lambda device: LateKernels())
    made: list[HybridFHEModel] = []

    def compiled(model: nn.Module, *sample: torch.Tensor) -> HybridFHEModel:
        hybrid = HybridFHEModel(model, select_modules(model, "linear"))
        hybrid.compile_model(sample, params=TINY, fuse_norms="auto")
        assert any(group.fusion for group in hybrid.manifest.groups)
        made.append(hybrid)
        return hybrid

    with torch.no_grad():
        yield compiled
    for hybrid in made:
        hybrid.close()


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("mode", ["disable", "execute"])
def test_of_a_norm_that_a_pass_comes_to_twice_no_answer_is_lost(
    mode: str, call: int, fused: Callable[..., HybridFHEModel], new_model: Callable[[str], Any]
) -> None:
    model = Pair(new_model("gpt2")).eval()
    push = Push(model.base.transformer.h[0].attn)
    hybrid = fused(model, IDS)
    hybrid.set_fhe_mode(mode)
    expected = model(IDS, OTHER)
    push.begin(call)
    with pytest.raises(StreamChanged, match=r"on its way to base\.transformer\.h\.0\.ln_2"):
        model(IDS, OTHER)
    push.begin()
    torch.testing.assert_close(model(IDS, OTHER), expected, rtol=0, atol=0.1)


def test_what_a_pass_noted_is_asked_before_a_later_part_of_it_is_rehearsed(fused: Callable[..., HybridFHEModel]) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    model = Wrapper(T5ForConditionalGeneration(T5Config(vocab_size=64, **sizes))).eval()
    push = Push(model.base_model.encoder.block[0].layer[0])
    first = torch.tensor([[0, 3]])
    hybrid = fused(model, IDS, first)
    hybrid.set_fhe_mode("execute")
    for call in (1, 0):  # the first pass is rehearsed before
        push.begin(call)
        with pytest.raises(StreamChanged, match="on its way to"):
            model(IDS, first)
    push.begin()
    model(IDS, first)


def test_a_pass_in_inference_mode_leaves_nothing_that_later_ones_cannot_write_to(
    fused: Callable[..., HybridFHEModel], new_model: Callable[[str], Any]
) -> None:
    hybrid = fused(new_model("gpt2"), IDS)
    for mode in ("disable", "execute"):
        hybrid.set_fhe_mode(mode)
        for inference in (True, False, True):
            with torch.inference_mode(inference):
                hybrid.model(IDS)


def test_a_pass_that_failed_leaves_no_question_to_the_next(
    fused: Callable[..., HybridFHEModel], new_model: Callable[[str], Any]
) -> None:
    model = new_model("gpt2")
    states: list[str] = []

    def spoil(module: nn.Module, args: Any, result: Any) -> Any:
        by = {"infinite": torch.inf, "pushed": 0.5}.get(states[-1], 0.0) if states else 0.0
        return (result[0] + by, *result[1:])

    def cancel(module: nn.Module, args: Any, result: Any) -> None:
        if states and states[-1] != "left alone":
            raise Cancelled

    model.transformer.h[0].attn.register_forward_hook(spoil)
    hybrid = fused(model, IDS)
    hybrid.set_fhe_mode("execute")
    expected = model(IDS).logits
    model.transformer.h[1].mlp.register_forward_hook(cancel)
    for state in ("infinite", "pushed"):
        states.append(state)
        with pytest.raises(Cancelled):
            model(IDS)
        states.append("left alone")
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0.1)
