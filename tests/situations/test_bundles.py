"""Bundles open and answer as what they were made of, or are refused when they are saved."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from situations.small import IDS, SIZES, bert, compiled, llama, model_of
from veil import HybridFHEModel
from veil.bundle.terms import Terms
from veil.errors import BundleError, RemoteWeightError
from veil.runtime.modules import linear_modules

WEAK = Terms(no_cryptography=True)
MAMBA = {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "expand": 2}
MAMBA2 = MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}
SAVED: list[tuple[str, dict[str, Any]]] = [("MambaForCausalLM", MAMBA), ("Mamba2ForCausalLM", MAMBA2)]
SAVED += [("T5EncoderModel", {"vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4})]


@pytest.mark.parametrize(("name", "settings"), SAVED, ids=[name for name, _ in SAVED])
def test_models_that_look_at_a_layer_s_type(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Mamba reads lm_head.weight.dtype, T5 wo.weight.dtype. Tried by hand: 'NoneType' object has no attribute 'dtype'."""
    model = model_of(name, **settings)
    names = [own for own in linear_modules(model) if not own.endswith("dt_proj")]  # Mamba multiplies with that weight itself
    hybrid = compiled(model, names, IDS, "disable")
    hybrid.save(tmp_path / "b")
    opened = HybridFHEModel.load(tmp_path / "b", terms=WEAK)
    with torch.no_grad():
        torch.testing.assert_close(opened(IDS)[0], hybrid(IDS)[0], atol=1e-4, rtol=1e-4)


def test_an_encoder_without_its_pooler(tmp_path: Path) -> None:
    """`add_pooling_layer=False` is no setting of a configuration, and the command line loads encoders with it."""
    from transformers import BertModel

    model = BertModel(bert().config, add_pooling_layer=False).eval()
    hybrid = compiled(model, linear_modules(model), IDS, "disable")
    hybrid.save(tmp_path / "b")
    opened = HybridFHEModel.load(tmp_path / "b", terms=WEAK)
    with torch.no_grad():
        torch.testing.assert_close(opened(IDS)[0], hybrid(IDS)[0], atol=1e-4, rtol=1e-4)


