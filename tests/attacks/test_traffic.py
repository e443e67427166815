"""A model that would ask the server differently for different texts: what is asked is fixed by the number of rows alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LongformerConfig, LongformerForQuestionAnswering

from veil import HybridFHEModel, linear_modules
from veil.errors import NotFiniteActivation, UnevenTraffic, VeilError
from veil.params import Params
from veil.runtime.router import Router
from veil.runtime.traffic import Traffic

TINY = Params.insecure_tiny(signal_db=60.0)
WIDTH = 12
Asked = list[tuple[int, int]]


class Two(nn.Module):
    """Two layers behind a first one, whose output decides what happens to them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)))


class EarlyExit(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return hidden if x[0, 0] > 0 else self.third(self.second(hidden))


class Depths(Two):
    """Some rows pass the second layer by."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        chosen = x[:, 0] > 0
        hidden[chosen] = self.second(hidden[chosen])
        return self.third(hidden)


class Order(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        swapped = x[0, 0] > 0
        return self.third(self.second(hidden)) if swapped else self.second(self.third(hidden))


class Again(Two):
    """A layer is asked once more, for a tensor with the same values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.third(self.second(hidden) if x[0, 0] > 0 else self.second(self.second(hidden)))


class Failing(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if x[0, 0] > 0:
            raise RuntimeError("a program that fails for some texts")
        return self.third(self.second(hidden))


class NotFinite(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.third(self.second(hidden / (x[:, :1] < 0)))


MODELS = (EarlyExit, Depths, Order, Again, Failing, NotFinite)
INPUTS = [torch.full((4, WIDTH), 0.5), torch.full((4, WIDTH), -0.5)]


def opened(model: nn.Module) -> HybridFHEModel:
    hybrid = HybridFHEModel(model.eval(), ["first", "second", "third"])
    hybrid.compile_model(torch.full((4, WIDTH), -0.4), params=TINY, device="cpu")
    hybrid.set_fhe_mode("execute")
    return hybrid


def asked_for(hybrid: HybridFHEModel, x: torch.Tensor, asked: Asked) -> tuple[Asked, bool]:
    """What the server wrote down of a pass, and whether it failed."""
    asked.clear()
    try:
        hybrid(x)
    except (VeilError, RuntimeError, NotFiniteActivation):
        return list(asked), True
    return list(asked), False


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_asked_does_not_depend_on_the_values(kind: type[Two], asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    hybrid = opened(kind())
    seen = [asked_for(hybrid, x, asked) for x in INPUTS]
    assert seen[0][0] == seen[1][0] != []
    assert seen[0][1] or seen[1][1], "a pass that deviates is an error"
    monkeypatch.setattr(Traffic, "run", lambda self, entry, forward, args, kwargs, training: forward(*args, **kwargs))
    shown = [asked_for(hybrid, x, asked) for x in INPUTS]
    assert shown[0] != shown[1], "the attack does not work without the rule either"


def test_the_error_says_what_and_what_to_do() -> None:
    hybrid = opened(Order())
    with pytest.raises(UnevenTraffic, match=r"second was called where third was due.*Distrust who made the model") as caught:
        hybrid(INPUTS[0])
    assert "\n" not in str(caught.value)
    hybrid(INPUTS[1])  # the next pass is another one


def test_a_plan_is_rehearsed_without_sending_anything(asked: Asked) -> None:
    hybrid = opened(Two())
    hybrid(INPUTS[0])
    assert asked == [(0, 4), (1, 4), (2, 4)]
    assert hybrid.stats.trips == 3


def test_a_model_that_counts_its_rows_by_the_text_is_refused_before_anything_is_sent(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longformer gives the question's tokens a layer of their own: rows up to a token that the half names."""
    config = LongformerConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        attention_window=[4],
        max_position_embeddings=40,
        sep_token_id=7,
    )
    model = LongformerForQuestionAnswering(config).eval()
    prompts = [torch.full((1, 8), 20), torch.full((1, 8), 20)]
    prompts[0][0, [1, 2, 7]] = prompts[1][0, [4, 5, 7]] = 7
    hybrid = HybridFHEModel(model, linear_modules(model))
    hybrid.compile_model(prompts[0], params=TINY, device="cpu")
    hybrid.set_fhe_mode("execute")
    for prompt in prompts:
        with pytest.raises(UnevenTraffic, match="cannot be told beforehand: a pass with zeros fails"):
            hybrid(prompt)
    assert not asked
    monkeypatch.setattr(Traffic, "run", lambda self, entry, forward, args, kwargs, training: forward(*args, **kwargs))
    seen = [asked_for(hybrid, prompt, asked) for prompt in prompts]
    assert seen[0] != seen[1]


def poisoned(half: Path) -> None:
    """A word whose embedding is not finite: a pass over it would end at the first layer."""
    for file in half.rglob("*.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if name.endswith("embed_tokens.weight")]:
            tensors[name][33] = torch.nan
            save_file(tensors, file)
            return
    raise AssertionError("the half has no embedding")


def test_a_half_cannot_end_a_pass_at_a_word(
    llama: Any, forged: Callable[..., Any], serve: Any, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = forged(llama, poisoned)
    prompts = [torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 33, 7, 8]])]

    def seen(prompt: torch.Tensor) -> Asked:
        remote = bad.connect(server.port)
        asked.clear()
        try:
            remote.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1)
        except NotFiniteActivation:
            assert prompt is prompts[1]
        remote.close()
        return list(asked)

    with serve(bad) as server:
        views = [seen(prompt) for prompt in prompts]
        assert views[0] == views[1] != []
        monkeypatch.setattr(Router, "finish", lambda *_: None)
        assert seen(prompts[1]) != views[0]
