"""Numba transforms of the CPU backend: Harvey's lazy butterflies (arXiv 1205.2926), values below 4p between stages.

The loops that matter are functions of their own over contiguous words: LLVM vectorises them there (0.4 ns a butterfly),
and not when they stand inside a parallel body.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

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
def _forward_run(a, x, y, w, ws, p):  # type: ignore[no-untyped-def]
    p2 = np.uint32(2) * p
    for j in range(a.shape[1]):
        u = a[x, j]
        u = min(u, np.uint32(u - p2))
        v = a[y, j]
        q = np.uint32((np.uint64(v) * np.uint64(ws)) >> np.uint64(32))
        t = np.uint32(np.uint32(v * w) - np.uint32(q * p))
        a[x, j] = np.uint32(u + t)
        a[y, j] = np.uint32(np.uint32(u - t) + p2)


@njit(cache=True)
def _forward_lanes(a, x, y, w, ws, p):  # type: ignore[no-untyped-def]
    p2 = np.uint32(2) * p
    for j in range(a.shape[1]):
        u = a[x, j]
        u = min(u, np.uint32(u - p2))
        v = a[y, j]
        q = np.uint32((np.uint64(v) * np.uint64(ws[j])) >> np.uint64(32))
        t = np.uint32(np.uint32(v * w[j]) - np.uint32(q * p))
        a[x, j] = np.uint32(u + t)
        a[y, j] = np.uint32(np.uint32(u - t) + p2)


@njit(cache=True)
def _inverse_run(a, x, y, w, ws, p):  # type: ignore[no-untyped-def]
    p2 = np.uint32(2) * p
    for j in range(a.shape[1]):
        u = a[x, j]
        v = a[y, j]
        total = np.uint32(u + v)
        a[x, j] = min(total, np.uint32(total - p2))
        d = np.uint32(np.uint32(u - v) + p2)
        q = np.uint32((np.uint64(d) * np.uint64(ws)) >> np.uint64(32))
        a[y, j] = np.uint32(np.uint32(d * w) - np.uint32(q * p))


@njit(cache=True)
def _inverse_lanes(a, x, y, w, ws, p):  # type: ignore[no-untyped-def]
    p2 = np.uint32(2) * p
    for j in range(a.shape[1]):
        u = a[x, j]
        v = a[y, j]
        total = np.uint32(u + v)
        a[x, j] = min(total, np.uint32(total - p2))
        d = np.uint32(np.uint32(u - v) + p2)
        q = np.uint32((np.uint64(d) * np.uint64(ws[j])) >> np.uint64(32))
        a[y, j] = np.uint32(np.uint32(d * w[j]) - np.uint32(q * p))


@njit(cache=True)
def _transpose(a, b):  # type: ignore[no-untyped-def]
    side = a.shape[0]
    for i0 in range(0, side, 8):
        for j0 in range(0, side, 8):
            for j in range(8):
                for i in range(8):
                    b[j0 + j, i0 + i] = a[i0 + i, j0 + j]


@njit(cache=True)
def _reduce(b, out, p):  # type: ignore[no-untyped-def]
    p2 = np.uint32(2) * p
    for r in range(b.shape[0]):
        for j in range(b.shape[1]):
            u = b[r, j]
            u = min(u, np.uint32(u - p2))
            out[r, j] = min(u, np.uint32(u - p))


@njit(cache=True)
def _scale(a, out, w, ws, p):  # type: ignore[no-untyped-def]
    for r in range(a.shape[0]):
        for j in range(a.shape[1]):
            v = a[r, j]
            q = np.uint32((np.uint64(v) * np.uint64(ws)) >> np.uint64(32))
            t = np.uint32(np.uint32(v * w) - np.uint32(q * p))
            out[r, j] = min(t, np.uint32(t - p))


@njit(cache=True)
def forward(a, out, scratch, twiddles, p):  # type: ignore[no-untyped-def]
    """Transform ``a`` [R, R] (below 4p, destroyed) into ``out`` (below p); ``scratch`` has the same size."""
    w, ws = twiddles[0], twiddles[1]
    side = a.shape[0]
    groups, half = 1, side // 2
    while half:
        for g in range(groups):
            for k in range(2 * half * g, 2 * half * g + half):
                _forward_run(a, k, k + half, w[0, groups + g], ws[0, groups + g], p)
        groups, half = 2 * groups, half // 2
    _transpose(a, scratch)
    groups, half = 1, side // 2
    while half:
        for g in range(groups):
            for k in range(2 * half * g, 2 * half * g + half):
                _forward_lanes(scratch, k, k + half, w[groups + g], ws[groups + g], p)
        groups, half = 2 * groups, half // 2
    _reduce(scratch, out, p)


@njit(cache=True)
def inverse(a, out, scratch, twiddles, p):  # type: ignore[no-untyped-def]
    """Inverse of `forward`: ``a`` (below 2p, destroyed) into ``out`` (below p)."""
    w, ws = twiddles[0], twiddles[1]
    side = a.shape[0]
    groups, half = side // 2, 1
    while groups:
        for g in range(groups):
            for k in range(2 * half * g, 2 * half * g + half):
                _inverse_lanes(a, k, k + half, w[groups + g], ws[groups + g], p)
        groups, half = groups // 2, 2 * half
    _transpose(a, scratch)
    groups, half = side // 2, 1
    while groups:
        for g in range(groups):
            for k in range(2 * half * g, 2 * half * g + half):
                _inverse_run(scratch, k, k + half, w[0, groups + g], ws[0, groups + g], p)
        groups, half = groups // 2, 2 * half
    _scale(scratch, out, w[0, 0], ws[0, 0], p)


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
