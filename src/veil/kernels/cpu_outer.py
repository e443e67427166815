"""Numba kernels of the outer layer: expansion, Ĥ product, combination. Products are reduced by Montgomery's method.

A constant that multiplies is kept as ``w·2^32 mod p``, so that one reduction of a 64-bit product gives the residue.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from veil.kernels.cpu_ntt import forward, inverse
from veil.kernels.cpu_tile import dots, transpose
from veil.kernels.cpu_vector import lanes

LINE = 16  # words of a cache line: transposed results are written a line at a time


@njit(cache=True, inline="always")
def montgomery(value, p, negative_inverse):  # type: ignore[no-untyped-def]
    """``value·2^-32`` modulo p, below ``value/2^32 + p``."""
    m = np.uint32(np.uint32(value) * negative_inverse)
    return np.uint32((value + np.uint64(m) * np.uint64(p)) >> np.uint64(32))


@njit(cache=True)
def gather(source, order, out):  # type: ignore[no-untyped-def]
    """``out[r, j] = source[order[r, j]]`` over the flattened source."""
    for r in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[r, j] = source[order[r, j]]


@njit(cache=True)
def _add_key_product(total, d0, d1, k0, k1, p, pn):  # type: ignore[no-untyped-def]
    """``total += d0·k0 + d1·k1``: a key switch on the b side, or its sum over both digits on the a side."""
    p2 = np.uint32(2) * p
    for r in range(total.shape[0]):
        for j in range(total.shape[1]):
            x = np.uint64(d0[r, j]) * np.uint64(k0[r, j]) + np.uint64(d1[r, j]) * np.uint64(k1[r, j])
            s = np.uint32(total[r, j] + montgomery(x, p, pn))
            s = min(s, np.uint32(s - p2))
            total[r, j] = min(s, np.uint32(s - p))


@njit(cache=True)
def _tree_step(low, high, switched, monomial, p, pn):  # type: ignore[no-untyped-def]
    """A node and its switched automorphism → both children: the sum, and the difference times a monomial."""
    for r in range(low.shape[0]):
        for j in range(low.shape[1]):
            u, s = low[r, j], switched[r, j]
            total = np.uint32(u + s)
            low[r, j] = min(total, np.uint32(total - p))
            d = np.uint32(np.uint32(u - s) + p)
            v = montgomery(np.uint64(d) * np.uint64(monomial[r, j]), p, pn)
            high[r, j] = min(v, np.uint32(v - p))


@njit(cache=True)
def _centre(values, offset, ratio, half, p):  # type: ignore[no-untyped-def]
    """Residues of another modulus, centred, modulo p and below 2p; offset = -modulus mod p, ratio = ⌊2^32/p⌋."""
    for r in range(values.shape[0]):
        for j in range(values.shape[1]):
            v = values[r, j]
            v = np.uint32(v + (offset if v > half else np.uint32(0)))
            q = np.uint32((np.uint64(v) * np.uint64(ratio)) >> np.uint64(32))
            values[r, j] = np.uint32(v - np.uint32(q * p))


@njit(cache=True)
def _subtract_scale(values, correction, factor, out, p, pn):  # type: ignore[no-untyped-def]
    for r in range(values.shape[0]):
        for j in range(values.shape[1]):
            d = np.uint32(np.uint32(values[r, j] - correction[r, j]) + p)
            v = montgomery(np.uint64(d) * np.uint64(factor), p, pn)
            out[r, j] = min(v, np.uint32(v - p))


@njit(cache=True)
def _scale_all(values, factor, out, p, pn):  # type: ignore[no-untyped-def]
    for r in range(values.shape[0]):
        for j in range(values.shape[1]):
            v = montgomery(np.uint64(values[r, j]) * np.uint64(factor), p, pn)
            out[r, j] = min(v, np.uint32(v - p))


@njit(cache=True)
def _divide_by_special(node, out, scratch, k):  # type: ignore[no-untyped-def]
    """``node`` [3, R, R] modulo Q·P → ``out`` [2, R, R] modulo Q; ``scratch`` [3, R, R]."""
    scratch[0] = node[2]
    inverse(scratch[0], scratch[2], scratch[1], k.inverse[2], k.primes[2])
    for i in range(2):
        p, pn = k.primes[i], k.negatives[i]
        scratch[0] = scratch[2]
        _centre(scratch[0], k.centre_special[i], k.ratios[i], k.half_special, p)
        forward(scratch[0], out[i], scratch[1], k.forward[i], p)
        _subtract_scale(node[i], out[i], k.special_inverse[i], out[i], p, pn)


@njit(cache=True, parallel=True, nogil=True)
def expand_b(b, digits, keys, nodes, leaves, k):  # type: ignore[no-untyped-def]
    """One mask's ``b`` side of expansion into ``leaves`` [2, N, I], through ``nodes`` [I, 3, R, R]."""
    side = b.shape[1]
    count_leaves = leaves.shape[2]
    for i in range(2):
        _scale_all(b[i], k.special[i], nodes[0, i], k.primes[i], k.negatives[i])
    nodes[0, 2] = 0
    levels = keys.shape[0]
    for level in range(levels):
        count = 1 << level
        for job in prange(count * 3):
            c, i = job // 3, job % 3
            moved = np.empty((side, side), np.uint32)
            gather(nodes[c, i].ravel(), k.automorphisms[level], moved)
            d, key, p, pn = digits[count - 1 + c], keys[level], k.primes[i], k.negatives[i]
            _add_key_product(moved, d[0, i], d[1, i], key[0, i], key[1, i], p, pn)
            _tree_step(nodes[c, i], nodes[c + count, i], moved, k.monomials[level, i], p, pn)
    line = min(LINE, count_leaves)
    for group in prange(count_leaves // line):
        scratch = np.empty((3, side, side), np.uint32)
        tile = np.empty((line, 2, side, side), np.uint32)
        for i in range(line):
            _divide_by_special(nodes[group * line + i], tile[i], scratch, k)
        flat = tile.reshape(line, 2, side * side)
        for prime in range(2):
            for j in range(side * side):
                for i in range(line):
                    leaves[prime, j, group * line + i] = flat[i, prime, j]


@njit(cache=True)
def _reduce_all(sums, out, square, p, pn):  # type: ignore[no-untyped-def]
    for j in range(sums.size):
        v = montgomery(sums[j], p, pn)
        v = montgomery(np.uint64(v) * np.uint64(square), p, pn)
        out[j] = min(v, np.uint32(v - p))


@njit(cache=True)
def _interleave(leaves, prime, point, tile):  # type: ignore[no-untyped-def]
    """``tile[i, t]`` = leaf i of mask t at one point; the last mask fills unused lanes."""
    count, width = tile.shape
    masks = leaves.shape[0]
    source, target = leaves.reshape(leaves.size), tile.reshape(tile.size)
    step = leaves.size // masks
    start = (prime * leaves.shape[2] + point) * count
    if width == 1:
        target[:] = source[start : start + count]
        return
    for i in range(0, count, width):
        transpose(source, start + i, step, masks, target, i * width, width, width, width)


@njit(cache=True)
def _write_lines(reduced, out, prime, first):  # type: ignore[no-untyped-def]
    """Residues [LINE, rows, W] of one line of points → out [T, rows, 2, N], a cache line at a time."""
    points, rows, width = reduced.shape
    masks, N = out.shape[0], out.shape[3]
    if width == 1:
        for r in range(rows):
            for j in range(points):
                out[0, r, prime, first + j] = reduced[j, r, 0]
        return
    source, target = reduced.reshape(reduced.size), out.reshape(out.size)
    for r in range(rows):
        for j in range(0, points, width):
            place = (r * 2 + prime) * N + first + j
            transpose(source, (j * rows + r) * width, rows * width, width, target, place, rows * 2 * N, masks, width)


@njit(cache=True, parallel=True, nogil=True)
def product(hint, leaves, out, k):  # type: ignore[no-untyped-def]
    """Ĥ product: hint [2, N, rows, I], rows ≥ ROWS, leaves [T, 2, N, I] → out [T, rows, 2, N]."""
    lines = hint.shape[1] // LINE
    rows, masks = hint.shape[2], leaves.shape[0]
    most = min(lanes(), leaves.shape[3])
    for job in prange(2 * lines):
        prime, first = job // lines, job % lines * LINE
        p, pn, square = k.primes[prime], k.negatives[prime], k.squares[prime]
        for start in range(0, masks, most):
            part = min(most, masks - start)
            width = 1 if part == 1 else 4 if part <= 4 else 8 if part <= 8 else 16
            tile = np.empty((leaves.shape[3], width), np.uint32)
            sums = np.empty((rows, width), np.uint64)
            reduced = np.empty((LINE, rows, width), np.uint32)
            for j in range(LINE):
                _interleave(leaves[start : start + part], prime, first + j, tile)
                dots(hint[prime, first + j], tile, sums)
                _reduce_all(sums.ravel(), reduced[j].ravel(), square, p, pn)
            _write_lines(reduced, out[start : start + part], prime, first)


@njit(cache=True)
def _add_reduced(total, values, p):  # type: ignore[no-untyped-def]
    for r in range(total.shape[0]):
        for j in range(total.shape[1]):
            s = np.uint32(total[r, j] + values[r, j])
            total[r, j] = min(s, np.uint32(s - p))


@njit(cache=True)
def _add_fraction(values, factor, fraction, total, p, pn):  # type: ignore[no-untyped-def]
    for r in range(values.shape[0]):
        for j in range(values.shape[1]):
            v = montgomery(np.uint64(values[r, j]) * np.uint64(factor), p, pn)
            v = min(v, np.uint32(v - p))
            total[r, j] += np.uint64(v) * fraction


@njit(cache=True)
def _round_fraction(total, bits, out):  # type: ignore[no-untyped-def]
    half, down = np.uint64(1) << np.uint64(63 - bits), np.uint64(64 - bits)
    for r in range(total.shape[0]):
        for j in range(total.shape[1]):
            out[r, j] = np.uint32((total[r, j] + half) >> down)


@njit(cache=True)
def _combine_block(products, digits, keys, bits, out, k):  # type: ignore[no-untyped-def]
    side = out.shape[0]
    total = np.zeros((3, side, side), np.uint32)
    scratch = np.empty((2, side, side), np.uint32)
    fold = products.shape[0]
    for r in range(fold):
        for i in range(2):
            gather(products[r, i], k.rotations[r], scratch[0])
            _add_reduced(total[i], scratch[0], k.primes[i])
    fractions = np.zeros((side, side), np.uint64)
    for i in range(3):
        p, pn = k.primes[i], k.negatives[i]
        if i < 2:
            _scale_all(total[i], k.special[i], total[i], p, pn)
        for r in range(fold - 1):
            _add_key_product(total[i], digits[r, 0, i], digits[r, 1, i], keys[r, 0, i], keys[r, 1, i], p, pn)
        inverse(total[i], scratch[0], scratch[1], k.inverse[i], p)
        _add_fraction(scratch[0], k.crt_inverse[i], k.fractions[i], fractions, p, pn)
    _round_fraction(fractions, bits, out)


@njit(cache=True, parallel=True, nogil=True)
def combine_b(products, digits, keys, bits, out, k):  # type: ignore[no-untyped-def]
    """One mask's combination: products [blocks, G, 2, N], digits [blocks, G-1, 2, 3, R, R] → out [blocks, R, R]."""
    for block in prange(out.shape[0]):
        _combine_block(products[block], digits[block], keys, bits, out[block], k)


# The a side ----------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _switch_digits(moved, digits, scratch, k):  # type: ignore[no-untyped-def]
    """``moved`` [2, R, R] → centred digits as points of all primes, ``digits`` [2, 3, R, R]; ``scratch`` [3, R, R]."""
    for j in range(2):
        scratch[0] = moved[j]
        inverse(scratch[0], scratch[2], scratch[1], k.inverse[j], k.primes[j])
        half = np.uint32(k.primes[j] // np.uint32(2))
        for i in range(3):
            p = k.primes[i]
            scratch[0] = scratch[2]
            _centre(scratch[0], k.centre[j, i], k.ratios[i], half, p)
            forward(scratch[0], digits[j, i], scratch[1], k.forward[i], p)


@njit(cache=True, parallel=True, nogil=True)
def expand_a(a, keys, digits, leaves, k):  # type: ignore[no-untyped-def]
    """One mask set's ``a`` side: a [2, R, R] → digits [I-1, 2, 3, R, R], leaves [I, 2, R, R]; keys in Montgomery form."""
    side = a.shape[1]
    leaves[0] = a
    for level in range(keys.shape[0]):
        count = 1 << level
        for c in prange(count):
            scratch = np.empty((3, side, side), np.uint32)
            moved = np.empty((2, side, side), np.uint32)
            total = np.zeros((3, side, side), np.uint32)
            for i in range(2):
                gather(leaves[c, i].ravel(), k.automorphisms[level], moved[i])
            d = digits[count - 1 + c]
            _switch_digits(moved, d, scratch, k)
            for i in range(3):
                _add_key_product(
                    total[i], d[0, i], d[1, i], keys[level, 0, i], keys[level, 1, i], k.primes[i], k.negatives[i]
                )
            _divide_by_special(total, moved, scratch, k)
            for i in range(2):
                _tree_step(leaves[c, i], leaves[c + count, i], moved[i], k.monomials[level, i], k.primes[i], k.negatives[i])


@njit(cache=True, parallel=True, nogil=True)
def rotation_digits(products, digits, k):  # type: ignore[no-untyped-def]
    """Key-switch digits of the combination: products [blocks, G, 2, N] → digits [blocks, G-1, 2, 3, R, R]."""
    side = digits.shape[4]
    for block in prange(products.shape[0]):
        scratch = np.empty((3, side, side), np.uint32)
        moved = np.empty((2, side, side), np.uint32)
        for r in range(1, products.shape[1]):
            for i in range(2):
                gather(products[block, r, i], k.rotations[r], moved[i])
            _switch_digits(moved, digits[block, r - 1], scratch, k)


@njit(cache=True, parallel=True, nogil=True)
def to_montgomery(values, out, k):  # type: ignore[no-untyped-def]
    """Residues [B, 3, N] → ``v·2^32 mod p`` [B, 3, N]."""
    for b in prange(values.shape[0]):
        for i in range(values.shape[1]):
            p, pn, square = k.primes[i], k.negatives[i], k.squares[i]
            for j in range(values.shape[2]):
                v = montgomery(np.uint64(values[b, i, j]) * np.uint64(square), p, pn)
                out[b, i, j] = min(v, np.uint32(v - p))
