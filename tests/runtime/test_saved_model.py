"""A bundle on disk: each half holds its own and nothing of the other's, and whatever is wrong with it is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from comparing import remote_names
from veil import HybridFHEModel
from veil.bundle import header_file
from veil.bundle.server_half import load_server
from veil.bundle.terms import Terms
from veil.compile.quantize import quantize_weight
from veil.disk import digest
from veil.errors import BundleError, NotCompiled, RemoteWeightError
from veil.params import Params
from veil.runtime import saved_model
from veil.runtime.layers import float_weight

TINY = Params.insecure_tiny(signal_db=60.0)
WEAK = Terms(no_cryptography=True)
PROMPT = torch.tensor([[5, 9, 33, 17]])


def generate(hybrid: HybridFHEModel, **options: Any) -> Any:
    model: Any = hybrid.model
    return model.generate(**options)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def saved(
    new_model: Callable[[str], Any], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[HybridFHEModel, Path]]:
    made: dict[str, tuple[HybridFHEModel, Path]] = {}

    def make(name: str) -> tuple[HybridFHEModel, Path]:
        if name not in made:
            model = new_model(name)
            hybrid = HybridFHEModel(model, remote_names(model))
            hybrid.compile_model(PROMPT, params=TINY, n_bits={hybrid.module_names[0]: 5})
            path = tmp_path_factory.mktemp(name) / "bundle"
            hybrid.save(path, tiny_tokenizer)
            made[name] = hybrid, path
        return made[name]

    return make


@pytest.fixture
def whole(family: str, saved: Callable[[str], tuple[HybridFHEModel, Path]]) -> tuple[HybridFHEModel, Path]:
    """A compiled model and its bundle; do not write to it."""
    return saved(family)


@pytest.fixture
def copy(saved: Callable[[str], tuple[HybridFHEModel, Path]], tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(saved("llama")[1], tmp_path / "copy"))


@pytest.mark.skipif(os.name != "posix", reason="no file modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_for_whom_the_umask_allows(
    mask: int, mode: int, whole: tuple[HybridFHEModel, Path], tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        whole[0].save(tmp_path / "bundle")
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "bundle").rglob("*") if path.is_file()}
    assert "weights.safetensors" in found
    assert set(found.values()) == {mode}


# What is saved comes back ---------------------------------------------------------------------------------------------


def test_an_opened_bundle_answers_alike(whole: tuple[HybridFHEModel, Path]) -> None:
    hybrid, path = whole
    opened = HybridFHEModel.load(path, terms=WEAK)
    assert opened.fhe_mode == "disable"
    assert opened.manifest == hybrid.manifest
    assert torch.equal(opened(PROMPT).logits, hybrid(PROMPT, fhe="disable").logits)
    out = opened(PROMPT, fhe="execute").logits
    signal, noise = hybrid(PROMPT, fhe="disable").logits, out - hybrid(PROMPT, fhe="disable").logits
    assert 10 * torch.log10(signal.var() / noise.var()) > 50
    assert 10 * torch.log10(signal.var() / (opened(PROMPT, fhe="simulate").logits - signal).var()) > 50


def test_an_opened_bundle_generates(whole: tuple[HybridFHEModel, Path]) -> None:
    hybrid, path = whole
    opened = HybridFHEModel.load(path, terms=WEAK)
    hybrid.set_fhe_mode("disable")
    tokens = [generate(h, input_ids=PROMPT, max_new_tokens=5, do_sample=False).tolist() for h in (opened, hybrid)]
    assert tokens[0] == tokens[1]


def test_the_tables_survive_packing(whole: tuple[HybridFHEModel, Path]) -> None:
    hybrid, path = whole
    opened = saved_model.load_client(path / "client", WEAK)
    assert set(opened.tables) == {"body", "head"}
    for name, table in opened.tables.items():
        np.testing.assert_array_equal(table, hybrid.sides.tables[name])


def test_the_tokenizer_comes_along(whole: tuple[HybridFHEModel, Path]) -> None:
    opened = HybridFHEModel.load(whole[1], terms=WEAK)
    assert opened.tokenizer("w3 w4")["input_ids"] == [8, 9]


def test_a_bundle_saved_again_is_the_same(whole: tuple[HybridFHEModel, Path], tmp_path: Path) -> None:
    opened = HybridFHEModel.load(whole[1], terms=WEAK)
    opened.save(tmp_path / "again")
    for half in ("client", "server"):
        before, after = (json.loads((path / half / "bundle.json").read_text()) for path in (whole[1], tmp_path / "again"))
        weights = ("weights.safetensors", "tables.safetensors", "remote.safetensors", "tensors.safetensors")
        for name in weights:
            assert before["sha256"].get(name) == after["sha256"].get(name)
        for header in (before, after):
            header.pop("sha256")
            header.pop("client", None)  # the digest of the other half
        assert before == after


def test_a_fixed_scale_survives(new_model: Callable[[str], Any], tmp_path: Path) -> None:
    model = new_model("gpt2")
    hybrid = HybridFHEModel(model, "transformer.h.1.mlp.c_fc")
    hybrid.compile_model(PROMPT, params=TINY, use_dynamic_quantization=False)
    hybrid.save(tmp_path / "fixed")
    opened = HybridFHEModel.load(tmp_path / "fixed", terms=WEAK)
    assert torch.equal(opened(PROMPT.flip(1)).logits, hybrid(PROMPT.flip(1), fhe="disable").logits)


# Each half holds its own ----------------------------------------------------------------------------------------------


def test_the_server_half_is_weights_manifest_and_seed(whole: tuple[HybridFHEModel, Path]) -> None:
    hybrid, path = whole
    assert sorted(file.name for file in (path / "server").rglob("*")) == ["bundle.json", "weights.safetensors"]
    header = json.loads((path / "server" / "bundle.json").read_text())
    assert set(header) == {"client", "format", "half", "manifest", "params", "seed", "sha256"}
    tensors = load_file(path / "server" / "weights.safetensors")
    groups = hybrid.manifest.groups
    assert set(tensors) == {f"group.{i}" for i in range(len(groups))}
    for i, group in enumerate(groups):
        assert tensors[f"group.{i}"].dtype == np.int8
        assert tensors[f"group.{i}"].shape == (group.rows, group.width)
    layer = groups[0].layers[0]
    module: Any = hybrid.model.get_submodule(layer.name)
    exact = float_weight(module.inner, layer.kind)
    assert (tensors["group.0"][: layer.out_features] == quantize_weight(exact, 5)[0]).all(), "5 bits"


def test_the_client_half_holds_no_remote_weight(whole: tuple[HybridFHEModel, Path]) -> None:
    """By name, by shape and by value: the one float matrix that a tied head shares is the embedding, which is local."""
    hybrid, path = whole
    tensors = load_file(path / "client" / "tensors.safetensors")
    remote = [layer for group in hybrid.manifest.groups for layer in group.layers]
    for layer in remote:
        assert not [name for name in tensors if name.startswith(layer.name + ".")]
    local = {"transformer.wte.weight", "model.embed_tokens.weight"}
    modules: list[Any] = [hybrid.model.get_submodule(layer.name) for layer in remote]
    weights = [module.inner.weight.detach().numpy() for module in modules]
    for name, tensor in tensors.items():
        if name not in local:
            for weight in weights:
                assert tensor.shape not in (weight.shape, weight.T.shape) or not np.isin(tensor, weight).all()
    held = load_file(path / "client" / "remote.safetensors")
    assert {name.split(".")[0] for name in held} <= {"scale", "bias"}
    assert {array.ndim for array in held.values()} == {1}
    packed = load_file(path / "client" / "tables.safetensors")
    assert set(packed) == {"body", "head"}


def test_the_server_half_holds_nothing_of_the_client(whole: tuple[HybridFHEModel, Path]) -> None:
    """No scale, no bias, no norm, no embedding: not even their bytes, anywhere in its files."""
    _, path = whole
    served = b"".join(file.read_bytes() for file in (path / "server").iterdir())
    private = {**load_file(path / "client" / "remote.safetensors"), **load_file(path / "client" / "tensors.safetensors")}
    checked = 0
    for tensor in private.values():
        if tensor.size >= 8 and len(np.unique(tensor)) > 4:
            assert tensor.tobytes()[:32] not in served
            checked += 1
    assert checked >= 10
    assert not {"norms", "class", "bound"} & set(json.loads((path / "server" / "bundle.json").read_text()))


def test_the_client_half_alone_cannot_multiply(whole: tuple[HybridFHEModel, Path], tmp_path: Path) -> None:
    opened = saved_model.load_client(whole[1] / "client", WEAK)
    assert opened.compiled.weights is None
    for layer in opened.layers.values():
        assert layer.inner is None
        with pytest.raises(RemoteWeightError, match="on the server"):
            layer.weight.tolist()
    shutil.copytree(whole[1] / "client", tmp_path / "client")
    with pytest.raises(NotCompiled, match="only the client half"):
        HybridFHEModel.load(tmp_path, terms=WEAK)


def test_insecure_parameters_stay_marked(whole: tuple[HybridFHEModel, Path], copy: Path) -> None:
    assert HybridFHEModel.load(whole[1], terms=WEAK).params == TINY
    assert HybridFHEModel.load(whole[1], terms=WEAK).params.security_bits == 0
    edit(copy / "server", lambda header: header["params"].update(insecure=False))
    with pytest.raises(BundleError, match="128-bit security"):
        load_server(copy / "server")


# Refusals -------------------------------------------------------------------------------------------------------------


def edit(half: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    header = json.loads((half / "bundle.json").read_text())
    change(header)
    (half / "bundle.json").write_text(json.dumps(header))


def load_half(copy: Path, half: str) -> Any:
    return saved_model.load_client(copy / half, WEAK) if half == "client" else load_server(copy / half)


FILES = [
    ("client", "tensors.safetensors"),
    ("client", "remote.safetensors"),
    ("client", "tables.safetensors"),
    ("client", "config.json"),
    ("client", "generation_config.json"),
    ("client", "tokenizer/tokenizer.json"),
    ("server", "weights.safetensors"),
]


@pytest.mark.parametrize(("half", "name"), FILES)
def test_a_damaged_file_is_refused(copy: Path, half: str, name: str) -> None:
    data = bytearray((copy / half / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / half / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{Path(name).name} does not match its digest"):
        load_half(copy, half)


@pytest.mark.parametrize(("half", "name"), FILES)
def test_a_missing_file_is_refused(copy: Path, half: str, name: str) -> None:
    (copy / half / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing, or does not belong there"):
        load_half(copy, half)


@pytest.mark.parametrize("half", ["client", "server"])
@pytest.mark.parametrize("name", ["extra.bin", "deeper/extra.bin"])
def test_an_extra_file_is_refused(copy: Path, half: str, name: str) -> None:
    (copy / half / name).parent.mkdir(exist_ok=True)
    (copy / half / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=f"{name} is missing, or does not belong there"):
        load_half(copy, half)


@pytest.mark.parametrize("half", ["client", "server"])
@pytest.mark.parametrize("version", [1, 2, 4, "3", None])
def test_another_version_is_refused(copy: Path, half: str, version: Any) -> None:
    edit(copy / half, lambda header: header.update(format=version))
    with pytest.raises(BundleError, match=f"is of format {version}, this veil reads {header_file.FORMAT_VERSION}"):
        load_half(copy, half)


@pytest.mark.parametrize("half", ["client", "server"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        "[" * 60000,
        '{"format": 1}',
        '{"format": 1, "half": "client", "sha256": 3}',
        '{"format": 1, "half": "client", "sha256": [[1, "0"], ["config.json", "0"]]}',
    ],
    ids=range(9),
)
def test_a_damaged_header_is_refused(copy: Path, half: str, text: str) -> None:
    (copy / half / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match="is damaged"):
        load_half(copy, half)


HEADERS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("no seed", lambda h: h.pop("seed")),
    ("short seed", lambda h: h.update(seed="00")),
    ("seed of another type", lambda h: h.update(seed=7)),
    ("no params", lambda h: h.pop("params")),
    ("params of another type", lambda h: h.update(params=[1])),
    ("an unknown parameter", lambda h: h["params"].update(extra=1)),
    ("a parameter of another type", lambda h: h["params"].update(inner_degree="64")),
    ("a parameter that cannot work", lambda h: h["params"].update(inner_degree=65)),
    ("a parameter of 400 digits", lambda h: h["params"].update(inner_sigma=10**400)),
    ("a layer named by a list", lambda h: h["manifest"][1]["layers"][0].update(name=[])),
    ("no manifest", lambda h: h.pop("manifest")),
    ("a layer of another width", lambda h: h["manifest"][1]["layers"][0].update(in_features=31)),
    ("a huge layer", lambda h: h["manifest"][1]["layers"][0].update(out_features=2**40)),
    ("a layer less", lambda h: h["manifest"].pop(1)),
    ("a layer that is not there", lambda h: h["manifest"][1]["layers"][0].update(name="model.layers.0.nothing")),
    ("a layer of another kind", lambda h: h["manifest"][1]["layers"][0].update(kind="conv1d")),
]
CLIENT_HEADERS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("no class", lambda h: h.pop("class")),
    ("no norms", lambda h: h.pop("norms")),
    ("too few norms", lambda h: h["norms"].pop()),
    ("a norm that is no number", lambda h: h["norms"].__setitem__(0, ["x", None])),
    ("a norm too much", lambda h: h["norms"].__setitem__(0, [1.0, None, 2.0])),
    ("norms of another type", lambda h: h.update(norms=3)),
]
WEIGHTS_ONLY = {"a layer that is not there", "a layer of another kind"}
"""What a server cannot know: it has no model to compare with."""


@pytest.mark.parametrize(
    ("half", "change"),
    [
        *[pytest.param("client", change, id=f"client: {name}") for name, change in HEADERS + CLIENT_HEADERS],
        *[pytest.param("server", change, id=f"server: {name}") for name, change in HEADERS if name not in WEIGHTS_ONLY],
    ],
)
def test_a_header_that_does_not_fit_is_refused(copy: Path, half: str, change: Any) -> None:
    edit(copy / half, change)
    with pytest.raises(BundleError):
        load_half(copy, half)


def test_the_other_half_is_refused(copy: Path) -> None:
    with pytest.raises(BundleError, match="is the server half of a bundle, expected the client half"):
        saved_model.load_client(copy / "server", WEAK)
    with pytest.raises(BundleError, match="is the client half of a bundle, expected the server half"):
        load_server(copy / "client")


def test_halves_of_two_bundles_do_not_fit(saved: Callable[[str], tuple[HybridFHEModel, Path]], copy: Path) -> None:
    shutil.rmtree(copy / "server")
    shutil.copytree(saved("gpt2")[1] / "server", copy / "server")
    with pytest.raises(BundleError, match="not of one bundle"):
        HybridFHEModel.load(copy, terms=WEAK)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="holds no bundle"):
            HybridFHEModel.load(path, terms=WEAK)


def rewrite(copy: Path, half: str, name: str, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change a tensor file and sign it again, as somebody who makes bundles could."""
    tensors = load_file(copy / half / name)
    change(tensors)
    save_file(tensors, copy / half / name)
    edit(copy / half, lambda header: header["sha256"].update({name: digest(copy / half / name)}))


