"""`HybridFHEModel`: every mode, every kind of layer, every kind of generation, and every error by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from comparing import decibels, remote_names, used_rows
from veil import HybridFHEModel
from veil.compile.quantize import quantize_weight
from veil.errors import NotCompiled, NotFiniteActivation, VeilError
from veil.params import Params

TINY = Params.insecure_tiny(signal_db=60.0)  # a finer noise than real sets have, so that no near tie is decided by it
PROMPT = torch.tensor([[5, 9, 33, 17]])
MODES = ("torch", "disable", "simulate", "execute")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def hybrids(new_model: Callable[[str], Any]) -> Callable[[str], HybridFHEModel]:
    """Compiled models, one for each family, with every linear layer and the head remote."""
    made: dict[str, HybridFHEModel] = {}

    def make(name: str) -> HybridFHEModel:
        if name not in made:
            model = new_model(name)
            made[name] = HybridFHEModel(model, remote_names(model))
            made[name].compile_model(PROMPT, params=TINY)
        return made[name]

    return make


@pytest.fixture
def hybrid(family: str, hybrids: Callable[[str], HybridFHEModel]) -> HybridFHEModel:
    return hybrids(family)


def linear(seed: int = 0, width: int = 12, rows: int = 7) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, rows)).eval()


def compiled(model: nn.Module, names: Any, x: Any, **settings: Any) -> HybridFHEModel:
    hybrid = HybridFHEModel(model, names)
    hybrid.compile_model(x, params=TINY, **settings)
    return hybrid


# Modes ----------------------------------------------------------------------------------------------------------------


def test_torch_mode_is_the_untouched_model(family: str, hybrid: HybridFHEModel, new_model: Callable[[str], Any]) -> None:
    with torch.no_grad():
        assert torch.equal(hybrid(PROMPT, fhe="torch").logits, new_model(family)(PROMPT).logits)


def test_modes_differ_by_no_more_than_they_should(hybrid: HybridFHEModel) -> None:
    """8-bit weights cost something, the noise less: 25 dB and 50 dB of signal are the least; two encryptions differ."""
    with torch.no_grad():
        logits = {mode: hybrid(PROMPT, fhe=mode).logits for mode in MODES}
        again = {mode: hybrid(PROMPT, fhe=mode).logits for mode in MODES}
    assert decibels(logits["torch"], logits["disable"]) > 25
    for mode in ("simulate", "execute"):
        assert decibels(logits["disable"], logits[mode]) > 50
        assert not torch.equal(logits[mode], again[mode])
    assert torch.equal(logits["disable"], again["disable"])


def test_simulated_noise_is_as_large_as_the_real_one(hybrid: HybridFHEModel) -> None:
    """Error of the first layer's output over 256 rows, simulated against encrypted, within five deviations.

    The ratio of the variances has a standard deviation of 5 % over 32 rows, so of 1.8 % here."""
    measured = {}
    router = hybrid.sides.router
    assert router is not None
    for mode in ("disable", "simulate", "execute"):
        seen: list[torch.Tensor] = []
        router.observer = lambda group, x, outputs, seen=seen: seen.append(outputs) if group == 0 else None
        hybrid(PROMPT.repeat(64, 1), fhe=mode)
        measured[mode] = seen[0].double()
    router.observer = None
    errors = {mode: float((measured[mode] - measured["disable"]).var()) for mode in ("simulate", "execute")}
    assert errors["execute"] == pytest.approx(errors["simulate"], rel=5 * 0.018)


def test_one_call_in_another_mode_returns_to_the_mode_in_force(hybrid: HybridFHEModel) -> None:
    hybrid.set_fhe_mode("disable")
    hybrid(PROMPT, fhe="execute")
    assert hybrid.fhe_mode == "disable"
    with pytest.raises(TypeError):
        hybrid("not a tensor", fhe="torch")
    assert hybrid.fhe_mode == "disable"


def test_execute_makes_the_session_when_it_is_chosen(new_model: Callable[[str], Any], calls: list[Any]) -> None:
    """No key is made inside ``forward``: the session stands before the first one."""
    hybrid = compiled(linear(), "0", torch.ones(1, 12))
    assert calls == []
    hybrid.set_fhe_mode("execute")
    assert [call.method for call in calls][:1] == ["open"]
    opened = len(calls)
    hybrid.set_fhe_mode("torch")
    hybrid.set_fhe_mode("execute")
    assert [call.method for call in calls[opened:]].count("open") == 0


def test_keyword_inputs(hybrid: HybridFHEModel) -> None:
    mask = torch.ones_like(PROMPT)
    hybrid.set_fhe_mode("disable")
    positional = hybrid(PROMPT).logits
    assert torch.equal(hybrid(input_ids=PROMPT, attention_mask=mask).logits, positional)


def test_compiling_with_a_dict_of_inputs(new_model: Callable[[str], Any]) -> None:
    model = new_model("gpt2")
    inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    hybrid = compiled(model, "transformer.h.0.mlp.c_fc", inputs)
    assert [group.name for group in hybrid.manifest.groups] == ["transformer.h.0.mlp.c_fc"]


# Generation -----------------------------------------------------------------------------------------------------------


def generated(hybrid: HybridFHEModel, mode: str, ids: torch.Tensor = PROMPT, **settings: Any) -> list[list[int]]:
    hybrid.set_fhe_mode(mode)
    model: Any = hybrid.model
    tokens = model.generate(input_ids=ids, max_new_tokens=5, min_new_tokens=5, **settings)
    result: list[list[int]] = tokens.tolist()
    return result


def test_greedy_tokens_are_those_of_the_clear_model(hybrid: HybridFHEModel) -> None:
    """The best two logits are far apart on this path (checked), so noise cannot decide between them."""
    clear = generated(hybrid, "disable", do_sample=False)
    model: Any = hybrid.model
    out = model.generate(
        input_ids=PROMPT, max_new_tokens=5, min_new_tokens=5, return_dict_in_generate=True, output_logits=True
    )
    best = torch.stack(out.logits).topk(2).values
    noise = (hybrid(PROMPT, fhe="execute").logits - hybrid(PROMPT, fhe="disable").logits).std()
    assert (best[..., 0] - best[..., 1]).min() > 10 * noise
    assert generated(hybrid, "execute", do_sample=False) == clear


def test_no_answer_asks_for_an_output_by_its_older_name(
    new_model: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would say once, on standard error, that a name is deprecated that no user wrote."""
    said: list[str] = []
    monkeypatch.setattr("transformers.utils.generic.logger.warning_once", lambda text, *_: said.append(text))
    model = new_model("llama")
    hybrid = compiled(model, remote_names(model), PROMPT)
    assert len(generated(hybrid, "execute", do_sample=False)[0]) == 9
    assert said == []


