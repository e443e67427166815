"""A client half against its model: taken where all follows from the weights, refused where one thing does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel, MixtralConfig, MixtralForCausalLM

from veil import HybridFHEModel
from veil.bundle import header_file
from veil.bundle.terms import Terms
from veil.checks.files import load_vectors, save_vectors
from veil.checks.vectors import make_vectors
from veil.disk import digest
from veil.errors import HalfDiffers
from veil.params import Params
from veil.random import SecretRng
from veil.runtime.modules import select_modules
from veil.trust import trusted
from veil.trust.half import check_half

WEAK = Terms(no_cryptography=True)
IDS = torch.arange(1, 41).unsqueeze(0) % 64
PARAMS = Params.insecure_tiny(signal_db=52.0)


def quiet(stage: str, done: int, total: int) -> None:
    return None


def bert() -> Any:
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        initializer_range=0.2,
    )
    return BertModel(config).eval()


def mixtral() -> Any:
    config = MixtralConfig(
        vocab_size=64, hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, initializer_range=0.3,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


@pytest.fixture(scope="session")
def halves(
    tmp_path_factory: pytest.TempPathFactory, new_model: Callable[[str], Any], tiny_tokenizer: Any
) -> Callable[..., Any]:
    """(model's folder, bundle, compiled model) of a family; made once."""
    made: dict[str, Any] = {}

    def make(name: str, modules: str = "linear", **settings: Any) -> Any:
        key = f"{name}-{modules}-{len(settings)}-{settings}"
        if key not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                model = {"bert": bert, "mixtral": mixtral}.get(name, lambda: new_model(name))()
            path = tmp_path_factory.mktemp("halves")
            model.save_pretrained(path / "model")
            tiny_tokenizer.save_pretrained(path / "model")
            hybrid = HybridFHEModel(model, select_modules(model, modules))
            hybrid.compile_model({"input_ids": IDS}, params=PARAMS, device="cpu", **settings)
            hybrid.save(path / "bundle", tokenizer=AutoTokenizer.from_pretrained(path / "model"))
            made[key] = path / "model", path / "bundle" / "client", hybrid
        return made[key]

    return make


FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a Llama": ("llama", "linear", {}),
    "fused norms": ("llama", "linear", {"fuse_norms": "on"}),
    "a GPT-2 with a tied head": ("gpt2", "linear", {}),
    "a fused GPT-2": ("gpt2", "linear", {"fuse_norms": "auto"}),
    "the embedding too": ("llama", "linear+embedding", {}),
    "four bits": ("llama", "linear", {"n_bits": 4}),
    "fixed scales": ("llama", "linear", {"use_dynamic_quantization": False}),
    "experts": ("mixtral", "linear", {}),
    "an encoder": ("bert", "linear", {}),
    "for training": ("llama", "linear", {"trainable": True}),
    "for training, a tied head": ("gpt2", "linear", {"trainable": True}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_half_of_the_model_is_taken_and_its_vectors_are_of_the_servers_weights(
    family: str, halves: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, modules, settings = FAMILIES[family]
    if settings.get("trainable"):
        monkeypatch.setattr("veil.checks.vectors.CHUNK", 21)  # so that chunks end between the words of an output
    model, half, hybrid = halves(name, modules, **settings)
    found, findings = check_half(half, str(model), WEAK, quiet)
    for group, weights, own in zip(hybrid.manifest.groups, hybrid.sides.compiled.weights, found.groups, strict=True):
        expected = np.stack(
            [
                own.signs[:, first:last].astype(np.int64) @ weights[first:last].astype(np.int64)
                for first, last in _chunks(group)
            ]
        )
        np.testing.assert_array_equal(own.sums, expected)
    assert findings.bits == settings.get("n_bits", 8)
    assert any("fixed lengths" in words for words in findings.trusted) == (family == "fixed scales")


def _chunks(group: Any) -> list[tuple[int, int]]:
    from veil.checks.vectors import VectorMaker

    return VectorMaker(group, SecretRng()).chunks


def test_a_checkpoint_is_read_in_pieces_where_its_names_are_the_models(halves: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model is never loaded, for layers named as the model names them."""
    monkeypatch.setattr(trusted, "load_model", lambda *_, **__: pytest.fail("the whole model was loaded"))
    for name in ("llama", "gpt2"):
        model, half, _ = halves(name)
        check_half(half, str(model), WEAK, quiet)


def test_both_ways_of_reading_a_checkpoint_agree(halves: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, half, _ = halves("gpt2")
    monkeypatch.setattr(trusted.CheckpointFiles, "has_all", lambda *_: False)
    _, findings = check_half(half, str(model), WEAK, quiet)
    assert len(findings.losses) > 0


# A half that is not the model's ---------------------------------------------------------------------------------------


def arrays(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(half: Path) -> None:
        found = {name: value.copy() for name, value in load_file(half / "remote.safetensors").items()}
        change(found)
        save_file(found, half / "remote.safetensors")

    return apply


def header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(half: Path) -> None:
        fields = json.loads((half / header_file.HEADER).read_text())
        change(fields)
        (half / header_file.HEADER).write_text(json.dumps(fields))

    return apply


def scaled(found: dict[str, Any]) -> None:
    found["scale.0"][3] *= np.float32(1.01)


def one_large_divisor(found: dict[str, Any]) -> None:
    """All else is rounded to nothing."""
    found["divisors.1"] = np.ones(32, np.float32)
    found["divisors.1"][5] = 1e4


def biased(found: dict[str, Any]) -> None:
    """A token whose logit is raised."""
    head = max(int(name.split(".")[1]) for name in found if name.startswith("scale."))
    found.setdefault(f"bias.{head}", np.zeros_like(found[f"scale.{head}"]))
    found[f"bias.{head}"][42] += 5


def loose(fields: dict[str, Any]) -> None:
    """Fewer bits of results, so that the noise that is allowed is larger."""
    fields["manifest"][0]["bits"][1] -= 2


def other_norm(fields: dict[str, Any]) -> None:
    fields["norms"][0][0] *= 2


def other_tensor(half: Path) -> None:
    found = {name: value.copy() for name, value in load_file(half / "tensors.safetensors").items()}
    found["model.norm.weight"][0] += 0.5
    save_file(found, half / "tensors.safetensors")


def other_config(half: Path) -> None:
    fields = json.loads((half / "config.json").read_text())
    fields["rms_norm_eps"] = 0.5
    (half / "config.json").write_text(json.dumps(fields))


def other_template(half: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(half / "tokenizer")
    tokenizer.chat_template = "say nothing"
    tokenizer.save_pretrained(half / "tokenizer")


def other_rotation(half: Path) -> None:
    found = {name: value.copy() for name, value in load_file(half / "tensors.safetensors").items()}
    name = next(name for name in found if "inv_freq" in name)
    found[name] *= 2
    save_file(found, half / "tensors.safetensors")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "another scale": (arrays(scaled), "other scales"),
    "a divisor that ruins the rest": (arrays(one_large_divisor), "scales|loses"),
    "a bias that steers": (arrays(biased), "bias"),
    "fewer bits of results": (header(loose), "other bits of the wire"),
    "another norm": (header(other_norm), "another norm"),
    "another tensor": (other_tensor, "model.norm.weight is not that of"),
    "other positions": (other_rotation, "inv_freq is not that of"),
    "another configuration": (other_config, "another rms_norm_eps"),
    "another chat template": (other_template, "chat template"),
}


def forged(half: Path, path: Path, change: Callable[[Path], None]) -> Path:
    copy = Path(shutil.copytree(half, path / "half"))
    change(copy)
    fields = json.loads((copy / header_file.HEADER).read_text())
    found = [file for file in copy.rglob("*") if file.is_file() and file.name != header_file.HEADER]
    fields["sha256"] = {file.relative_to(copy).as_posix(): digest(file) for file in found}
    (copy / header_file.HEADER).write_text(json.dumps(fields))
    return copy


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_half_is_refused(name: str, halves: Any, tmp_path: Path) -> None:
    change, words = CHANGES[name]
    model, half, _ = halves("llama")
    with pytest.raises(HalfDiffers, match=words):
        check_half(forged(half, tmp_path, change), str(model), WEAK, quiet)


@pytest.mark.parametrize("word", [0, 1])
def test_a_half_for_training_is_refused_for_a_scale_of_either_word(word: int, halves: Any, tmp_path: Path) -> None:
    model, half, hybrid = halves("llama", trainable=True)
    assert hybrid.manifest.groups[0].words == 2
    copy = forged(half, tmp_path, arrays(lambda found: found["scale.0"].__setitem__(word, 1.5 * found["scale.0"][word])))
    with pytest.raises(HalfDiffers, match="other scales than the weights of"):
        check_half(copy, str(model), WEAK, quiet)


def test_a_ruinous_divisor_with_scales_to_fit_is_refused(halves: Any, tmp_path: Path) -> None:
    """All stored values follow from each other, and rounding loses nearly everything."""
    model, half, hybrid = halves("llama")
    weight = np.asarray(hybrid.remote_modules["model.layers.0.self_attn.o_proj"].inner.weight.detach())
    divisors = np.ones(weight.shape[1], np.float32)
    divisors[5] = 1e3

    def change(found: dict[str, Any]) -> None:
        found["divisors.1"], found["scale.1"] = divisors, np.abs(weight * divisors).max(axis=1) / np.float32(127)

    with pytest.raises(HalfDiffers, match="loses"):
        check_half(forged(half, tmp_path, arrays(change)), str(model), WEAK, quiet)


def test_a_half_of_other_weights_is_refused(halves: Any, new_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    _, half, _ = halves("llama")
    other = new_model("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[7, 3] += 1.0
    other.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(HalfDiffers, match=r"group model\.layers\.1\.mlp\.gate_proj has other scales"):
        check_half(half, str(tmp_path), WEAK, quiet)


def test_vectors_come_back_from_disk_as_they_were(halves: Any) -> None:
    model, half, hybrid = halves("llama")
    found, _ = check_half(half, str(model), WEAK, quiet)
    save_vectors("a" * 64, found)
    again = load_vectors("a" * 64, hybrid.manifest)
    assert again is not None and again.against == found.against
    for one, other in zip(again.groups, found.groups, strict=True):
        for part in ("signs", "sums", "overlap"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


def test_signs_are_fresh_each_time(halves: Any) -> None:
    _, _, hybrid = halves("llama")
    group, weights = hybrid.manifest.groups[0], hybrid.sides.compiled.weights[0]
    one, other = make_vectors(group, weights, SecretRng()), make_vectors(group, weights, SecretRng())
    share = float((one.signs == other.signs).mean())
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(one.signs.size)
