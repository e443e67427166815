"""Arrays of the client half of a bundle: each group's constants, and the public tables a'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from veil.bundle.compiled import Compiled
from veil.bundle.constants import GroupConstants
from veil.bundle.manifest import Manifest
from veil.errors import BundleError
from veil.kernels.backend import kernels_for
from veil.params import Params, packed_bytes
from veil.seed import PublicSeed

REMOTE = "remote.safetensors"
TABLES = "tables.safetensors"


@dataclass(frozen=True, eq=False)
class ClientModel:
    """What a session needs of the client half of a bundle: no weight, only public tables and what scales inputs.

    ``tables`` are a' [T, slots up to whole blocks] by segment.
    """

    params: Params
    seed: PublicSeed
    manifest: Manifest
    tables: dict[str, NDArray[np.uint32]]


def save_arrays(path: Path, compiled: Compiled, tables: Mapping[str, NDArray[np.uint32]]) -> None:
    """Write the constants and the public tables a' [T, slots up to whole blocks] by segment into the folder ``path``."""
    arrays = {}
    for index, group in enumerate(compiled.constants):
        arrays[f"scale.{index}"] = group.scale
        if group.bias.any():
            arrays[f"bias.{index}"] = group.bias
        if group.divisors is not None:
            arrays[f"divisors.{index}"] = group.divisors
        if group.shift is not None:
            arrays[f"shift.{index}"] = group.shift
    save_file(arrays, path / REMOTE)
    bits, kernels = compiled.params.spec.public_bits, kernels_for("cpu")
    save_file({name: kernels.pack(np.ascontiguousarray(table), bits) for name, table in tables.items()}, path / TABLES)


def load_constants(
    path: Path, manifest: Manifest, norms: Sequence[tuple[float, float | None]]
) -> tuple[GroupConstants, ...]:
    """Constants for ``norms`` (bound, fixed norm) of each group; `BundleError` for arrays that do not fit the manifest."""
    arrays = load_file(path / REMOTE)
    constants = []
    for index, group in enumerate(manifest.groups):
        sizes = {"scale": group.rows, "bias": group.rows}
        sizes |= {"shift": group.rows} if group.fusion else {}
        sizes |= {"divisors": group.width} if group.fusion or f"divisors.{index}" in arrays else {}
        arrays.setdefault(f"bias.{index}", np.zeros(group.rows, dtype=np.float32))
        own = {name: arrays[f"{name}.{index}"] for name in sizes}
        for name, size in sizes.items():
            if own[name].dtype != np.float32 or own[name].shape != (size,):
                raise BundleError(f"{path / REMOTE}: group {index} does not have {size} float32 values of {name}")
        divisors = own.get("divisors")
        if divisors is not None and not ((divisors > 0) & np.isfinite(divisors)).all():
            raise BundleError(f"{path / REMOTE}: group {index} divides its inputs by something that is not positive")
        bound, fixed = norms[index]
        fixed_norm = None if fixed is None else float(fixed)
        constants.append(GroupConstants(own["scale"], own["bias"], float(bound), fixed_norm, divisors, own.get("shift")))
    return tuple(constants)


def load_tables(path: Path, params: Params, manifest: Manifest) -> dict[str, NDArray[np.uint32]]:
    """The public tables a' [T, slots up to whole blocks] by segment; `BundleError` for arrays that do not fit."""
    packed = load_file(path / TABLES)
    bits, tables, kernels = params.spec.public_bits, {}, kernels_for("cpu")
    for name, slots in manifest.segments.items():
        count = params.blocks(slots) * params.w
        shape = (params.T, packed_bytes(count, bits))
        if packed[name].dtype != np.uint8 or packed[name].shape != shape:
            raise BundleError(f"{path / TABLES}: {name} is not uint8 of shape {shape}")
        tables[name] = kernels.unpack(packed[name], count, bits)
    return tables
