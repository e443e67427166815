"""Where a client keeps its sign vectors: a file of its own for each half, in the user's data folder, for its owner's eyes.

Not in the half's folder: that is what is copied, offered to others and covered by one digest, and the vectors are secret.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from veil.bundle.manifest import Manifest
from veil.cache import data_folder
from veil.checks.vectors import GroupVectors, edges_of, vectors_of
from veil.disk import write_whole
from veil.errors import BundleError

Integer = TypeVar("Integer", bound=np.integer)

FORMAT = "1"
_REMEDY = "make it anew with 'veil check MODEL --half HALF'"


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of all groups of a half, and the name of the model that they were made from."""

    against: str
    groups: Sequence[GroupVectors]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(group.nbytes for group in self.groups)


def path_of(half: str) -> Path:
    """Where the vectors of the half with this digest are, if there are any."""
    return data_folder() / "checks" / f"{half}.safetensors"


def save_vectors(half: str, vectors: Vectors) -> Path:
    """Write the vectors of the half with this digest, whole or not at all, readable by its owner alone."""
    path = path_of(half)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    arrays: dict[str, NDArray[np.integer]] = {}
    for index, group in enumerate(vectors.groups):
        arrays[f"signs.{index}"] = np.packbits(group.signs > 0, axis=1)
        arrays[f"sums.{index}"] = group.sums
        arrays[f"overlap.{index}"] = group.overlap
    write_whole(path, save(arrays, {"format": FORMAT, "half": half, "against": vectors.against}), mode=0o600)
    return path


def load_vectors(half: str, manifest: Manifest) -> Vectors | None:
    """The vectors of the half with this digest, or None where there are none.

    `BundleError` for a file that others may read, of another half, or that does not fit the manifest.
    """
    path = path_of(half)
    if not path.exists():
        return None
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise BundleError(f"{path} may be read by others, who could then cheat unseen; {_REMEDY}")
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            if (header.get("format"), header.get("half")) != (FORMAT, half):
                raise BundleError(f"{path} is not of this half, or of another version; {_REMEDY}")
            groups = []
            for index, group in enumerate(manifest.groups):
                chunks, count = len(edges_of(group)) - 1, vectors_of(group)
                packed = _tensor(file, f"signs.{index}", np.uint8, (count, -(-group.rows // 8)), path)
                sums = _tensor(file, f"sums.{index}", np.int16, (chunks, count, group.width), path)
                overlap = _tensor(file, f"overlap.{index}", np.int32, (chunks, count, count), path)
                signs = np.unpackbits(packed, axis=1)[:, : group.rows].astype(np.int8) * 2 - 1
                groups.append(GroupVectors(np.ascontiguousarray(signs), sums, overlap))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    return Vectors(header.get("against", "?"), groups)


def _tensor(file: safe_open, name: str, dtype: type[Integer], shape: tuple[int, ...], path: Path) -> NDArray[Integer]:
    tensor: NDArray[Integer] = file.get_tensor(name)  # type: ignore[no-untyped-call]
    if tensor.dtype != dtype or tensor.shape != shape:
        raise BundleError(f"{path} does not fit the half; {_REMEDY}")
    return tensor