TENSORS: list[tuple[str, str, str, Any]] = [
    ("server", "weights.safetensors", "group.0", None),
    ("server", "weights.safetensors", "group.0", np.zeros((3, 3), dtype=np.int8)),
    ("server", "weights.safetensors", "group.0", "int16"),
    ("client", "remote.safetensors", "scale.0", None),
    ("client", "remote.safetensors", "bias.1", np.zeros(3, dtype=np.float32)),
    ("client", "remote.safetensors", "scale.1", "float64"),
    ("client", "tables.safetensors", "body", None),
    ("client", "tables.safetensors", "head", np.zeros((2, 5), dtype=np.uint8)),
    ("client", "tensors.safetensors", "model.norm.weight", None),
    ("client", "tensors.safetensors", "model.norm.weight", np.zeros(3, dtype=np.float32)),
    ("client", "tensors.safetensors", "model.norm.intruder", np.zeros(3, dtype=np.float32)),
    ("client", "tensors.safetensors", "nowhere.weight", np.zeros(3, dtype=np.float32)),
]


@pytest.mark.parametrize(("half", "file", "name", "value"), TENSORS, ids=[f"{t[2]}-{i}" for i, t in enumerate(TENSORS)])
def test_a_tensor_that_does_not_fit_is_refused(copy: Path, half: str, file: str, name: str, value: Any) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        old = tensors.pop(name, None)
        if value is not None:
            tensors[name] = old.astype(value) if isinstance(value, str) and old is not None else value

    rewrite(copy, half, file, change)
    with pytest.raises(BundleError):
        load_half(copy, half)


