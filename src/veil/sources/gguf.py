"""GGUF files: converted once into a Hugging Face folder in the cache, named by the file's SHA-256."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from veil.cache import cache_folder
from veil.disk import digest, whole_folder
from veil.errors import ModelSourceError, one_line
from veil.progress import Progress
from veil.sources.gguf_facts import settle
from veil.sources.quiet import quiet

_MAGIC = b"GGUF"
_FORMAT = "gguf-2"
"""What converted folders are called; the number goes up when they are made in another way."""
_ABOUT = "converted.json"
_log = logging.getLogger("veil")


def converted_folder(file: Path, progress: Progress | None = None) -> Path:
    """The Hugging Face folder made from a GGUF file, converting it if this is the first time.

    Raises `ModelSourceError` for a file that is not GGUF, is damaged or has an unknown architecture, and when the
    cache cannot be written.
    """
    try:
        folder = cache_folder() / f"{_FORMAT}-{_checked_digest(file)}"
    except OSError as error:
        raise ModelSourceError(
            f"cannot read {file}: {error.strerror or error}; check the path and who may use it"
        ) from error
    if folder.is_dir() and (wrong := wrong_with(folder)) is not None:
        _log.warning("the converted model kept in %s is damaged (%s); it is made again", folder, wrong)
    elif folder.is_dir():
        return folder
    try:
        _convert_into(file, folder, progress)
    except OSError as error:
        raise ModelSourceError(
            f"cannot write the converted model to {cache_folder()} ({error.strerror or error}); "
            "make room, or set VEIL_CACHE_DIR to another folder"
        ) from error
    return folder


def wrong_with(folder: Path) -> str | None:
    """What is wrong with a folder that was kept: every file has to be the one that was written; None where all are."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))["sha256"]
        for name, expected in about.items():
            if digest(folder / name) != expected:
                return f"{name} is not what was written"
        return None if "config.json" in about else f"{_ABOUT} does not name its files"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return one_line(error)


def _checked_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        start = stream.read(len(_MAGIC))
        if start != _MAGIC:
            raise ModelSourceError(f"{file} is not a GGUF file; pass a checkpoint's folder, or download a GGUF file again")
        digest.update(start)
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _convert_into(file: Path, folder: Path, progress: Progress | None) -> None:
    stage = f"converting {file.name} (once, about half a minute for a small model)"
    if progress:
        progress(stage, 0, 1)
    with whole_folder(folder, lambda: wrong_with(folder) is None) as part:
        convert(file, part)
        names = sorted(path.name for path in part.iterdir())
        (part / _ABOUT).write_text(json.dumps({"sha256": {name: digest(part / name) for name in names}}), encoding="utf-8")
    if progress:
        progress(stage, 1, 1)


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, in floats, and its tokenizer into a folder."""
    gguf_config = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": gguf_config(dequantize=True)} if gguf_config else {}
    try:
        with quiet(silence_streams=True):
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
            model, report = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                **options,
            )
            # The dequantized model is an ordinary one; these marks would make it refuse to be saved.
            model.__dict__.pop("hf_quantizer", None)
            model.__dict__.pop("is_quantized", None)
            model.config.__dict__.pop("quantization_config", None)
    except Exception as error:  # the reader meets damaged bytes with errors of every kind
        raise ModelSourceError(
            f"{file} cannot be read as a language model ({one_line(error)}); "
            "download it again, or use a model of an architecture that transformers reads from GGUF"
        ) from error
    require_complete(str(file), report)
    settle(file, model.config)
    try:
        with quiet(silence_streams=True):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors reports a full disk with an error of its own
        raise ModelSourceError(
            f"cannot write the converted model to {folder.parent} ({one_line(error)}); "
            "make room, or set VEIL_CACHE_DIR to another folder"
        ) from error


def require_complete(place: str, report: Mapping[str, Iterable[object]]) -> None:
    """Raise `ModelSourceError` if transformers' loading report says that a weight was absent or had another shape."""
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind) or ())
        if names:
            raise ModelSourceError(
                f"{place} lacks {len(names)} of its model's weights, {names[0]} for one; download it again"
            )
