"""A remote layer that is not asked, or is asked for something else: the right result, or a refusal that names it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from situations.small import IDS, SIZES, TINY, assert_near, compiled, inputs, llama, model_of, seeded, two_layers
from veil import HybridFHEModel
from veil.cli import app
from veil.errors import ModelChanged, RemoteWeightError
from veil.runtime.linearity import check_linear
from veil.runtime.local_parts import local_parts
from veil.runtime.modules import linear_modules

# Fast paths -----------------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.encoder(x)


@pytest.mark.parametrize("mode", ["disable", "execute"])
def test_torch_s_fast_path_asks_the_remote_layers(mode: str) -> None:
    """It reads `.weight` and calls no layer. pytorch #128413, #82919: hooks on such layers never run."""
    model = seeded(Encoder)
    names = [f"encoder.layers.{layer}.linear{part}" for layer in (0, 1) for part in (1, 2)]
    x = inputs(1, 7 * 16).view(1, 7, 16)
    with torch.inference_mode():
        expected = model(x)
        hybrid = compiled(model, names, x, mode)
        hybrid.stats.rows = 0
        got = hybrid(x)
    assert_near(got, expected)
    assert hybrid.stats.rows == (7 if mode == "execute" else 0)
    assert hybrid.sides.router is not None
    asked: set[int] = set()
    hybrid.sides.router.observer = lambda group, x, outputs: asked.add(group)
    hybrid(x)
    assert asked == set(range(4))


class Around(nn.Module):
    """Multiplies with a layer's weight itself, from its second pass on if ``late``, else always."""

    def __init__(self, *, late: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.around = not late

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.linear.weight) if self.around else self.linear(x)


def test_a_weight_that_is_multiplied_with_is_refused() -> None:
    """state-spaces/mamba #59: fused functions take the layers' weights."""
    with pytest.raises(ValueError, match="uses the weight of 'linear' without calling it; leave it out of module_names"):
        compiled(Around(late=False), "linear", inputs())
    late = Around(late=True)
    hybrid = compiled(late, "linear", inputs())
    late.around = True
    with pytest.raises(ModelChanged, match="uses the weight of 'linear' without calling it"):
        hybrid(inputs())
    late.around = False
    assert hybrid(inputs()).shape == (3, 5)


def test_a_weight_shows_its_type_and_place_but_no_values() -> None:
    model = two_layers()
    compiled(model, ["0"], inputs(), "disable")
    weight = model[0].weight
    assert isinstance(weight, torch.Tensor)
    assert (weight.dtype, weight.device.type, tuple(weight.shape)) == (torch.float32, "cpu", (8, 6))
    assert torch.ones(2, dtype=torch.float16).to(weight).dtype == torch.float32
    assert torch.equal(weight.new_zeros(3), torch.zeros(3))
    x = torch.ones(1, 6)
    reads: list[Callable[[], object]] = [
        lambda: weight.numpy(),
        lambda: weight.tolist(),
        lambda: weight[0],
        lambda: weight.sum().item(),
    ]
    reads += [lambda: x @ weight.T, lambda: nn.functional.linear(x, 2 * weight.data.clone() + 1), lambda: weight.abs()]
    reads += [lambda: torch.einsum("oi,ri->ro", weight, x), lambda: nn.functional.normalize(weight), lambda: list(weight)]
    reads += [lambda: torch.cat([weight, weight]), lambda: torch.save(weight, io.BytesIO())]
    for read in reads:
        with pytest.raises(ModelChanged, match="the weight of '0'"):
            read()


def test_adapters_take_the_norms_of_a_weight_and_no_more() -> None:
    """DoRA divides by the norms of what it adds up to. `peft` reads `weight`, adds its own, takes the norm of each row."""
    model: Any = two_layers()
    right, added = model[0].weight.detach().clone(), torch.ones(8, 6)
    compiled(model, ["0"], inputs(), "disable")
    weight = model[0].weight
    got = torch.linalg.norm(weight.to(torch.float32) + 0.5 * added, dim=1)
    assert torch.equal(got, (right + 0.5 * added).norm(dim=1)) and type(got) is torch.Tensor
    assert weight.requires_grad_(False) is weight
    for write in (lambda: weight.add_(1), lambda: weight.data.copy_(added), lambda: setattr(model[0], "weight", added)):
        with pytest.raises(RemoteWeightError, match="the weight of 0 is on the server, so nothing can be merged into it"):
            write()
    assert torch.equal(model[0].inner.weight, right)