def test_a_class_that_transformers_does_not_have_is_refused(copy: Path) -> None:
    for name in ("Nothing", "os", "AutoConfig"):
        edit(copy / "client", lambda header: header.update({"class": name}))  # noqa: B023  called at once
        with pytest.raises(BundleError, match=f"'{name}'"):
            saved_model.load_client(copy / "client", WEAK)


def deep(text: str) -> str:
    return "[" * 60000


CLIENT_FILES: list[tuple[str, Callable[[str], str]]] = [
    ("config.json", deep),
    ("config.json", lambda text: "{"),
    ("config.json", lambda text: json.dumps(json.loads(text) | {"num_attention_heads": 0})),
    ("config.json", lambda text: json.dumps(json.loads(text) | {"hidden_size": -1})),
    ("config.json", lambda text: json.dumps(json.loads(text) | {"hidden_act": "nothing"})),
    ("generation_config.json", deep),
    ("generation_config.json", lambda text: "[]"),
    ("tokenizer/tokenizer_config.json", deep),
    ("tokenizer/tokenizer_config.json", lambda text: "[]"),
    ("tokenizer/tokenizer.json", deep),
    ("tokenizer/tokenizer.json", lambda text: "{}"),
    ("tokenizer/tokenizer.json", lambda text: text.replace("WordLevel", "Nothing")),
    ("tensors.safetensors", deep),
]


