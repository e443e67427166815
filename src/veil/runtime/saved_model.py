"""A compiled model on disk: ``client/`` with everything but the remote weights, ``server/`` with those and nothing else."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import nn

from veil.bundle import header_file
from veil.bundle.client_half import load_constants, load_tables, save_arrays
from veil.bundle.compiled import Compiled
from veil.bundle.fields import Header
from veil.bundle.manifest import Manifest
from veil.bundle.server_half import ServerModel, load_server, save_server
from veil.bundle.terms import EXPERT_LEAKS, ExpertLeak, Terms
from veil.disk import whole_folder, writing
from veil.errors import BundleError, one_line
from veil.runtime.adapters import base_of, plain_name, within_adapters
from veil.runtime.empty_model import model_without_weights
from veil.runtime.experts import RemoteExperts, is_experts
from veil.runtime.few_modules import few_modules
from veil.runtime.layers import RemoteLayer, float_weight_shape, kind_of, remote_layer
from veil.runtime.modules import replace_modules
from veil.sources.generation_settings import generation_settings
from veil.sources.offline import without_hub
from veil.sources.templates import bounded

if TYPE_CHECKING:
    from veil.typing import Config, LanguageModel, Processor, Tokenizer

TENSORS = "tensors.safetensors"
TOKENIZER = "tokenizer"


@dataclass(frozen=True, eq=False)
class Opened:
    """A bundle in memory; ``compiled.weights`` is None and the tables are as stored when only the client half is here."""

    model: LanguageModel
    layers: dict[str, RemoteLayer]
    compiled: Compiled
    tables: dict[str, NDArray[np.uint32]]
    tokenizer: Tokenizer | None


def save(
    path: Path,
    compiled: Compiled,
    tables: dict[str, NDArray[np.uint32]],
    model: nn.Module,
    tokenizer: Tokenizer | Processor | None,
) -> None:
    """Write both halves under ``path``, which must be new or empty; a failure leaves nothing behind."""
    from transformers import PreTrainedModel

    model = base_of(model)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"a bundle needs a transformers model, this is a {type(model).__name__}")
    if compiled.weights is None:
        raise BundleError("only the client half is here, so the bundle cannot be written whole")
    if path.exists() and any(path.iterdir()):
        raise BundleError(f"{path} is not empty; choose a new folder")
    path.mkdir(parents=True, exist_ok=True)
    try:
        with writing(path), whole_folder(path / "client") as client, whole_folder(path / "server") as server:
            _save_client(client, compiled, tables, model, tokenizer)
            weights = ServerModel(compiled.params, compiled.seed, compiled.manifest, compiled.weights)
            save_server(server, weights, header_file.half_digest(client))
    except BaseException:
        remove(path)  # the server half comes first: a client half is never alone
        raise


def remove(path: Path) -> None:
    """Remove both halves of a bundle."""
    for half in ("client", "server"):
        shutil.rmtree(path / half, ignore_errors=True)


def load(path: Path, terms: Terms, *, verify: bool = True) -> Opened:
    """Read a bundle from ``path``: the client half on these terms, and the server half where it is there too."""
    client = path / "client" if (path / "client").is_dir() else path
    if not (path / "server").is_dir():
        return load_client(client, terms, verify=verify)
    with ThreadPoolExecutor(max_workers=1) as reading:  # weights are read and hashed while the other half is made
        served = reading.submit(load_server, path / "server", verify=verify)
        opened = load_client(client, terms, verify=verify)
        server = served.result()
    compiled = opened.compiled
    if server.seed.seed != compiled.seed.seed or server.manifest != compiled.manifest:
        raise BundleError(f"{path}: the two halves are not of one bundle")
    whole = Compiled(compiled.params, compiled.seed, compiled.manifest, compiled.constants, server.weights)
    return Opened(opened.model, opened.layers, whole, opened.tables, opened.tokenizer)


def load_client(path: Path, terms: Terms, *, verify: bool = True) -> Opened:
    """Read the client half from the folder ``path``, on terms that its user chose; `BundleError`, `InsecureParameters`."""
    header, params, seed, manifest = header_file.read_client(path, terms, verify=verify)
    try:
        constants = load_constants(path, manifest, header["norms"])
        tables = load_tables(path, params, manifest)
        with without_hub():
            model, layers = _load_model(path, header, manifest)
            tokenizer = _load_tokenizer(path)
    except BundleError:
        raise
    except Exception as error:  # files that somebody else made surface as errors of every kind
        raise BundleError(f"{path} cannot be read ({one_line(error)})") from None
    compiled = Compiled(params, seed, manifest, constants, None)
    return Opened(model, layers, compiled, tables, tokenizer)


def _save_client(
    path: Path,
    compiled: Compiled,
    tables: dict[str, NDArray[np.uint32]],
    model: LanguageModel,
    tokenizer: Tokenizer | Processor | None,
) -> None:
    model.config.dtype = model.dtype
    try:
        model.config.save_pretrained(path)
        if model.can_generate():  # as it is: many checkpoints have settings that would not be let through anew
            model.generation_config.to_json_file(path / "generation_config.json")
    except TypeError as error:
        raise BundleError(f"the model's configuration cannot be written ({one_line(error)}); take that out of it") from None
    if tokenizer is not None:
        tokenizer.save_pretrained(path / TOKENIZER)
    save_tensors(_client_tensors(model), path / TENSORS)
    save_arrays(path, compiled, tables)
    mixtures = {name: part.leak for name, part in model.named_modules() if isinstance(part, RemoteExperts)}
    fields = header_file.common_fields(compiled.params, compiled.seed, compiled.manifest)
    named = model.named_modules(remove_duplicate=False)
    places = {plain_name(name): part.name for name, part in named if isinstance(part, RemoteLayer)}
    fields["class"], fields["model"] = type(model).__name__, _said_name(model.config)
    fields["norms"] = [(group.bound, group.fixed_norm) for group in compiled.constants]
    fields["places"], fields["experts"] = places, mixtures
    absent = _absent(model)
    if absent:
        fields["absent"] = absent
    header_file.write_header(path, "client", fields)


def _said_name(config: Config) -> str:
    """What a model is called: a hub id, or a folder's own name, since this machine's paths are nobody's business."""
    said = str(getattr(config, "_name_or_path", "") or "")
    return Path(said).name if Path(said).is_absolute() or Path(said).exists() else said