def test_a_layer_that_was_put_in_the_place_of_a_remote_one_is_noticed() -> None:
    """resize_token_embeddings and set_output_embeddings do that. Tried by hand: the new head was float, unsaid."""
    model = llama()
    hybrid = compiled(model, linear_modules(model), IDS, "disable")
    hybrid(IDS)
    model.set_output_embeddings(nn.Linear(32, 64, bias=False))
    with pytest.raises(ModelChanged, match="'lm_head' was not asked in this pass"):
        hybrid(IDS)
    with pytest.raises(ModelChanged, match="'lm_head' was not asked"):
        model.generate(input_ids=IDS, max_new_tokens=2, do_sample=False)


def body(model: Any) -> None:
    model.model = llama().model


def block(model: Any) -> None:
    model.model.layers[1] = llama().model.layers[1]


@pytest.mark.parametrize("put", [body, block], ids=lambda put: put.__name__)
def test_a_part_that_was_put_in_the_place_of_one_with_remote_layers_is_noticed(put: Callable[[Any], None]) -> None:
    """pytorch #37151's kind: what stands around a replaced layer is replaced in turn. Tried by hand: float, unsaid."""
    model = llama()
    hybrid = compiled(model, linear_modules(model), IDS, "disable")
    put(model)
    with pytest.raises(ModelChanged, match=r"'model\.layers\.\d.*' was not asked in this pass"):
        hybrid(IDS)


@pytest.mark.parametrize("places", [[0, 0], [0]], ids=["repeated", "cut off"])
def test_layers_that_are_cut_off_or_repeated_are_no_bypass(places: list[int]) -> None:
    """Pruned and stacked models: what remains is asked. Tried by hand."""
    model = llama()
    hybrid = compiled(model, linear_modules(model), IDS, "execute")
    model.model.layers = nn.ModuleList(model.model.layers[place] for place in places)
    with torch.no_grad():
        assert_near(hybrid(IDS, use_cache=False).logits, hybrid(IDS, use_cache=False, fhe="torch").logits, 0.1)


@pytest.mark.parametrize("mode", ["disable", "execute"])
def test_a_forward_that_was_replaced_is_noticed_unless_it_calls_the_old_one(mode: str) -> None:
    """accelerate and others wrap `model.forward`. Tried by hand: one that took its place ran in float, unsaid."""
    model = llama()
    hybrid = compiled(model, linear_modules(model), IDS, mode)
    with torch.no_grad():
        expected = hybrid(IDS, fhe="torch").logits
        ours: Any = model.forward
        floats: Any = llama().forward
        model.forward = lambda *args, **options: ours(*args, **options)
        assert_near(hybrid(IDS).logits, expected, 0.1)
        model.forward = lambda *args, **options: floats(*args, **options)
        options: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False}
        calls: list[Callable[[], Any]] = [lambda: hybrid(IDS), lambda: model.generate(input_ids=IDS, **options)]
        for call in calls:
            with pytest.raises(ModelChanged, match="the forward of this model was replaced after it was wrapped"):
                call()
        assert torch.equal(hybrid(IDS, fhe="torch").logits, expected)


# Hooks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["torch", "disable", "execute"])
def test_hooks_of_a_linear_layer_run_in_every_mode(mode: str) -> None:
    """pytorch #37151: hooks on a layer that is replaced were lost; activations are steered and read with them."""
    model = two_layers()
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2 + 1,))
    handle = model[2].register_forward_hook(lambda module, args, out: out - module.in_features)
    x = inputs(32)
    with torch.no_grad():
        expected = model(x)
    hybrid = compiled(model, ["0", "2"], x, mode)
    model[2].register_forward_hook(lambda module, args, out: out + 100)
    with torch.no_grad():
        assert_near(hybrid(x) - 100, expected)
        handle.remove()
        assert_near(hybrid(x) - 100, expected + 8)


