"""Shorter ways for a pass of one row: what the model's own modules give, and these wherever anything differs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from veil import HybridFHEModel
from veil.errors import StreamChanged
from veil.params import Params
from veil.runtime.modules import select_modules
from veil.runtime.row_attention import AttentionStep
from veil.runtime.row_norms import NormStep, local_step

TINY = Params.insecure_tiny(signal_db=60.0)
PROMPT = torch.arange(3, 12).unsqueeze(0)
LATER = torch.tensor([7, 41, 5, 19, 33, 8])


def compiled(model: Any, **options: Any) -> HybridFHEModel:
    made = HybridFHEModel(model, select_modules(model, "linear"))
    made.compile_model(torch.arange(1, 25).unsqueeze(0), params=TINY, **options)
    made.set_fhe_mode("disable")
    return made


def steps_of(hybrid: HybridFHEModel) -> dict[str, Any]:
    found: dict[str, Any] = hybrid._calls.passes.row_steps
    return found


def decoded(model: Any, cache: Any = None, count: int = len(LATER)) -> tuple[torch.Tensor, Any]:
    """Logits [count, vocabulary] of passes of one row after the prompt, and the cache."""
    logits = []
    with torch.no_grad():
        if cache is None:
            cache = model(PROMPT, use_cache=True).cache
        for token in LATER[:count]:
            logits.append(model(token.view(1, 1), cache=cache, use_cache=True).logits[0, -1])
    return torch.stack(logits), cache


def plainly(hybrid: HybridFHEModel, call: Callable[[], Any]) -> Any:
    """What the call gives without the shorter ways."""
    steps = steps_of(hybrid).values()
    before = [step.usable for step in steps]
    try:
        for step in steps:
            step.usable = False
        return call()
    finally:
        for step, usable in zip(steps, before, strict=True):
            step.usable = usable


def used(hybrid: HybridFHEModel) -> set[str]:
    """The kinds of steps that are in use."""
    return {type(step).__name__ for step in steps_of(hybrid).values() if step.usable}


@pytest.fixture(scope="module", params=["llama", "gpt2", "llama, norms fused"])
def hybrid(request: pytest.FixtureRequest, new_model: Callable[[str], Any]) -> HybridFHEModel:
    name, _, fused = request.param.partition(", ")
    made = compiled(new_model(name), fuse_norms="auto" if fused else "off")
    assert any(group.fusion for group in made.manifest.groups) == bool(fused)
    return made


def test_a_token_is_what_the_modules_make_of_it(hybrid: HybridFHEModel) -> None:
    logits, cache = decoded(hybrid.model)
    expected, own = plainly(hybrid, lambda: decoded(hybrid.model))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=2e-3)  # what is rounded to integers now and then differs
    for layer, other in zip(cache.layers, own.layers, strict=True):
        assert layer.get_seq_length() == PROMPT.shape[1] + len(LATER)
        torch.testing.assert_close(layer.keys, other.keys, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(layer.values, other.values, rtol=1e-3, atol=2e-3)
    between = "GatedStep" if isinstance(hybrid.model, LlamaForCausalLM) else "ActivationStep"
    assert used(hybrid) == {"NormStep", "AttentionStep", between}
    assert all(step.usable for step in steps_of(hybrid).values())


def test_fused_groups_are_asked_by_rows(hybrid: HybridFHEModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer before a norm asks, and those behind it are answered together, without torch's slower way."""
    _, cache = decoded(hybrid.model, count=1)
    router = hybrid.sides.router
    assert router is not None
    monkeypatch.setattr(router, "linear", None)
    decoded(hybrid.model, cache)


@pytest.mark.parametrize("part", ["self_attn", "post_attention_layernorm"])
def test_a_stream_that_was_changed_stops_a_row(part: str, new_model: Callable[[str], Any]) -> None:
    hybrid = compiled(new_model("llama"), fuse_norms="auto")
    _, cache = decoded(hybrid.model, count=2)

    def steer(module: nn.Module, args: Any, result: Any) -> Any:
        return (result[0] + 1, *result[1:]) if isinstance(result, tuple) else result + 1

    hybrid.model.get_submodule(f"model.layers.0.{part}").register_forward_hook(steer)
    with pytest.raises(StreamChanged, match="fuse_norms='off'"):
        decoded(hybrid.model, cache)


def test_every_remote_layer_is_asked(hybrid: HybridFHEModel) -> None:
    decoded(hybrid.model, count=1)
    asked = set(hybrid._calls.passes.asked)
    plainly(hybrid, lambda: decoded(hybrid.model, count=1))
    assert asked == hybrid._calls.passes.asked