@pytest.mark.parametrize(("name", "change"), CLIENT_FILES, ids=[f"{f[0]}-{i}" for i, f in enumerate(CLIENT_FILES)])
def test_a_file_that_does_not_fit_is_one_error(copy: Path, name: str, change: Callable[[str], str]) -> None:
    """Its digest is right: somebody made it so."""
    file = copy / "client" / name
    file.write_text(change(file.read_text(errors="replace")))
    sign(copy / "client")
    with pytest.raises(BundleError, match="cannot be read") as caught:
        saved_model.load_client(copy / "client", WEAK)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


# Code that comes with a half ------------------------------------------------------------------------------------------


def add_code(half: Path, where: str) -> Path:
    """Give the half's tokenizer or configuration a class in a file of its own; returns what it would write when it runs."""
    folder_ = half / "tokenizer" if where == "tokenizer" else half
    ran = half.parent / "ran"
    (folder_ / "x.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass X: pass\n")
    settings = folder_ / ("tokenizer_config.json" if where == "tokenizer" else "config.json")
    fields = json.loads(settings.read_text())
    fields.pop("tokenizer_class", None)
    if where == "tokenizer":
        fields |= {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["x.X", None]}}
    else:
        fields |= {"model_type": "x", "auto_map": {"AutoConfig": "x.X"}}
    settings.write_text(json.dumps(fields))
    sign(half)
    return ran