def test_beams_and_padded_batches_run(hybrid: HybridFHEModel) -> None:
    assert len(generated(hybrid, "execute", num_beams=2, do_sample=False)[0]) == 9
    ids = torch.tensor([[2, 2, 5, 6], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    logits = {mode: hybrid(ids, attention_mask=mask, fhe=mode).logits for mode in ("disable", "execute")}
    assert decibels(logits["disable"], logits["execute"]) > 44
    assert [len(row) for row in generated(hybrid, "execute", ids, attention_mask=mask, do_sample=False)] == [9, 9]


def test_sampling_runs(hybrid: HybridFHEModel) -> None:
    rows = generated(hybrid, "execute", do_sample=True, temperature=0.8, top_p=0.9, num_return_sequences=2)
    assert [len(row) for row in rows] == [9, 9]
    assert all(0 <= token < 64 for row in rows for token in row)


def test_a_batch_is_its_rows(hybrid: HybridFHEModel) -> None:
    hybrid.set_fhe_mode("disable")
    both = hybrid(torch.cat([PROMPT, PROMPT.flip(1)])).logits
    torch.testing.assert_close(both[1], hybrid(PROMPT.flip(1)).logits[0], atol=1e-5, rtol=1e-5)


def test_statistics_count_what_happened(hybrid: HybridFHEModel, calls: list[Any]) -> None:
    hybrid.set_fhe_mode("execute")
    hybrid.stats.reset()
    before = hybrid.stats.copy()
    generated(hybrid, "execute", do_sample=False)
    stats = hybrid.stats - before
    assert stats.rows == 4 + 4
    evaluated = [call for call in calls if call.method == "evaluate"]
    assert stats.bytes_up_online == sum(call.args[3].size for call in evaluated)
    assert stats.bytes_down_online == sum(call.reply.size for call in evaluated)
    heads = {i for i, group in enumerate(hybrid.manifest.groups) if group.segment == "head"}
    used = [group for group, _, _ in used_rows(calls)]
    rows = {group: used.count(group) for group in range(len(hybrid.manifest.groups))}
    assert {rows[group] for group in heads} == {5}, "one row of logits a token, none for the rest of the prompt"
    last = {i for i, group in enumerate(hybrid.manifest.groups) if not group.prompt_rows}
    assert last, "the last block's attention output and MLP"
    assert {rows[group] for group in last} == {5}, "nothing reads them but in the last row"
    assert {count for group, count in rows.items() if group not in heads | last} == {8}
    assert all(seconds >= 0 for seconds in stats.seconds.values())
    assert stats.seconds["online_server"] > 0
    assert stats.seconds["client"] > 0
    assert stats.kernels == "cpu"


# Kinds of layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d"])
def test_layers_are_their_integer_weights(kind: str, bits: int) -> None:
    torch.manual_seed(1)
    layer = Conv1D(9, 14) if kind == "conv1d" else nn.Linear(14, 9, bias=kind == "linear")
    layer.weight.data.normal_()
    weight = layer.weight.detach().T if kind == "conv1d" else layer.weight.detach()
    quantized, scale = quantize_weight(np.ascontiguousarray(weight.numpy()), bits)
    bias = 0 if layer.bias is None else layer.bias.detach()
    x = torch.randn(3, 2, 14)
    hybrid = compiled(nn.Sequential(layer), "0", x, n_bits=bits)
    expected = x @ torch.from_numpy(quantized * scale[:, None]).T + bias
    torch.testing.assert_close(hybrid(x, fhe="disable"), expected, atol=1e-4, rtol=1e-4)
    assert decibels(expected, hybrid(x, fhe="execute")) > 30


def test_a_remote_embedding_is_a_row_of_the_integer_table() -> None:
    table = nn.Embedding(20, 10)
    hybrid = compiled(nn.Sequential(table), ["0"], torch.tensor([[1, 2]]))
    ids = torch.tensor([[0, 19, 7], [7, 7, 7]])
    assert hybrid.manifest.groups[0].layers[0].kind == "embedding"
    quantized, scale = quantize_weight(np.ascontiguousarray(table.weight.detach().numpy().T), 8)
    expected = torch.from_numpy((quantized * scale[:, None]).T)[ids]
    torch.testing.assert_close(hybrid(ids, fhe="disable"), expected, atol=1e-4, rtol=1e-4)
    out = hybrid(ids, fhe="execute")
    assert out.shape == (2, 3, 10)
    assert decibels(expected, out) > 30
    with pytest.raises(IndexError):
        hybrid(torch.tensor([[20]]), fhe="execute")


def test_a_model_with_a_remote_embedding_generates(new_model: Callable[[str], Any]) -> None:
    model = new_model("llama")
    hybrid = compiled(model, [*remote_names(model), "model.embed_tokens"], PROMPT)
    assert hybrid.manifest.groups[0].name == "model.embed_tokens"
    logits = {mode: hybrid(PROMPT, fhe=mode).logits for mode in ("disable", "execute")}
    assert decibels(logits["disable"], logits["execute"]) > 50
    assert generated(hybrid, "execute", do_sample=False) == generated(hybrid, "disable", do_sample=False)


def test_no_rows_at_all() -> None:
    hybrid = compiled(linear(), "0", torch.ones(1, 12))
    for mode in MODES:
        assert hybrid(torch.zeros(0, 12), fhe=mode).shape == (0, 7)


def test_bits_by_module_name(new_model: Callable[[str], Any]) -> None:
    model = new_model("llama")
    names = remote_names(model)
    bits = {"model.layers.0.self_attn.q_proj": 4, "lm_head": 6}
    hybrid = compiled(model, names, PROMPT, n_bits=bits)
    held = {layer.name: layer.bits for group in hybrid.manifest.groups for layer in group.layers}
    assert held == dict.fromkeys(names, 8) | bits
    with torch.no_grad():
        coarse, exact = hybrid(PROMPT, fhe="disable").logits, hybrid(PROMPT, fhe="torch").logits
    assert 5 < decibels(exact, coarse) < 40


def test_a_fixed_scale_clips_what_is_longer(device: str) -> None:
    """Without dynamic quantization: linear up to the calibrated norm, and no further."""
    model = linear().to(device)
    (layer,) = model
    assert isinstance(layer, nn.Linear)
    bias = layer.bias.detach()
    x = torch.randn(1, 12, generator=torch.Generator().manual_seed(2)).to(device)
    hybrid = compiled(model, "0", x, use_dynamic_quantization=False, device=device)
    full = hybrid(x, fhe="disable") - bias
    torch.testing.assert_close(hybrid(0.5 * x, fhe="disable") - bias, 0.5 * full, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hybrid(7 * x, fhe="disable") - bias, full, atol=1e-4, rtol=1e-4)
    assert decibels(full, hybrid(7 * x, fhe="execute") - bias) > 30
    dynamic = compiled(linear().to(device), "0", x, device=device)
    torch.testing.assert_close(dynamic(7 * x, fhe="disable") - bias, 7 * full, atol=1e-3, rtol=1e-3)


# Groups ---------------------------------------------------------------------------------------------------------------


def test_layers_that_read_one_tensor_are_one_group(hybrids: Callable[[str], HybridFHEModel]) -> None:
    groups = {group.name.replace("model.layers.0.", ""): group.segment for group in hybrids("llama").manifest.groups}
    assert list(groups)[:4] == [
        "self_attn.q_proj+model.layers.0.self_attn.k_proj+model.layers.0.self_attn.v_proj".replace("model.layers.0.", ""),
        "self_attn.o_proj",
        "mlp.gate_proj+mlp.up_proj",
        "mlp.down_proj",
    ]
    assert [name for name, segment in groups.items() if segment == "head"] == ["lm_head"]
    assert len(groups) == 9


class Two(nn.Module):
    """Two layers that read the same tensor, or do not, as ``apart`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.apart = nn.Linear(6, 4), nn.Linear(6, 4), ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        if self.apart == "copy":
            x = x.clone()
        elif self.apart == "other":
            x = 1 - x
        elif self.apart == "in place":
            x.mul_(-3)
        elif self.apart == "skip":
            return a
        return torch.cat([a, self.b(x)], dim=-1)


@pytest.mark.parametrize("apart", ["", "copy", "other", "in place", "skip"])
def test_a_group_falls_back_to_separate_calls(apart: str, calls: list[Any]) -> None:
    torch.manual_seed(3)
    model = Two()
    hybrid = compiled(model, ["a", "b"], torch.ones(1, 6))
    assert [group.name for group in hybrid.manifest.groups] == ["a+b"]
    x = torch.randn(2, 6)
    model.apart = apart
    with torch.no_grad():
        expected = hybrid(x.clone(), fhe="torch")
        clear = hybrid(x.clone(), fhe="disable")
        out = hybrid(x.clone(), fhe="execute")
    assert decibels(expected, clear) > 30
    assert decibels(clear, out) > 30
    evaluated = [call for call in calls if call.method == "evaluate"]
    assert len(evaluated) == (1 if apart in ("", "skip") else 2)
    used = used_rows(calls)
    assert len(set(used)) == len(used)


def test_a_group_read_again_after_a_skip_is_not_stale() -> None:
    """b is left out of one pass; the next pass must not be given that pass's result."""
    torch.manual_seed(3)
    model = Two()
    hybrid = compiled(model, ["a", "b"], torch.ones(1, 6))
    x = torch.randn(1, 6)
    model.apart = "skip"
    hybrid(x, fhe="disable")
    x.mul_(2)
    model.apart = ""
    with torch.no_grad():
        assert decibels(hybrid(x, fhe="torch"), hybrid(x, fhe="disable")) > 30


# Errors ---------------------------------------------------------------------------------------------------------------


def test_an_unknown_module_is_named_with_the_nearest(tiny_llama: nn.Module) -> None:
    with pytest.raises(
        ValueError,
        match=r"no module named 'model\.layers\.0\.self_attn\.q_prj'; the nearest is 'model\.layers\.0\.self_attn\.q_proj'",
    ):
        HybridFHEModel(tiny_llama, ["lm_head", "model.layers.0.self_attn.q_prj"])


@pytest.mark.parametrize("model", [None, "a path", object(), lambda x: x], ids=["None", "str", "object", "function"])
def test_what_is_not_a_torch_model_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        HybridFHEModel(model, ["a"])


@pytest.mark.parametrize("name", ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.mlp.act_fn"])
def test_a_module_of_another_kind_is_refused(tiny_llama: nn.Module, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is a .*nn.Linear, a Conv1D or an nn.Embedding"):
        HybridFHEModel(tiny_llama, name)


@pytest.mark.parametrize("names", [[], ()])
def test_no_module_is_refused(names: Any) -> None:
    with pytest.raises(ValueError, match="no module names"):
        HybridFHEModel(linear(), names)


def test_a_refused_name_leaves_the_model_as_it_was(new_model: Callable[[str], Any]) -> None:
    model = new_model("llama")
    with pytest.raises(ValueError, match="no module named"):
        HybridFHEModel(model, ["lm_head", "nothing"])
    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_weight_that_is_not_finite_is_named(bad: float, part: str) -> None:
    model = linear()
    getattr(model[0], part).data.view(-1)[3] = bad
    hybrid = HybridFHEModel(model, "0")
    with pytest.raises(ValueError, match=f"0: the {part} holds NaN or infinity"):
        hybrid.compile_model(torch.ones(1, 12), params=TINY)


def test_a_second_compilation_is_refused() -> None:
    hybrid = compiled(linear(), "0", torch.ones(1, 12))
    with pytest.raises(RuntimeError, match="compiled already"):
        hybrid.compile_model(torch.ones(1, 12), params=TINY)


@pytest.mark.parametrize("mode", ["disable", "simulate", "execute", "remote"])
def test_a_mode_before_compiling_is_refused(mode: str) -> None:
    hybrid = HybridFHEModel(linear(), "0")
    with pytest.raises(NotCompiled, match="call compile_model first") as caught:
        hybrid.set_fhe_mode(mode)
    assert isinstance(caught.value, (VeilError, RuntimeError))
    assert hybrid.fhe_mode == "torch"
    with pytest.raises(NotCompiled):
        hybrid(torch.ones(1, 12), fhe=mode)
    hybrid(torch.ones(1, 12))


@pytest.mark.parametrize("use", [lambda h: h.params, lambda h: h.manifest, lambda h: h.hint_bytes, lambda h: h.save("x")])
def test_what_needs_a_compiled_model_says_so(use: Callable[[HybridFHEModel], Any]) -> None:
    with pytest.raises(NotCompiled, match="compile_model"):
        use(HybridFHEModel(linear(), "0"))


@pytest.mark.parametrize("mode", ["", "fhe", "EXECUTE", None])
def test_an_unknown_mode_is_refused(mode: Any) -> None:
    hybrid = compiled(linear(), "0", torch.ones(1, 12))
    with pytest.raises(ValueError, match="expected one of torch, disable, simulate, execute, remote"):
        hybrid.set_fhe_mode(mode)


def test_remote_without_a_server_says_how() -> None:
    hybrid = compiled(linear(), "0", torch.ones(1, 12))
    with pytest.raises(NotCompiled, match="connect"):
        hybrid.set_fhe_mode("remote")


def test_rows_offline_need_a_session() -> None:
    hybrid = compiled(linear(), "0", torch.ones(1, 12))
    with pytest.raises(NotCompiled, match="execute"):
        hybrid.reserve(rows_full=1)


@pytest.mark.parametrize("bits", [1, 9, 0, 4.0, "8", None])
def test_other_bits_are_refused(bits: Any) -> None:
    for n_bits in (bits, {"0": bits}):
        hybrid = HybridFHEModel(linear(), "0")
        with pytest.raises(ValueError, match="expected an integer from 2 to 8"):
            hybrid.compile_model(torch.ones(1, 12), n_bits=n_bits, params=TINY)
        hybrid.compile_model(torch.ones(1, 12), params=TINY)


def test_bits_for_an_unknown_module_are_refused() -> None:
    hybrid = HybridFHEModel(linear(), "0")
    with pytest.raises(ValueError, match="n_bits names '1', which is not a remote module"):
        hybrid.compile_model(torch.ones(1, 12), n_bits={"1": 4}, params=TINY)


@pytest.mark.parametrize("mode", ["disable", "simulate", "execute"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_activation_that_is_not_finite_stops_the_pass(mode: str, bad: float) -> None:
    hybrid = compiled(linear(), "0", torch.ones(1, 12))
    x = torch.ones(2, 12)
    x[1, 5] = bad
    with pytest.raises(NotFiniteActivation, match="NaN or infinity reached 0"):
        hybrid(x, fhe=mode)
    assert torch.isfinite(hybrid(torch.ones(2, 12), fhe=mode)).all()


def test_an_unknown_device_is_refused() -> None:
    hybrid = HybridFHEModel(linear(), "0")
    with pytest.raises(ValueError, match="device is 'tpu'"):
        hybrid.compile_model(torch.ones(1, 12), params=TINY, device="tpu")
    hybrid.compile_model(torch.ones(1, 12), params=TINY, device="reference")
    assert hybrid.stats.kernels == "reference"


def test_the_reference_kernels_run_a_whole_model() -> None:
    hybrid = compiled(linear(), "0", torch.ones(1, 12), device="reference")
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    assert decibels(hybrid(x, fhe="disable"), hybrid(x, fhe="execute")) > 30


def test_progress_is_told_of_the_long_work() -> None:
    stages: list[tuple[str, int, int]] = []
    hybrid = HybridFHEModel(linear(), "0")
    hybrid.compile_model(torch.ones(1, 12), params=TINY, progress=lambda *stage: stages.append(stage))
    hybrid.set_fhe_mode("execute")
    names = {stage for stage, _, _ in stages}
    assert {"quantizing", "hint of the body"} <= names
    assert all(0 <= done <= total for _, done, total in stages)


def test_hint_memory_is_known_before_it_is_built() -> None:
    hybrid = compiled(linear(), "0", torch.ones(1, 12))
    expected = hybrid.hint_bytes
    hybrid.set_fhe_mode("execute")
    engine = hybrid.sides.engine
    assert engine is not None
    assert engine.hint.nbytes == expected
