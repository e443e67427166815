"""The server half of a bundle: integer weights, manifest, seed. A server loads this and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from veil.bundle import header_file
from veil.bundle.manifest import Manifest
from veil.errors import BundleError
from veil.kernels.memory import in_one_block
from veil.params import Params
from veil.seed import PublicSeed

I8 = NDArray[np.int8]
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, eq=False)
class ServerModel:
    """What the server half of a bundle holds: parameters, seed, manifest and each group's int8 weights [rows, width]."""

    params: Params
    seed: PublicSeed
    manifest: Manifest
    weights: tuple[I8, ...]


def save_server(path: Path, model: ServerModel, client: str) -> None:
    """Write the server half into the folder ``path``; ``client`` is the digest of the client half that goes with it."""
    path.mkdir(parents=True, exist_ok=True)
    save_file({f"group.{i}": np.ascontiguousarray(w) for i, w in enumerate(model.weights)}, path / WEIGHTS)
    fields = header_file.common_fields(model.params, model.seed, model.manifest)
    fields["client"] = client
    header_file.write_header(path, "server", fields)


def client_digest(path: Path) -> str:
    """The digest of the client half that goes with the server half in the folder ``path``."""
    found = header_file.read_header(path, "server", verify=False).get("client")
    if not isinstance(found, str) or not re.fullmatch("[0-9a-f]{64}", found):
        raise BundleError(f"{path} does not say which client half goes with it; compile the model again")
    return found


def load_server(path: Path, *, verify: bool = True) -> ServerModel:
    """Read the server half from the folder ``path``.

    `BundleError` for what is damaged or does not fit its manifest.
    """
    header = header_file.read_header(path, "server", verify=verify)
    params, seed, manifest = header_file.parse_common(header)
    try:
        with safe_open(path / WEIGHTS, framework="np") as file:
            names = set(file.keys())
            for index, group in enumerate(manifest.groups):
                name = f"group.{index}"
                expected = [group.rows, group.width]
                view = file.get_slice(name) if name in names else None
                if view is None or view.get_shape() != expected or view.get_dtype() != "I8":
                    raise BundleError(f"{path / WEIGHTS}: {name} is not int8 of shape {expected}")
        weights = _read(path / WEIGHTS, [(group.rows, group.width) for group in manifest.groups])
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path / WEIGHTS} cannot be read: {error}") from None
    return ServerModel(params, seed, manifest, weights)


def _read(path: Path, shapes: list[tuple[int, int]]) -> tuple[NDArray[np.int8], ...]:
    """The tensors of a file that `safe_open` found to be in order, in one block of memory.

    NumPy asks for huge pages for a block; a core multiplies from those a tenth faster than from a mapped file's small ones.
    """
    places, weights = _places(path), in_one_block(shapes, np.int8)
    with path.open("rb") as file:
        for index, matrix in enumerate(weights):
            file.seek(places[f"group.{index}"])
            if file.readinto(matrix.reshape(-1).data) != matrix.size:
                raise BundleError(f"{path} ends early")
    return weights


def _places(path: Path) -> dict[str, int]:
    """Where each tensor starts in a safetensors file that `safe_open` found to be in order."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"}