def sign(half: Path) -> None:
    """Write the digests anew, as somebody who makes bundles could."""
    found = [path for path in half.rglob("*") if path.is_file() and path.name != header_file.HEADER]
    digests = {path.relative_to(half).as_posix(): digest(path) for path in found}
    edit(half, lambda header: header.update(sha256=digests))


@pytest.mark.parametrize("where", ["tokenizer", "config"])
def test_code_in_a_half_never_runs_whatever_is_answered(copy: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = add_code(copy / "client", where)
    asked = io.StringIO("y\n" * 5)
    monkeypatch.setattr("sys.stdin", asked)
    with pytest.raises(BundleError, match="custom code"):
        saved_model.load_client(copy / "client", WEAK)
    assert not ran.exists()
    assert asked.tell() == 0, "nobody is asked"


def test_code_of_a_part_of_a_model_never_runs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of a kind that is no model by itself: transformers would look for its class in the other repository."""
    code = {"AutoModel": "somebody/repository--x.X"}
    parts = {"encoder": {"model_type": "blip_text_model", "auto_map": code}, "decoder": {"model_type": "bert"}}
    (copy / "client" / "config.json").write_text(
        json.dumps({"model_type": "encoder-decoder", "is_encoder_decoder": True} | parts)
    )
    edit(copy / "client", lambda header: header.update({"class": "EncoderDecoderModel"}))
    sign(copy / "client")
    asked = io.StringIO("y\n" * 5)
    monkeypatch.setattr("sys.stdin", asked)
    with pytest.raises(BundleError):
        saved_model.load_client(copy / "client", WEAK)
    assert asked.tell() == 0, "nobody is asked"


@pytest.mark.parametrize("field", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
def test_attention_from_elsewhere_is_refused(copy: Path, field: str) -> None:
    settings = copy / "client" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {field: "somebody/attention"}))
    sign(copy / "client")
    with pytest.raises(BundleError, match="code that is not part of transformers"):
        saved_model.load_client(copy / "client", WEAK)


# Saving ---------------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_refused(whole: tuple[HybridFHEModel, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(BundleError, match="is not empty"):
        whole[0].save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_model_that_is_not_transformers_is_refused(tmp_path: Path) -> None:
    hybrid = HybridFHEModel(nn.Sequential(nn.Linear(4, 4)), "0")
    hybrid.compile_model(torch.ones(1, 4), params=TINY)
    with pytest.raises(TypeError, match="a bundle needs a transformers model, this is a Sequential"):
        hybrid.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_failure_leaves_nothing_behind(
    whole: tuple[HybridFHEModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(saved_model, "save_server", full_disk)
    with pytest.raises(OSError, match="no space"):
        whole[0].save(tmp_path / "bundle")
    assert list((tmp_path / "bundle").iterdir()) == []


def test_a_module_that_stands_in_two_places_comes_back_in_both(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=40, n_positions=16, bos_token_id=0, eos_token_id=0)
    ).eval()
    model.transformer.h[1].mlp.c_fc = model.transformer.h[0].mlp.c_fc
    hybrid = HybridFHEModel(model, ["transformer.h.0.mlp.c_fc"])
    ids = torch.arange(1, 6)[None]
    hybrid.compile_model(ids, params=Params.insecure_tiny(), device="cpu")
    hybrid.set_fhe_mode("disable")
    hybrid.save(tmp_path / "bundle")
    loaded = HybridFHEModel.load(tmp_path / "bundle", device="cpu", terms=WEAK)
    assert torch.equal(loaded(ids).logits, hybrid(ids).logits)
