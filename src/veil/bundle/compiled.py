"""A compiled model in memory: what both sides know, what the client keeps, and the server's weights where they are here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veil.bundle.constants import GroupConstants
from veil.bundle.manifest import Manifest
from veil.params import Params
from veil.seed import PublicSeed

I8 = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled model: public parameters, seed and manifest; the client's constants; the server's weights.

    ``weights`` is None where only the client half of a bundle is here.
    """

    params: Params
    seed: PublicSeed
    manifest: Manifest
    constants: tuple[GroupConstants, ...]
    weights: tuple[I8, ...] | None
    unfused: tuple[str, ...] = ()
    """Why norms stayed that fusing was tried on; known when a model is compiled, not kept in a bundle."""
    asked: frozenset[str] = frozenset()
    """Names of the layers that calibration reached; likewise."""
