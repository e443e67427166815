"""A hint on disk: built once for a bundle, read again at the next start. What does not fit is built anew."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.crypto.hint import ServerHint
from veil.disk import whole_folder
from veil.kernels.interface import Kernels
from veil.params import Params

VERSION = 1
_ABOUT = "hint.json"
_ROOM = 2
"""Free space that a hint may take half of."""
_log = logging.getLogger("veil")


def save_hint(folder: Path, hint: ServerHint, kernels: Kernels, fingerprint: str) -> bool:
    """Keep a hint of the bundle with this fingerprint in ``folder``, whole or not at all; whether there was room.

    A disk that is full or cannot be written to is told of once in the log, and nothing is kept.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < _ROOM * hint.nbytes:
            _log.info("the hint is not kept: %s has too little room", folder.parent)
            return False
        with whole_folder(folder) as part:
            sizes = {}
            for segment, arrays in hint.arrays().items():
                for name, values in arrays.items():
                    np.save(part / f"{segment}.{name}.npy", values)
                    sizes[f"{segment}.{name}"] = (part / f"{segment}.{name}.npy").stat().st_size
            (part / _ABOUT).write_text(json.dumps(_about(kernels, fingerprint) | {"sizes": sizes}))
        return True
    except OSError as error:
        _log.warning("the hint is not kept in %s: %s", folder, error.strerror or error)
        return False


def load_hint(folder: Path, params: Params, slots: dict[str, int], kernels: Kernels, fingerprint: str) -> ServerHint | None:
    """The hint that `save_hint` kept; None where there is none of this bundle, these kernels and this version, or a part of
    it is missing or cut off.
    """
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        sizes = about.pop("sizes")
        if about != _about(kernels, fingerprint):
            return None
        arrays: dict[str, dict[str, NDArray[Any]]] = {segment: {} for segment in slots}
        for name, size in sizes.items():
            segment, _, part = name.partition(".")
            file = folder / f"{name}.npy"
            if file.stat().st_size != size:
                raise ValueError(f"{file.name} has {file.stat().st_size} bytes of {size}")
            arrays[segment][part] = np.asarray(np.load(file, mmap_mode="c", allow_pickle=False))
        if not all(arrays.values()):
            raise ValueError("a segment is missing")
        return ServerHint.from_arrays(params, kernels, arrays, slots)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("the hint kept in %s is damaged (%s); it is built again", folder, error)
        return None


def _about(kernels: Kernels, fingerprint: str) -> dict[str, Any]:
    return {"version": VERSION, "kernels": kernels.name, "fingerprint": fingerprint}
