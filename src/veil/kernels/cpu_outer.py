"""Numba kernels of the outer layer: expansion, Ĥ product, combination. Products are reduced by Montgomery's method.

A constant that multiplies is kept as ``w·2^32 mod p``, so that one reduction of a 64-bit product gives the residue.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from veil.kernels.cpu_ntt import forward, inverse
from veil.kernels.cpu_pointwise import add_key_product, centre, scale, subtract_scale, tree_step
from veil.kernels.cpu_tile import ROWS, dots, gather_lines, transpose, two_dots
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
def _divide_by_special(node, out, scratch, k):  # type: ignore[no-untyped-def]
    """``node`` [3, R, R] modulo Q·P (its last part is destroyed) → ``out`` [2, R, R] modulo Q; ``scratch`` [3, R, R]."""
    inverse(node[2], scratch[2], scratch[1], k.inverse[2], k.primes[2])
    for i in range(2):
        p, pn = k.primes[i], k.negatives[i]
        centre(scratch[0], scratch[2], p, pn, k.centre_special[i], k.ratios[i], k.half_special)
        forward(scratch[0], out[i], scratch[1], k.forward[i], p)
        subtract_scale(out[i], node[i], out[i], p, pn, k.special_inverse[i])


@njit(cache=True)
def _split_node(node, high, moved, level, digits, keys, k):  # type: ignore[no-untyped-def]
    """A node [3, R, R] of a level becomes its first child, ``high`` the second; ``digits`` and ``keys`` [2, 3, R, R]."""
    for i in range(3):
        gather(node[i].ravel(), k.automorphisms[level], moved)
        p, pn = k.primes[i], k.negatives[i]
        tree_step(node[i], high[i], moved, digits[0, i], digits[1, i], keys[0, i], keys[1, i], k.monomials[level, i], p, pn)


@njit(cache=True)
def _expand_subtree(roots, first, top, digits, keys, leaves, k):  # type: ignore[no-untyped-def]
    """The leaves below node ``first`` of level ``top``, depth first: what is under way stays in the cache.

    Step j descends to the j-th leaf in the order "first child before second", from where its path leaves the last one.
    """
    side = roots.shape[2]
    depth = keys.shape[0] - top
    waiting = np.empty((depth + 1, 3, side, side), np.uint32)
    moved = np.empty((side, side), np.uint32)
    scratch = np.empty((3, side, side), np.uint32)
    waiting[depth] = roots[first]
    at = depth
    for j in range(1 << depth):
        start = 0
        if j > 0:
            start = depth
            while (j >> (depth - start)) & 1 == 0:
                start -= 1
            at = start - 1
        c = np.int64(first)
        for d in range(depth):
            level = top + d
            if d >= start:
                _split_node(waiting[at], waiting[d], moved, level, digits[(1 << level) - 1 + c], keys[level], k)
            if (j >> (depth - 1 - d)) & 1:
                c += 1 << level
        leaf = leaves[c, : 2 * side * side].reshape(2, side, side)
        _divide_by_special(waiting[at], leaf, scratch, k)


@njit(cache=True, parallel=True, nogil=True)
def expand_b(b, digits, keys, leaves, k):  # type: ignore[no-untyped-def]
    """One mask's ``b`` side of expansion: b [2, R, R], digits [I-1, 2, 3, R, R] → leaves [I, 2·R·R and padding].

    The first levels together, then each subtree by itself.
    """
    side = b.shape[1]
    top = min(3, keys.shape[0])
    roots = np.empty((1 << top, 3, side, side), np.uint32)
    for i in range(2):
        scale(roots[0, i], b[i], k.primes[i], k.negatives[i], k.special[i])
    roots[0, 2] = 0
    for level in range(top):
        for c in prange(1 << level):
            moved = np.empty((side, side), np.uint32)
            high = roots[np.int64(c) + (1 << level)]
            _split_node(roots[c], high, moved, level, digits[np.int64(c) + (1 << level) - 1], keys[level], k)
    for first in prange(1 << top):
        _expand_subtree(roots, first, top, digits, keys, leaves, k)


@njit(cache=True)
def reduce_sums(out, sums, p, pn, square):  # type: ignore[no-untyped-def]
    """64-bit sums as residues; ``square`` is 2^64 mod p."""
    for j in range(sums.size):
        v = montgomery(sums[j], p, pn)
        v = montgomery(np.uint64(v) * np.uint64(square), p, pn)
        out[j] = min(v, np.uint32(v - p))


@njit(cache=True)
def _interleave(leaves, prime, first, tiles):  # type: ignore[no-untyped-def]
    """``tiles[j, i, t]`` = leaf i of mask t at point ``first + j``; the last mask fills unused lanes."""
    points, count, width = tiles.shape
    masks, N = leaves.shape[0], leaves.shape[3]
    by_mask, by_leaf = leaves.strides[0] // 4, leaves.strides[1] // 4
    target = tiles.reshape(tiles.size)
    if width == 1:
        square = min(lanes(), count)
        for i in range(0, count, square):
            for j in range(0, points, square):
                start = i * by_leaf + prime * N + first + j
                gather_lines(leaves, start, by_leaf, square, target, j * count + i, count, square)
        return
    for i in range(count):
        for j in range(0, points, width):
            start = i * by_leaf + prime * N + first + j
            gather_lines(leaves, start, by_mask, masks, target, (j * count + i) * width, count * width, width)


@njit(cache=True)
def _write_lines(reduced, out, prime, first):  # type: ignore[no-untyped-def]
    """Residues [LINE, rows, W] of one line of points → out [T, rows, 2, N], a cache line at a time."""
    points, rows, width = reduced.shape
    masks, N = out.shape[0], out.shape[3]
    source, target = reduced.reshape(reduced.size), out.reshape(out.size)
    if width == 1:
        square = lanes() if rows >= lanes() else ROWS
        for r in range(0, rows, square):
            row = min(r, rows - square)
            for j in range(0, points, square):
                place = (row * 2 + prime) * N + first + j
                transpose(source, j * rows + row, rows, square, target, place, 2 * N, square, square)
        return
    for r in range(rows):
        for j in range(0, points, width):
            place = (r * 2 + prime) * N + first + j
            transpose(source, (j * rows + r) * width, rows * width, width, target, place, rows * 2 * N, masks, width)


@njit(cache=True, parallel=True, nogil=True)
def product(hint, leaves, out, k):  # type: ignore[no-untyped-def]
    """Ĥ product: hint [2, N, I, rows], rows ≥ ROWS, leaves [T, I, 2, N] with its last axes contiguous → out.

    In memory each point's rows of Ĥ stand one after the other; a view of one type for all rows and for some.
    """
    lines = hint.shape[1] // LINE
    rows, count, masks = hint.shape[3], hint.shape[2], leaves.shape[0]
    most = min(lanes(), count)
    for job in prange(2 * lines):
        prime, first = job // lines, job % lines * LINE
        p, pn, square = k.primes[prime], k.negatives[prime], k.squares[prime]
        for start in range(0, masks, most):
            part = min(most, masks - start)
            width = 1 if part == 1 else 4 if part <= 4 else 8 if part <= 8 else 16
            tiles = np.empty((LINE, count, width), np.uint32)
            sums = np.empty((2, rows, width), np.uint64)
            reduced = np.empty((LINE, rows, width), np.uint32)
            _interleave(leaves[start : start + part], prime, first, tiles)
            if width == 1:
                half = LINE // 2
                for j in range(half):
                    here, there = hint[prime, first + j].T, hint[prime, first + j + half].T
                    two_dots(here, there, tiles[j], tiles[j + half], sums[0], sums[1])
                    reduce_sums(reduced[j].ravel(), sums[0].ravel(), p, pn, square)
                    reduce_sums(reduced[j + half].ravel(), sums[1].ravel(), p, pn, square)
            else:
                for j in range(LINE):
                    dots(hint[prime, first + j].T, tiles[j], sums[0])
                    reduce_sums(reduced[j].ravel(), sums[0].ravel(), p, pn, square)
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
            scale(total[i], total[i], p, pn, k.special[i])
        for r in range(fold - 1):
            add_key_product(total[i], digits[r, 0, i], digits[r, 1, i], keys[r, 0, i], keys[r, 1, i], p, pn)
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
            centre(scratch[0], scratch[2], p, k.negatives[i], k.centre[j, i], k.ratios[i], half)
            forward(scratch[0], digits[j, i], scratch[1], k.forward[i], p)


@njit(cache=True)
def _both_children(low, high, switched, monomial, p, pn):  # type: ignore[no-untyped-def]
    """A node and its switched automorphism → both children: the sum, and the difference times a monomial."""
    for r in range(low.shape[0]):
        for j in range(low.shape[1]):
            u, s = low[r, j], switched[r, j]
            total = np.uint32(u + s)
            low[r, j] = min(total, np.uint32(total - p))
            d = np.uint32(np.uint32(u - s) + p)
            v = montgomery(np.uint64(d) * np.uint64(monomial[r, j]), p, pn)
            high[r, j] = min(v, np.uint32(v - p))


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
            key = keys[level]
            for i in range(3):
                p, pn = k.primes[i], k.negatives[i]
                add_key_product(total[i], d[0, i], d[1, i], key[0, i], key[1, i], p, pn)
            _divide_by_special(total, moved, scratch, k)
            for i in range(2):
                p, pn = k.primes[i], k.negatives[i]
                _both_children(leaves[c, i], leaves[c + count, i], moved[i], k.monomials[level, i], p, pn)


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