def test_weight_norm_and_pruning_keep_their_weights() -> None:
    """Both are hooks that make the weight anew before each call. Tried by hand."""
    from torch.nn.utils import prune
    from torch.nn.utils.parametrizations import weight_norm

    model = two_layers()
    weight_norm(model[0])
    prune.l1_unstructured(model[2], "weight", amount=0.5)  # type: ignore[no-untyped-call]
    x = inputs(32)
    with torch.no_grad():
        expected = model(x)
        assert_near(compiled(model, ["0", "2"], x)(x), expected)


# Weights that change --------------------------------------------------------------------------------------------------


def change_in_place(model: Any) -> None:
    with torch.no_grad():
        model[0].inner.weight.add_(0.5)


def change_data(model: Any) -> None:
    model[0].inner.weight.data += 0.5


def change_data_in_place(model: Any) -> None:
    model[0].inner.weight.data.mul_(1.5)


def load_others(model: Any) -> None:
    model.load_state_dict(two_layers(3).state_dict())


def set_another(model: Any) -> None:
    model[0].weight = nn.Parameter(torch.ones(8, 6))


CHANGES = [change_in_place, change_data, change_data_in_place, load_others, set_another]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_weights_that_change_after_compiling_are_noticed(change: Any) -> None:
    """Tried by hand: execute went on with the old ones."""
    model = two_layers()
    hybrid = compiled(model, ["0", "2"], inputs(), "disable")
    hybrid(inputs())
    hybrid.set_fhe_mode("torch")
    change(model)
    for mode in ("disable", "execute"):
        with pytest.raises(ModelChanged, match="the weights of '0' changed after compiling"):
            hybrid(inputs(), fhe=mode)
    hybrid(inputs(), fhe="torch")


def test_what_does_not_change_values_goes_on() -> None:
    """The same values again, another float type, no gradients."""
    model = two_layers()
    hybrid = compiled(model, ["0", "2"], inputs(), "disable")
    expected = hybrid(inputs())
    model.load_state_dict(two_layers().state_dict())
    assert torch.equal(hybrid(inputs()), expected)
    model.requires_grad_(False)
    assert torch.equal(hybrid(inputs()), expected)
    model.to(torch.bfloat16)
    assert_near(hybrid(inputs().bfloat16()), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_adapters_that_are_merged_after_compiling_are_noticed() -> None:
    """`merge_adapter` adds to the base weights and turns the adapters off. Tried by hand: execute lost them."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        expected = model(IDS).logits
    hybrid = compiled(model, linear_modules(model), IDS, "disable")
    assert_near(hybrid(IDS).logits, expected, 0.2)
    with pytest.raises(
        RemoteWeightError, match=r"the weight of model\.layers\.0\.self_attn\.q_proj is on the server, so nothing"
    ):
        model.merge_adapter()
    hybrid.set_fhe_mode("torch")
    model.merge_adapter()
    with pytest.raises(ModelChanged, match=r"weights of '.*q_proj' changed after compiling"):
        hybrid(IDS, fhe="execute")


# Layers that compute something else, or that calibration did not see --------------------------------------------------


class Clipped(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.clamp(-4, 4))


class Normed(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) if len(input) == 1 else super().forward(input - input.mean(0))


class Quantized(nn.Linear):
    """Rounds its input to eight bits of the largest value of all rows, as quantization-aware training does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        step = input.abs().max().clamp(min=1e-9) / 127
        return super().forward((input / step).round() * step)


class Named(nn.Linear):
    """Only its name differs."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)


@pytest.mark.parametrize("kind", [Clipped, Normed, Quantized])
def test_a_layer_that_does_more_is_refused_by_name(kind: type[nn.Linear]) -> None:
    """Tried by hand: a check of one small row took them for linear."""
    model = seeded(lambda: nn.Sequential(kind(6, 5), nn.Linear(5, 3)))
    with pytest.raises(ValueError, match=f"0: a {kind.__name__} computes more than a linear layer; leave it out"):
        compiled(model, ["0"], inputs())
    assert linear_modules(model) == ["1"]


class Placed(nn.Embedding):
    """Adds up the rows so far: what a token gets depends on the tokens before it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).cumsum(-2)