def test_what_is_no_row_of_a_pass_goes_through_the_modules(hybrid: HybridFHEModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode ``torch``, several rows, several sequences, masks, and gradients."""
    decoded(hybrid.model, count=1)
    answers: list[object] = []
    for kind in {type(step) for step in steps_of(hybrid).values()}:
        original = kind.answer

        def watched(*args: Any, original: Any = original) -> object:
            answers.append(original(*args))
            return answers[-1]

        monkeypatch.setattr(kind, "answer", watched)
    model: Any = hybrid.model
    with torch.no_grad():
        model(PROMPT)
        both = model(PROMPT.repeat(2, 1), use_cache=True).cache
        model(LATER[:1].repeat(2, 1), cache=both, use_cache=True)
    assert all(answer is None for answer in answers)
    hybrid.set_fhe_mode("torch")
    try:
        before = len(answers)
        decoded(model, count=1)
        assert len(answers) == before
    finally:
        hybrid.set_fhe_mode("disable")
    name = next(name for name, step in steps_of(hybrid).items() if isinstance(step, NormStep))
    x = torch.ones(1, 1, model.config.hidden_size, requires_grad=True)
    model.get_submodule(name)(x).sum().backward()
    assert x.grad is not None


def test_padded_tokens_are_masked(new_model: Callable[[str], Any]) -> None:
    """With a mask the modules' own attention is asked: a step does not know of it."""
    hybrid = compiled(new_model("llama"))
    mask = torch.ones(1, PROMPT.shape[1] + 1, dtype=torch.long)
    mask[0, :3] = 0

    def last() -> torch.Tensor:
        with torch.no_grad():
            cache = hybrid.model(PROMPT, attention_mask=mask[:, :-1], use_cache=True).cache
            logits: torch.Tensor = hybrid.model(LATER[:1].view(1, 1), attention_mask=mask, cache=cache).logits
            return logits

    torch.testing.assert_close(last(), plainly(hybrid, last), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_on_inner_modules_still_run(new_model: Callable[[str], Any], kind: str) -> None:
    hybrid = compiled(new_model("llama"))
    decoded(hybrid.model, count=1)
    seen: list[str] = []
    for name, module in hybrid.model.named_modules():
        if name.endswith((".q_proj", ".up_proj", ".act_fn", "norm", ".self_attn", ".mlp", ".o_proj")):
            getattr(module, f"register_{kind}")(lambda *_, name=name: seen.append(name))
    plainly(hybrid, lambda: decoded(hybrid.model, count=2))
    expected = list(seen)
    seen.clear()
    decoded(hybrid.model, count=2)
    assert seen == expected


def test_weights_of_norms_may_change(new_model: Callable[[str], Any]) -> None:
    hybrid = compiled(new_model("llama"))
    decoded(hybrid.model, count=1)
    norm: Any = hybrid.model.get_submodule("model.norm")
    norm.weight.data.mul_(3.0)
    torch.testing.assert_close(
        decoded(hybrid.model)[0], plainly(hybrid, lambda: decoded(hybrid.model)[0]), rtol=1e-3, atol=5e-3
    )
    norm.weight = nn.Parameter(torch.rand(32))
    torch.testing.assert_close(
        decoded(hybrid.model)[0], plainly(hybrid, lambda: decoded(hybrid.model)[0]), rtol=1e-3, atol=5e-3
    )


def test_copies_of_a_norm_have_a_weight_of_their_own(new_model: Callable[[str], Any]) -> None:
    """As peft makes them of ``modules_to_save``."""
    hybrid = compiled(new_model("llama"))
    norm: Any = hybrid.model.get_submodule("model.norm")
    x = torch.ones(1, 1, 32)
    with torch.no_grad():
        for copied in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
            copied.weight.zero_()
            assert not copied(x).any()
        assert norm(x).any()


def test_a_cache_may_be_copied_and_cropped(hybrid: HybridFHEModel) -> None:
    """Two answers that go on from one prompt do not write over each other's rows."""
    expected, cache = decoded(hybrid.model, count=3)
    twin, shallow = copy.deepcopy(cache), copy.copy(cache)
    shallow.layers = [copy.copy(layer) for layer in cache.layers]
    held = [layer.keys.clone() for layer in cache.layers]
    again = [decoded(hybrid.model, own)[0] for own in (cache, twin, shallow)]
    torch.testing.assert_close(again[0], again[1])
    torch.testing.assert_close(again[0], again[2])
    for layer, keys in zip(twin.layers, held, strict=True):
        torch.testing.assert_close(layer.keys[:, :, : keys.shape[2]], keys)
    rows = len(LATER) + 3
    for layer in cache.layers:
        layer.crop(-rows)
    view = cache.layers[0].keys
    torch.testing.assert_close(decoded(hybrid.model, cache, count=3)[0], expected)
    torch.testing.assert_close(view, held[0][:, :, : PROMPT.shape[1]])


class OtherNorm(nn.Module):
    """Named like a norm, and none for large rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)).clamp(-1, 1)


OtherNorm.__name__ = "OtherRMSNorm"


def test_what_only_looks_like_a_norm_is_left_alone() -> None:
    step = local_step(OtherNorm())
    assert isinstance(step, NormStep)
    assert not step.agrees()


def sized(config: Any, **changes: Any) -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return config(**sizes, num_key_value_heads=2, initializer_range=0.2, **changes)


@pytest.mark.parametrize(
    ("kind", "config", "special"),
    [
        (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),  # norms on queries and keys, which the step does not know of
        (MistralForCausalLM, MistralConfig, {"sliding_window": 4}),  # a cache of another kind
    ],
)
def test_other_attentions_keep_their_own_code(kind: Any, config: Any, special: dict[str, int]) -> None:
    hybrid = compiled(kind(sized(config, **special)).eval())
    found = decoded(hybrid.model)[0]
    assert not any(step.usable for step in steps_of(hybrid).values() if isinstance(step, AttentionStep))
    torch.testing.assert_close(found, plainly(hybrid, lambda: decoded(hybrid.model)[0]), rtol=1e-3, atol=5e-3)


def test_an_attention_with_another_scale_than_it_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's own code is tried, whatever its names promise."""
    from transformers.models.llama import modeling_llama

    rotate = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: rotate(q * 1.01, k, cos, sin))
    hybrid = compiled(LlamaForCausalLM(sized(LlamaConfig)).eval())
    decoded(hybrid.model, count=1)
    assert [step.usable for step in steps_of(hybrid).values() if isinstance(step, AttentionStep)] == [False, False]
