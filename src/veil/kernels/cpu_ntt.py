"""Numba transforms of the CPU backend: Harvey's lazy butterflies (arXiv 1205.2926), values below 4p between stages.

The loops that matter are functions of their own over contiguous words: LLVM vectorises them there (0.4 ns a butterfly),
and not when they stand inside a parallel body.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from veil.kernels.cpu_butterfly import BACK, BACK_COLUMNS, FORWARD, FORWARD_COLUMNS, stages
from veil.kernels.cpu_tile import transpose
from veil.kernels.cpu_vector import lanes
from veil.kernels.tables import NttTable, shoup

U32 = NDArray[np.uint32]


def forward_twiddles(table: NttTable) -> U32:
    """Twiddles [2, R, R] that `forward` takes: factors and their Shoup companions; row 0 before the transposition."""
    return _twiddles(table, table.forward, table.forward_lanes)


def inverse_twiddles(table: NttTable) -> U32:
    """Twiddles [2, R, R] that `inverse` takes; the last factor 1/degree stands in the unused entry 0."""
    twiddles = _twiddles(table, table.inverse, table.inverse_lanes)
    twiddles[0, 0, 0] = table.degree_inverse
    twiddles[1, 0, 0] = (table.degree_inverse << 32) // table.prime
    return twiddles


def _twiddles(table: NttTable, first: U32, lanes: U32) -> U32:
    factors = np.concatenate([first[None, : table.side], lanes])
    return np.stack([factors, shoup(factors, table.prime)])


@njit(cache=True)
def _transpose(a, b):  # type: ignore[no-untyped-def]
    side = a.shape[0]
    width = lanes() if side >= 16 else 8
    source, target = a.reshape(a.size), b.reshape(b.size)
    for i in range(0, side, width):
        for j in range(0, side, width):
            transpose(source, i * side + j, side, width, target, j * side + i, side, width, width)


@njit(cache=True)
def forward(a, out, scratch, twiddles, p):  # type: ignore[no-untyped-def]
    """Transform ``a`` [R, R] (below 4p, destroyed) into ``out`` (below p); ``scratch`` has the same size."""
    side = a.shape[0]
    if side == 64:
        stages(64, FORWARD, a, a, twiddles, p)
        _transpose(a, scratch)
        stages(64, FORWARD_COLUMNS, scratch, out, twiddles, p)
    elif side == 32:
        stages(32, FORWARD, a, a, twiddles, p)
        _transpose(a, scratch)
        stages(32, FORWARD_COLUMNS, scratch, out, twiddles, p)
    elif side == 16:
        stages(16, FORWARD, a, a, twiddles, p)
        _transpose(a, scratch)
        stages(16, FORWARD_COLUMNS, scratch, out, twiddles, p)
    else:
        stages(8, FORWARD, a, a, twiddles, p)
        _transpose(a, scratch)
        stages(8, FORWARD_COLUMNS, scratch, out, twiddles, p)


@njit(cache=True)
def inverse(a, out, scratch, twiddles, p):  # type: ignore[no-untyped-def]
    """Inverse of `forward`: ``a`` (below 2p, destroyed) into ``out`` (below p)."""
    side = a.shape[0]
    if side == 64:
        stages(64, BACK_COLUMNS, a, a, twiddles, p)
        _transpose(a, scratch)
        stages(64, BACK, scratch, out, twiddles, p)
    elif side == 32:
        stages(32, BACK_COLUMNS, a, a, twiddles, p)
        _transpose(a, scratch)
        stages(32, BACK, scratch, out, twiddles, p)
    elif side == 16:
        stages(16, BACK_COLUMNS, a, a, twiddles, p)
        _transpose(a, scratch)
        stages(16, BACK, scratch, out, twiddles, p)
    else:
        stages(8, BACK_COLUMNS, a, a, twiddles, p)
        _transpose(a, scratch)
        stages(8, BACK, scratch, out, twiddles, p)


@njit(cache=True, parallel=True, nogil=True)
def forward_batch(values, out, twiddles, p):  # type: ignore[no-untyped-def]
    """`forward` of each square of ``values`` [B, R, R] into ``out``."""
    for i in prange(values.shape[0]):
        scratch = np.empty((2, values.shape[1], values.shape[2]), np.uint32)
        scratch[0] = values[i]
        forward(scratch[0], out[i], scratch[1], twiddles, p)


@njit(cache=True, parallel=True, nogil=True)
def inverse_batch(values, out, twiddles, p):  # type: ignore[no-untyped-def]
    """`inverse` of each square of ``values`` [B, R, R] into ``out``."""
    for i in prange(values.shape[0]):
        scratch = np.empty((2, values.shape[1], values.shape[2]), np.uint32)
        scratch[0] = values[i]
        inverse(scratch[0], out[i], scratch[1], twiddles, p)