class Scaled(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


def test_an_embedding_that_looks_at_places_is_refused() -> None:
    """Tried by hand: execute answered with twice the largest value as error. One that scales rows (Gemma) is taken."""
    ids = torch.tensor([[0, 8, 3]])
    with pytest.raises(ValueError, match="0: a Placed computes more than a row for each token id; leave it out"):
        compiled(nn.Sequential(Placed(9, 6), nn.Linear(6, 3)), ["0", "1"], ids)
    scaled = seeded(lambda: nn.Sequential(Scaled(9, 6), nn.Linear(6, 3)))
    with torch.no_grad():
        expected = scaled(ids)
        assert_near(compiled(scaled, ["0", "1"], ids)(ids), expected)


def test_tensors_without_values_are_refused() -> None:
    """Tried by hand: torch.func.vmap ended in 'Cannot access data pointer of Tensor that doesn't have storage'."""
    hybrid = compiled(two_layers(), ["0", "2"], inputs(), "disable")
    for attempt in (lambda: torch.func.vmap(hybrid.model)(inputs()), lambda: hybrid(inputs().to("meta"))):
        with pytest.raises(TypeError, match=r"0 was given a tensor without values"):
            attempt()  # type: ignore[no-untyped-call]


def test_a_layer_that_only_has_another_name_is_taken() -> None:
    layer = seeded(lambda: Named(6, 5))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check_linear(layer.to(dtype), layer.weight.detach())
    patched: Any = two_layers()
    patched[0].forward = lambda x: nn.Linear.forward(patched[2], x[..., :1].expand(*x.shape[:-1], 8))
    assert linear_modules(patched) == ["2"]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, text: torch.Tensor, image: torch.Tensor | None = None) -> torch.Tensor:
        out: torch.Tensor = self.text(text)
        return out if image is None else out + self.image(image)


def test_static_quantization_of_a_layer_that_was_not_reached_is_refused() -> None:
    """LLaVA compiled on text alone. Tried by hand: its output was 0. Dynamic scales need no sample."""
    x = inputs(32)
    with pytest.raises(ValueError, match="calibration did not reach 'image', so its inputs have no scale"):
        compiled(Branches(), ["text", "image"], x, use_dynamic_quantization=False)
    model = seeded(Branches)
    with torch.no_grad():
        expected = model(x, x.flip(0))
        assert_near(compiled(model, ["text", "image"], x)(x, x.flip(0)), expected)