def _absent(model: LanguageModel) -> list[str]:
    """Parts that the configuration would make and this model does without: what no setting says, such as a pooler."""
    with torch.device("meta"):
        made = type(model)._from_config(model.config)
    parents = ((name, *name.rpartition(".")[::2]) for name, _ in made.named_modules() if name)
    own = {plain_name(name): part for name, part in model.named_modules(remove_duplicate=False)}
    return [name for name, parent, child in parents if parent in own and getattr(own[parent], child, model) is None]


def _leave_out(model: nn.Module, names: object) -> None:
    """Put None where a bundle's model does without a part."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BundleError("the bundle does not say which parts its model does without")
    for name in names:
        parent, _, child = name.rpartition(".")
        del model.get_submodule(parent)._modules[child]
        setattr(model.get_submodule(parent), child, None)


def _client_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer outside the remote layers; buffers that are not persistent as well."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    adapters = within_adapters(model)
    return {
        plain_name(name): tensor.detach().clone().contiguous()
        for name, tensor in named
        if not _inside(name, model) and name.rpartition(".")[0] not in adapters and name not in adapters
    }


def _inside(name: str, model: nn.Module) -> bool:
    module: nn.Module = model
    for part in name.split("."):
        if isinstance(module, RemoteLayer):
            return True
        child = module._modules.get(part)
        if child is None:
            return False
        module = child
    return isinstance(module, RemoteLayer)


def _load_model(path: Path, header: Header, manifest: Manifest) -> tuple[LanguageModel, dict[str, RemoteLayer]]:
    import transformers

    class_name, places = header["class"], header["places"]
    model_class = getattr(transformers, class_name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise BundleError(f"the bundle's model is a {class_name!r}, which this transformers does not have")
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    _refuse_other_code(config, path)
    config._name_or_path = str(header.get("model", ""))
    with few_modules(path / TENSORS, manifest):
        model = model_without_weights(model_class, config)
    _leave_out(model, header.get("absent", []))
    mixtures = _empty_experts(model, header["experts"])
    layers = {}
    for group in manifest.forward:
        for layer in group.layers:
            if layer.name in mixtures:
                layers[layer.name] = mixtures[layer.name]
                if (layers[layer.name].in_features, layers[layer.name].out_features) != (
                    layer.in_features,
                    layer.out_features,
                ):
                    raise BundleError(f"{path}: the model's {layer.name!r} is not the one of the manifest")
                continue
            module = model.get_submodule(layer.name)
            shape = (layer.out_features, layer.in_features)
            if kind_of(module) != layer.kind or float_weight_shape(module, layer.kind) != shape:
                raise BundleError(f"{path}: the model's {layer.name!r} is not the {layer.kind} of the manifest")
            assert isinstance(module.weight, torch.Tensor)
            sizes = (layer.in_features, layer.out_features)
            layers[layer.name] = remote_layer(layer.name, layer.kind, None, sizes, module.weight.dtype)
    for place, name in places.items():
        parent, _, child = place.rpartition(".")
        model.get_submodule(parent)._modules[child] = layers[name]
    _assign(model, load_tensors(path / TENSORS), path)
    if model.can_generate():
        model.generation_config = generation_settings(path, model)
    return model.eval(), layers


def _refuse_other_code(config: Config, path: Path) -> None:
    """Of what may name code to fetch, at any depth of a configuration: ``auto_map`` is dropped, other attention refused.

    Models that hold models make those from a part of their configuration, and would ask whether to run its code.
    """
    from transformers import PreTrainedConfig

    rest: list[object] = [config]
    while rest:
        part = rest.pop()
        fields = vars(part) if isinstance(part, PreTrainedConfig) else part
        if isinstance(fields, dict):
            fields.pop("auto_map", None)
            for name, chosen in fields.items():
                foreign = chosen not in (None, "eager", "sdpa")
                if foreign and str(name).lstrip("_").startswith(("attn_implementation", "experts_implementation")):
                    raise BundleError(f"{path}: the model's configuration asks for code that is not part of transformers")
            rest += fields.values()
        elif isinstance(fields, list | tuple):
            rest += fields


def _empty_experts(model: nn.Module, leaks: dict[str, ExpertLeak]) -> dict[str, RemoteLayer]:
    """Stand-ins without weights in the place of each module of experts."""
    found = {name: model.get_submodule(name) for name in leaks}
    layers: dict[str, RemoteLayer] = {}
    for name, module in found.items():
        if not is_experts(module) or leaks[name] not in EXPERT_LEAKS:
            raise BundleError(f"the bundle's {name!r} is not a module of experts in this transformers")
        layers |= replace_modules(model, {name: module}, leaks[name])
        stand_in = model.get_submodule(name)
        assert isinstance(stand_in, RemoteExperts)
        stand_in.forget_weights()
    return layers


def _assign(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Put stored tensors in place of the model's own; every one of the model's must be there."""
    here = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    given = set(tensors)
    own = {id(tensor) for name, tensor in here if name in given}
    missing = [name for name, tensor in here if name not in given and id(tensor) not in own]
    for name, tensor in tensors.items():
        parent, _, child = name.rpartition(".")
        module = model.get_submodule(parent)
        before = module._parameters.get(child, module._buffers.get(child))
        if before is not None and before.shape != tensor.shape:
            raise BundleError(f"{path / TENSORS}: {name} is of shape {tuple(tensor.shape)}, not {tuple(before.shape)}")
        if child in module._parameters:
            module._parameters[child] = nn.Parameter(tensor, requires_grad=False)
        elif child in module._buffers:
            module._buffers[child] = tensor
        else:
            raise BundleError(f"{path / TENSORS}: {name} is not part of the model")
    if missing:
        raise BundleError(f"{path / TENSORS}: {missing[0]} is missing")


def _load_tokenizer(path: Path) -> Tokenizer | None:
    if not (path / TOKENIZER).is_dir():
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path / TOKENIZER, local_files_only=True, trust_remote_code=False)
    return bounded(tokenizer)
