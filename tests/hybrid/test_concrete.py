"""A user of Concrete ML changes the import: each argument and call of theirs works, or is refused in one line."""

from __future__ import annotations

import enum
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from veil import HybridFHEMode, HybridFHEModel, linear_modules
from veil.bundle.terms import Terms
from veil.errors import NotCompiled
from veil.params import Params

TINY = Params.insecure_tiny(signal_db=60.0)
X = torch.linspace(-1, 1, 24).reshape(2, 12)


def small(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))
        return nn.Sequential(block, nn.LayerNorm(12), nn.Linear(12, 7)).eval()


def compiled(names: Any = ("0.0", "0.2", "2"), *more: Any, **options: Any) -> HybridFHEModel:
    hybrid = HybridFHEModel(small(), names, *more, **options)
    hybrid.compile_model(X, params=TINY)
    return hybrid


@pytest.fixture(scope="module")
def hybrid() -> HybridFHEModel:
    return compiled()


# The constructor ---------------------------------------------------------------------------------------------------------


def test_arguments_that_change_nothing_are_taken() -> None:
    assert compiled("2", None, "my model", True, 0).model_name == "my model"
    named = {"server_remote_address": None, "model_name": "m", "optimized_linear_execution": True, "verbose": False}
    hybrid = compiled("2", **named)
    assert (hybrid.model_name, hybrid.module_names) == ("m", ["2"])
    assert compiled("2").model_name == "model"


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"server_remote_address": "http://0.0.0.0:8000"}, "HybridFHEModel.connect"),
        ({"optimized_linear_execution": False}, "leave it out"),
    ],
)
def test_arguments_that_mean_nothing_here_name_veil_s_way(options: dict[str, Any], way: str) -> None:
    with pytest.raises(ValueError, match=re.escape(way)) as caught:
        HybridFHEModel(small(), "2", **options)
    assert next(iter(options)) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        HybridFHEModel(small(), "2", colour="blue")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="at most 6 arguments"):
        HybridFHEModel(small(), "2", None, "model", True, 0, None)  # type: ignore[call-arg, arg-type]


def test_verbose_names_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    compiled("2", verbose=1)
    said = capsys.readouterr()
    assert said.err.splitlines().count("veil: quantizing") == 1 and not said.out
    compiled("2")
    assert not capsys.readouterr().err


def test_a_composite_module_means_its_linear_layers(new_model: Callable[[str], Any]) -> None:
    hybrid = HybridFHEModel(new_model("gpt2"), ["transformer.h.0.mlp", "transformer.h.1.attn.c_attn"])
    mlp = ["transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"]
    assert hybrid.module_names == [*mlp, "transformer.h.1.attn.c_attn"]
    assert compiled("0").module_names == ["0.0", "0.2"]
    assert compiled(["0", "0.2"]).module_names == ["0.0", "0.2"], "named twice, remote once"
    with pytest.raises(ValueError, match="'1' is a LayerNorm"):
        HybridFHEModel(small(), "1")


# compile_model -----------------------------------------------------------------------------------------------------------


def test_options_of_compiling_that_change_nothing_are_taken() -> None:
    hybrid = HybridFHEModel(small(), ["2"])
    hybrid.compile_model(  # type: ignore[call-arg]  # what only Concrete ML has
        X,
        n_bits=8,
        rounding_threshold_bits=None,
        p_error=None,
        device="cpu",
        configuration=None,
        use_dynamic_quantization=False,
        params=TINY,
    )
    assert hybrid.sides.compiled.constants[0].fixed_norm is not None, "static, as asked"


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"rounding_threshold_bits": 8}, "leave it out"),
        ({"p_error": 0.01}, "params=Params"),
        ({"configuration": object()}, "params=Params"),
        ({"n_bits": {"op_inputs": 9}}, "params=Params"),
        ({"n_bits": {"op_weights": 9}}, "expected an integer from 2 to 8"),
        ({"n_bits": {"op_weights": 8, "2": 8}}, "either bits by kind or bits by module name"),
        ({"n_bits": {"nothing": 8}}, "not a remote module"),
    ],
)
def test_options_of_compiling_that_mean_nothing_here_name_veil_s_way(options: dict[str, Any], way: str) -> None:
    hybrid = HybridFHEModel(small(), ["2"])
    with pytest.raises(ValueError, match=re.escape(way)) as caught:
        hybrid.compile_model(X, params=TINY, **options)
    assert next(iter(options)) in str(caught.value) and "\n" not in str(caught.value)