MIXTURE = SIZES | {"num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 1}


def test_static_scales_of_experts_that_no_row_went_to_are_refused() -> None:
    """Where only routed experts are asked, three tokens reach some of them. Tried by hand: the others answered zeros."""
    for leak in ("none", "reveal"):
        model = model_of("MixtralForCausalLM", **MIXTURE)
        hybrid = HybridFHEModel(model, linear_modules(model), expert_leak=leak)
        settings: dict[str, Any] = {"params": TINY, "use_dynamic_quantization": False}
        if leak == "none":  # every expert reads every row, and some give it nothing but zeros behind their gate
            downs = r"model\.layers\.\d\.mlp\.experts\.down_proj\.\d"
            with pytest.raises(ValueError, match=rf"nothing but zeros to '{downs}', so its inputs have no scale"):
                hybrid.compile_model(IDS[:, :3], **settings)
        else:
            with pytest.raises(
                ValueError, match=r"calibration did not reach '\S*\.experts\.\S+', so its inputs have no scale"
            ):
                hybrid.compile_model(IDS[:, :3], **settings)
    model = model_of("MixtralForCausalLM", **MIXTURE)
    hybrid = HybridFHEModel(model, linear_modules(model), expert_leak="reveal")
    hybrid.compile_model(IDS[:, :3], params=TINY)
    ids = torch.arange(3, 19)[None]  # to experts that calibration did not see, too
    with torch.no_grad():
        assert_near(hybrid(ids, fhe="execute").logits, hybrid(ids, fhe="torch").logits, 0.3)


# What stays with the client -------------------------------------------------------------------------------------------

MOE = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 1}
DBRX: dict[str, Any] = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64, "max_seq_len": 64}
DBRX |= {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}}
DBRX |= {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}}
JETMOE = SIZES | {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
LOCAL = [
    ("Llama4ForCausalLM", MOE | {"head_dim": 8, "intermediate_size_mlp": 48}, "Llama4TextExperts"),
    ("DbrxForCausalLM", DBRX, "DbrxExpertGLU"),
    ("JetMoeForCausalLM", JETMOE, "JetMoeParallelExperts"),
]


@pytest.mark.parametrize(("name", "settings", "kind"), LOCAL, ids=[name for name, _, _ in LOCAL])
def test_experts_that_stay_local_are_said(
    name: str, settings: dict[str, Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Tried by hand: 66 to 88 % of the parameters of such mixtures stayed with the client without a word."""
    model = model_of(name, **settings)
    with caplog.at_level(logging.WARNING, "veil"):
        names = linear_modules(model)
    parts = local_parts(model, names)
    assert parts[0].kind == kind
    assert parts[0].share > 0.3
    assert f"{kind}, {100 * parts[0].share:.1f} % of the parameters" in caplog.text
    assert sum(part.share for part in local_parts(model, [])) == pytest.approx(1, abs=0.25)


def test_nothing_is_said_of_a_model_that_is_remote_whole(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "veil"):
        assert local_parts(llama(), linear_modules(llama())) == ()
    assert caplog.text == ""


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_adapters_stay_local_by_default() -> None:
    """A user's LoRA weights are the user's. Tried by hand: 8 of 23 remote layers were adapters."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    names = linear_modules(peft.get_peft_model(llama(), settings))
    assert len(names) == 14
    assert not [name for name in names if "lora" in name or "lm_head" in name]
    assert sum(name.endswith("base_layer") for name in names) == 4


# Routers --------------------------------------------------------------------------------------------------------------

ROUTED = [
    ("Llama4ForCausalLM", MOE | {"head_dim": 8, "intermediate_size_mlp": 48}),
    ("PhimoeForCausalLM", MOE | {"num_experts_per_tok": 2}),
]


@pytest.mark.parametrize(("name", "settings"), ROUTED, ids=[name for name, _ in ROUTED])
def test_routers_that_give_tuples_stay_local_and_the_family_works(name: str, settings: dict[str, Any]) -> None:
    """ModelCloud/GPTQModel #2744, transformers #44588: routers that are nn.Linear and give several tensors."""
    model = model_of(name, **settings)
    names = linear_modules(model)
    routers = [own for own, part in model.named_modules() if "Router" in type(part).__name__]
    assert routers
    assert not set(routers) & set(names)
    hybrid = HybridFHEModel(model, names)
    hybrid.compile_model(IDS, params=TINY)
    with torch.no_grad():
        logits = {mode: hybrid(IDS, fhe=mode).logits for mode in ("torch", "disable", "execute")}
    assert_near(logits["execute"], logits["disable"], 0.1)
    assert_near(logits["disable"], logits["torch"], 0.3)
    with pytest.raises(ValueError, match=f"{routers[0]}: a .*Router computes more than a linear layer"):
        compiled(model_of(name, **settings), [routers[0]], IDS)


@pytest.mark.parametrize(("name", "settings"), ROUTED, ids=[name for name, _ in ROUTED])
def test_the_command_line_compiles_such_families(
    name: str, settings: dict[str, Any], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """Tried by hand: `veil compile` ended in a traceback, "'tuple' object has no attribute 'detach'"."""
    small = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 128}
    model = model_of(name, **settings | small | {"head_dim": 4, "num_local_experts": 2})
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    made = CliRunner().invoke(app, ["compile", str(tmp_path / "model"), str(tmp_path / "bundle"), "--json"])
    assert made.exit_code == 0, made.output
    summary = json.loads(made.stdout)
    routers = [own for own, part in model.named_modules() if "Router" in type(part).__name__]
    assert summary["local_modules"][-1]["name"].replace("*", "0") in routers
    hybrid = HybridFHEModel.load(tmp_path / "bundle")
    assert len(hybrid.module_names) == summary["remote_modules"] > 0
    assert not set(routers) & set(hybrid.module_names)
    with torch.no_grad():
        assert_near(hybrid(IDS, fhe="disable").logits, model(IDS).logits, 0.3)
