"""Compiled models that commands keep between starts: a bundle in the cache folder, named by what it was made from.

The name covers the source's files, the settings, the parameter set and the format's version; a change of any makes another
bundle. What is damaged is removed and made again. The least recently used go when all together are larger than the limit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from veil import __version__
from veil.bundle.header_file import FORMAT_VERSION
from veil.bundle.terms import STRICT
from veil.cache import cache_folder
from veil.disk import whole_folder
from veil.errors import BundleError, InsecureParameters, VeilError
from veil.hybrid.model import HybridFHEModel
from veil.params import Spec
from veil.progress import Progress

if TYPE_CHECKING:
    from veil.typing import Tokenizer

_ABOUT = "about.json"
_RECIPE = 3
"""Version of how commands compile: raised with the calibration text, the search for scales, the choice of bits."""
_EDGE_BYTES = 1 << 20
LIMIT_VARIABLE = "VEIL_CACHE_LIMIT_GB"
_LIMIT_GB = 50.0
_log = logging.getLogger("veil")


def compiled_folder() -> Path:
    """Where compiled models are kept."""
    return cache_folder() / "compiled"


def hints_folder() -> Path:
    """Where servers' hints are kept."""
    return cache_folder() / "hints"


def content_key(files: list[Path], settings: dict[str, object]) -> str:
    """A name for what these files and settings give: hexadecimal SHA-256.

    Of a file larger than two mebibytes, size, time of change, first and last mebibyte count.
    """
    made_by = [FORMAT_VERSION, _RECIPE, __version__, Spec().to_dict(), settings]
    state = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    for file in sorted(files):
        found = file.stat()
        state.update(f"{file.name}\0{found.st_size}\0".encode())
        with file.open("rb") as stream:
            state.update(stream.read(_EDGE_BYTES))
            if found.st_size > 2 * _EDGE_BYTES:
                state.update(str(found.st_mtime_ns).encode())
                stream.seek(-_EDGE_BYTES, os.SEEK_END)
            state.update(stream.read())
    return state.hexdigest()


def kept_model(
    key: str, make: Callable[[], tuple[HybridFHEModel, Tokenizer | None, str]], device: str, progress: Progress
) -> tuple[HybridFHEModel, str]:
    """The model of a key, from the cache or made now and kept; and where it came from, in words.

    ``make`` gives a compiled model, its tokenizer and its origin.
    """
    _limit_bytes()  # a limit that is none is told of before the work
    folder = compiled_folder() / key[:32]
    about = _read(folder)
    if about is not None:
        try:
            hybrid = HybridFHEModel.load(folder, device=device, progress=progress, terms=STRICT)
            os.utime(folder / _ABOUT)
            hybrid.hints = hints_folder()
            return hybrid, str(about["origin"])
        except (BundleError, InsecureParameters, OSError) as error:
            _log.warning("the compiled model kept in %s is damaged (%s); it is made again", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
    hybrid, tokenizer, origin = make()
    hybrid.hints = hints_folder()
    _keep(folder, hybrid, tokenizer, origin)
    return hybrid, origin


def _read(folder: Path) -> dict[str, object] | None:
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        return about if isinstance(about, dict) and "origin" in about else None
    except (OSError, ValueError):
        return None


def _keep(folder: Path, hybrid: HybridFHEModel, tokenizer: Tokenizer | None, origin: str) -> None:
    """Write a bundle beside its place and move it there; a failure is one line in the log, and nothing is kept."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _make_room(folder.parent)
        with whole_folder(folder) as part:
            hybrid.save(part, tokenizer)
            (part / _ABOUT).write_text(json.dumps({"origin": origin}))
    except OSError as error:
        remedy = "set VEIL_CACHE_DIR to a folder that can be written and has room"
        _log.warning("the compiled model is not kept in %s (%s); %s", folder.parent, error.strerror or error, remedy)
    except (VeilError, TypeError) as error:
        _log.info("the compiled model is not kept: %s", error)


def _make_room(folder: Path) -> None:
    """Remove compiled models, least recently used first, until what is kept, hints counted in, is within the limit."""
    limit = _limit_bytes()
    entries = [entry for place in (folder, hints_folder()) if place.is_dir() for entry in place.iterdir() if entry.is_dir()]
    sized = sorted((max(_touched(entry), 0.0), entry, _size(entry)) for entry in entries if not entry.name.startswith("."))
    total = sum(size for _, _, size in sized)
    for _, entry, size in sized:
        if total <= limit:
            return
        shutil.rmtree(entry, ignore_errors=True)
        total -= size


def _limit_bytes() -> float:
    """What the environment says, or fifty gigabytes; `ValueError` for what is no number of gigabytes."""
    chosen = os.environ.get(LIMIT_VARIABLE) or str(_LIMIT_GB)
    try:
        limit = float(chosen)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise ValueError(f"{LIMIT_VARIABLE} is {chosen!r}, expected a number of gigabytes, such as 50")
    return limit * 1e9


def _touched(folder: Path) -> float:
    return max((file.stat().st_mtime for file in folder.glob("*.json")), default=0.0)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