def refused(hybrid: HybridFHEModel, folder: Path, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        hybrid.save(folder)
    assert not (folder / "client").exists()
    assert not (folder / "server").exists()


def test_weights_that_a_model_changes_when_it_first_runs(tmp_path: Path) -> None:
    """RWKV scales weights at its first pass; transformers #23468, where eight-bit layers broke on it."""
    settings = {"vocab_size": 64, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "rescale_every": 1}
    model = model_of("RwkvForCausalLM", **settings)
    hybrid = compiled(model, linear_modules(model), IDS)
    with torch.no_grad():
        got, expected = hybrid(IDS).logits, hybrid(IDS, fhe="torch").logits
    assert (got - expected).abs().max() < 0.2 * expected.abs().max()
    refused(hybrid, tmp_path / "b", "a bundle of this RwkvForCausalLM would not run .*use it in this process")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_adapters_over_the_base_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """peft #1932, flair #3623: names with base_layer. Tried by hand: 'Linear has no attribute base_layer' when opened."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    base = model.get_base_model()
    hybrid = compiled(base, linear_modules(base), IDS, "disable")
    with caplog.at_level(logging.WARNING, "veil"):
        hybrid.save(tmp_path / "b")
    assert "the bundle holds the model without its adapters; save those with save_pretrained" in caplog.text
    opened = HybridFHEModel.load(tmp_path / "b", terms=WEAK)
    model.save_pretrained(tmp_path / "a")
    with torch.no_grad(), model.disable_adapter():
        plain = hybrid(IDS).logits
    with torch.no_grad():
        torch.testing.assert_close(opened(IDS).logits, plain, atol=1e-4, rtol=1e-4)
        again = peft.PeftModel.from_pretrained(opened.model, str(tmp_path / "a"))
        torch.testing.assert_close(again(IDS).logits, hybrid(IDS).logits, atol=1e-4, rtol=1e-4)
        assert (plain - hybrid(IDS).logits).abs().max() > 0.1
    again.save_pretrained(tmp_path / "again")
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    merged = model.merge_and_unload()
    compiled(merged, linear_modules(merged), IDS, "disable").save(tmp_path / "m")
    assert HybridFHEModel.load(tmp_path / "m", terms=WEAK)(IDS).logits.shape == (1, 4, 64)


def test_changes_that_no_configuration_holds(tmp_path: Path) -> None:
    """A hook that moves outputs, another activation: the bundle would answer something else. Tried by hand."""
    for change in (steer, swap):
        model = llama()
        change(model)
        hybrid = compiled(model, linear_modules(model), IDS, "disable")
        refused(hybrid, tmp_path / change.__name__, "a bundle of this LlamaForCausalLM would answer something else")


def steer(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, out: out + 0.9)


def swap(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def test_modules_that_no_configuration_makes(tmp_path: Path) -> None:
    """A head of one's own, under a name with a space. Tried by hand: it was saved, and did not open."""
    model = llama()
    model.extra = nn.ModuleDict({"my head": nn.Linear(64, 3)})
    hybrid = compiled(model, linear_modules(llama()), IDS, "disable")
    refused(hybrid, tmp_path / "b", "a bundle of this LlamaForCausalLM would not open")


def test_a_name_with_a_space_is_refused_when_it_is_compiled() -> None:
    """The protocol's names are letters, digits, points and hyphens."""
    model = nn.ModuleDict({"my head": nn.Linear(6, 3)})
    model.forward = lambda x: model["my head"](x)
    with pytest.raises(ValueError, match="'my head' cannot be a remote layer's name"):
        HybridFHEModel(model, ["my head"])


def test_save_pretrained_keeps_the_original_names(tmp_path: Path) -> None:
    """Tried by hand: names with .inner. in them, which load as random weights."""
    for make, name in ((llama, "LlamaForCausalLM"), (mixture, "MixtralForCausalLM")):
        import transformers

        model = make()
        with torch.no_grad():
            expected = make()(IDS).logits
        compiled(model, linear_modules(model), IDS, "disable")
        model.save_pretrained(tmp_path / name)
        back = getattr(transformers, name).from_pretrained(tmp_path / name)
        with torch.no_grad():
            torch.testing.assert_close(back(IDS).logits, expected)


def mixture() -> Any:
    return model_of("MixtralForCausalLM", **SIZES, num_local_experts=3, num_experts_per_tok=2)


def test_a_client_s_half_is_no_checkpoint(tmp_path: Path) -> None:
    """It has no weights of the remote layers, so a folder made of it would load random ones."""
    model = llama()
    compiled(model, linear_modules(model), IDS, "disable").save(tmp_path / "b")
    opened: Any = HybridFHEModel.load(tmp_path / "b", terms=WEAK)
    with pytest.raises(RemoteWeightError, match="on the server"):
        opened.model.save_pretrained(tmp_path / "c")


def test_generation_settings_that_transformers_warns_of_are_saved(tmp_path: Path) -> None:
    """transformers #25388: Llama 2 came with a temperature and without sampling. Tried by hand: six lines of ValueError."""
    model = llama()
    model.generation_config.temperature = 0.3
    hybrid = compiled(model, linear_modules(model), IDS, "disable")
    hybrid.save(tmp_path / "bundle")
    opened = HybridFHEModel.load(tmp_path / "bundle", terms=Terms(no_cryptography=True))
    config: Any = opened.model.generation_config
    assert (config.temperature, config.do_sample) == (0.3, model.generation_config.do_sample)
    opened.set_fhe_mode("disable")
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    made: Any = opened.model.generate
    assert torch.equal(made(IDS, **settings), model.generate(IDS, **settings))


def test_what_cannot_be_written_is_told_in_a_line_and_leaves_nothing(tmp_path: Path) -> None:
    """Tried by hand: 'Object of type object is not JSON serializable', and "'str' has no attribute 'save_pretrained'"."""
    model = llama()
    hybrid = compiled(model, ["lm_head"], IDS, "disable")
    with pytest.raises(TypeError, match="tokenizer is a str, expected a tokenizer or processor of transformers"):
        hybrid.save(tmp_path / "one", tokenizer="a name")  # type: ignore[arg-type]
    model.config.mine = object()
    with pytest.raises(BundleError, match=r"configuration cannot be written \(TypeError: .*\); take that out of it$"):
        hybrid.save(tmp_path / "two")
    assert not list(tmp_path.glob("*/*"))
