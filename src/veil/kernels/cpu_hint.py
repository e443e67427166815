"""Numba kernels that build the hint, and the client's products with a secret."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from veil.kernels.cpu_ntt import forward, inverse
from veil.kernels.cpu_outer import LINE, gather, montgomery
from veil.kernels.cpu_pointwise import add_product


@njit(cache=True)
def _load_signed(values, out, p):  # type: ignore[no-untyped-def]
    """Small signed values (|v| < p) as residues."""
    out[:] = 0
    flat = out.ravel()
    for j in range(values.size):
        v = np.int32(values[j])
        flat[j] = np.uint32(v + (np.int32(p) if v < 0 else np.int32(0)))


@njit(cache=True)
def _lift(first, second, out, p1, p2, p1_inverse, pn2):  # type: ignore[no-untyped-def]
    """``out += x`` modulo 2^32 for the centred x with residues first (mod p1) and second (mod p2)."""
    whole = np.uint64(p1) * np.uint64(p2)
    half = whole >> np.uint64(1)
    for r in range(first.shape[0]):
        for j in range(first.shape[1]):
            x1 = first[r, j]
            x1_reduced = min(x1, np.uint32(x1 - p2))
            d = np.uint32(np.uint32(second[r, j] - x1_reduced) + p2)
            v = montgomery(np.uint64(d) * np.uint64(p1_inverse), p2, pn2)
            v = min(v, np.uint32(v - p2))
            x = np.uint64(x1) + np.uint64(p1) * np.uint64(v)
            low = np.uint32(x)
            out[r, j] = np.uint32(out[r, j] + (np.uint32(low - np.uint32(whole)) if x > half else low))


@njit(cache=True, parallel=True, nogil=True)
def inner_hint(weights, points, most_chunks, bits, out, k):  # type: ignore[no-untyped-def]
    """H' of rows [B, d] from the conjugate public polynomials' points [C, 2, r, r] (Montgomery form) → out [B, n]."""
    side = points.shape[2]
    n = side * side
    rows, width = weights.shape
    chunks = points.shape[0]
    half, down, top = np.uint32(1 << (31 - bits)), np.uint32(32 - bits), np.int32(1 << (bits - 1))
    for row in prange(rows):
        total = np.zeros((side, side), np.uint32)
        residues = np.empty((2, side, side), np.uint32)
        scratch = np.empty((3, side, side), np.uint32)
        for start in range(0, chunks, most_chunks):
            for i in range(2):
                p, pn = k.primes[i], k.negatives[i]
                accumulated = np.zeros((side, side), np.uint32)
                for c in range(start, min(start + most_chunks, chunks)):
                    _load_signed(weights[row, c * n : min((c + 1) * n, width)], scratch[0], p)
                    forward(scratch[0], scratch[1], scratch[2], k.inner_forward[i], p)
                    add_product(accumulated, scratch[1], points[c, i], p, pn)
                inverse(accumulated, residues[i], scratch[2], k.inner_inverse[i], p)
            _lift(residues[0], residues[1], total, k.primes[0], k.primes[1], k.first_inverse, k.negatives[1])
        flat = total.ravel()
        for j in range(n):
            v = np.int32((flat[j] + half) >> down)
            out[row, j] = v - (np.int32(2) * top if v >= top else np.int32(0))


@njit(cache=True, parallel=True, nogil=True)
def outer_hint(block, out, k):  # type: ignore[no-untyped-def]
    """Ĥ of a block: H' [slots, n] → out [2, N, G, I]; see `reference.outer_hint`."""
    slots = block.shape[0]
    side = k.automorphisms.shape[1]
    N = side * side
    fold, leaves = out.shape[2], out.shape[3]
    line = min(LINE, leaves)
    groups = leaves // line
    for job in prange(2 * groups):
        prime, group = job // groups, job % groups
        p, pn = k.primes[prime], k.negatives[prime]
        columns = np.zeros((line * fold, N), np.uint32)
        first = group * line * fold
        for slot in range(slots):
            for c in range(line * fold):
                v = block[slot, first + c]
                columns[c, slot] = np.uint32(v + (np.int32(p) if v < 0 else np.int32(0)))
        points = np.empty((fold, side, side), np.uint32)
        scratch = np.empty((side, side), np.uint32)
        tile = np.empty((line, fold, side, side), np.uint32)
        for i in range(line):
            for j in range(fold):
                column = columns[i * fold + j].reshape(side, side)
                forward(column, points[j], scratch, k.forward[prime], p)
            for r in range(fold):
                tile[i, r] = 0
                for j in range(fold):
                    gather(points[j].ravel(), k.inverse_rotations[r], scratch)
                    add_product(tile[i, r], scratch, k.folds[prime, j], p, pn)
        flat = tile.reshape(line, fold, N)
        for t in range(N):
            for r in range(fold):
                for i in range(line):
                    out[prime, t, r, group * line + i] = flat[i, r, t]


@njit(cache=True, parallel=True, nogil=True)
def secret_products(public, secret, out, twiddles, k):  # type: ignore[no-untyped-def]
    """Public points [C, 2, R, R] times secret points [2, R, R] (Montgomery form) → integers modulo 2^32 [C, R, R]."""
    side = public.shape[2]
    for c in prange(public.shape[0]):
        residues = np.empty((2, side, side), np.uint32)
        scratch = np.empty((2, side, side), np.uint32)
        for i in range(2):
            p, pn = k.primes[i], k.negatives[i]
            scratch[0] = 0
            add_product(scratch[0], public[c, i], secret[i], p, pn)
            inverse(scratch[0], residues[i], scratch[1], twiddles[i], p)
        out[c] = 0
        _lift(residues[0], residues[1], out[c], k.primes[0], k.primes[1], k.first_inverse, k.negatives[1])