def test_a_third_argument_by_position_is_not_taken_for_another() -> None:
    """There the third is ``rounding_threshold_bits``; here it chooses how inputs are scaled."""
    with pytest.raises(TypeError, match="use_dynamic_quantization is 8, expected True or False"):
        HybridFHEModel(small(), "2").compile_model(X, 8, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_bits", "expected"),
    [
        ({"op_weights": 5, "op_inputs": 8, "model_inputs": 8, "model_outputs": 8}, [5, 5, 5]),
        ({"op_inputs": np.int64(6)}, [8, 8, 8]),
        ({"0": 6, "2": 4}, [6, 6, 4]),
        ({"0": 6, "0.2": 3}, [6, 3, 8]),
    ],
)
def test_bits_by_kind_and_by_composite_module(n_bits: dict[str, int], expected: list[int]) -> None:
    hybrid = HybridFHEModel(small(), ["0", "2"])
    hybrid.compile_model(X, n_bits=n_bits, params=TINY)
    bits = {layer.name: layer.bits for group in hybrid.manifest.groups for layer in group.layers}
    assert [bits[name] for name in ("0.0", "0.2", "2")] == expected


# Modes and calls ---------------------------------------------------------------------------------------------------------


def test_the_enumeration_chooses_modes(hybrid: HybridFHEModel) -> None:
    for mode in (HybridFHEMode.DISABLE, HybridFHEMode.SIMULATE, HybridFHEMode.EXECUTE, HybridFHEMode.TORCH):
        hybrid.set_fhe_mode(mode)
        assert hybrid.fhe_mode == mode.value and type(hybrid.fhe_mode) is str
    theirs = enum.Enum("HybridFHEMode", {"DISABLE": "disable"})  # type: ignore[misc]
    hybrid.set_fhe_mode(theirs.DISABLE)  # type: ignore[arg-type]
    assert hybrid.fhe_mode == "disable"
    with pytest.raises(ValueError, match="compile_model calibrates"):
        hybrid.set_fhe_mode(HybridFHEMode.CALIBRATE)
    with pytest.raises(NotCompiled, match="connect"):
        hybrid.set_fhe_mode(HybridFHEMode.REMOTE)


def test_a_mode_behind_the_input(hybrid: HybridFHEModel) -> None:
    hybrid.set_fhe_mode("torch")
    clear, exact = hybrid(X, fhe="disable"), hybrid(X)
    assert not torch.equal(clear, exact)
    for found in (hybrid(X, "disable"), hybrid(X, HybridFHEMode.DISABLE), hybrid.forward(X, "disable")):
        assert torch.equal(found, clear)
    assert torch.equal(hybrid.forward(X, fhe="disable"), clear) and torch.equal(hybrid.forward(X), exact)
    assert hybrid.fhe_mode == "torch"
    with pytest.raises(ValueError, match="mode is 'encrypt'"):
        hybrid(X, "encrypt")
    with pytest.raises(TypeError, match="given twice"):
        hybrid(X, "disable", fhe="execute")


def test_remote_modules(hybrid: HybridFHEModel) -> None:
    assert list(hybrid.remote_modules) == ["0.0", "0.2", "2"]
    assert all(module is hybrid.model.get_submodule(name) for name, module in hybrid.remote_modules.items())
    hybrid.remote_modules.clear()
    assert len(hybrid.remote_modules) == 3, "what is given out is a copy"


def test_a_layer_s_own_mode_is_refused_not_ignored(hybrid: HybridFHEModel) -> None:
    """Their guide sets ``fhe_local_mode`` of every layer; an attribute that nothing reads would look like it worked."""
    for module in hybrid.remote_modules.values():
        with pytest.raises(AttributeError, match=re.escape("hybrid.set_fhe_mode('remote')")):
            module.fhe_local_mode = HybridFHEMode.REMOTE


@pytest.mark.parametrize("name", ["private_modules", "private_q_modules", "executor", "configuration"])
def test_attributes_that_are_not_here_say_where_to_look(hybrid: HybridFHEModel, name: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}': ") as caught:
        getattr(hybrid, name)
    assert "hybrid." in str(caught.value) or "connect" in str(caught.value)
    with pytest.raises(AttributeError, match=r"no attribute 'colour'$"):
        hybrid.colour  # type: ignore[attr-defined]  # noqa: B018


def test_init_client_names_veil_s_way(hybrid: HybridFHEModel) -> None:
    with pytest.raises(ValueError, match=re.escape("HybridFHEModel.connect('HOST:PORT', 'BUNDLE/client')")):
        hybrid.init_client(path_to_clients=Path("clients"), path_to_keys=Path("keys"))


def test_save_and_clear_private_info(new_model: Callable[[str], Any], tmp_path: Path) -> None:
    """Both halves are written, and this object has no remote weight any more, in no mode."""
    model = new_model("llama")
    hybrid = HybridFHEModel(model, linear_modules(model))
    ids = torch.tensor([[5, 9, 33, 17]])
    hybrid.compile_model(ids, params=TINY)
    clear = hybrid(ids, "disable").logits
    hybrid.set_fhe_mode("execute")
    hybrid.save_and_clear_private_info(tmp_path / "bundle", via_mlir=True)
    opened = HybridFHEModel.load(tmp_path / "bundle", terms=Terms(no_cryptography=True))
    torch.testing.assert_close(opened(ids).logits, clear, atol=1e-5, rtol=1e-5)
    assert not [name for name, _ in hybrid.model.named_parameters() if "_proj" in name or "lm_head" in name]
    assert all(layer.inner is None for layer in hybrid.remote_modules.values())
    for mode in ("disable", "simulate", "execute"):
        with pytest.raises(NotCompiled, match="only the client half"):
            hybrid.set_fhe_mode(mode)
    with pytest.raises(RuntimeError, match="no float weights here"):
        hybrid(ids, "torch")


# Their page --------------------------------------------------------------------------------------------------------------

WORDS = ["<|endoftext|>", "Programming", "is", "a", "craft", *(f"w{index}" for index in range(60))]


def test_the_page_s_snippet_runs_on_a_saved_gpt2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code of docs/concrete-ml.md, word for word, where the hub's id is a folder that `save_pretrained` made."""
    folder = tmp_path / "openai-community" / "gpt2"
    config = GPT2Config(vocab_size=len(WORDS), n_embd=48, n_layer=1, n_head=4, n_positions=64, initializer_range=0.2)
    config.bos_token_id = config.eos_token_id = 0
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "concrete-ml.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "docs/concrete-ml.md", "exec"), names)
    hybrid = names["hybrid_model"]
    assert hybrid.fhe_mode == "execute" and hybrid.stats.bytes_up_online > 0
    assert 1 <= names["generated_ids"].shape[0] <= 4
    assert capsys.readouterr().out.strip() or names["generated_ids"].tolist() == [0]


def test_the_page_goes_through_every_name() -> None:
    from veil.runtime import concrete

    page = (Path(__file__).parents[2] / "docs" / "concrete-ml.md").read_text()
    for name in (*concrete.CONSTRUCTOR, *concrete.COMPILING, *concrete.KINDS_OF_BITS, "remote_modules", "init_client"):
        assert name in page, name
