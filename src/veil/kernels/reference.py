"""The NumPy reference: the definition of correct for every kernel. Clear before fast.

Residues are ``uint32`` in [0, p) at every boundary. Shapes use the letters of docs/protocol.md: N outer degree, n inner
degree, G fold, I = n/G leaves, L levels, T masks at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.kernels.ring import Ring
from veil.kernels.tables import NttTable

U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]

name = "reference"


def asarray(values: NDArray[Any]) -> NDArray[Any]:
    """An array where this backend works on it; here, the array itself."""
    return values


def ntt(values: U32, table: NttTable) -> U32:
    """Negacyclic transform of residues [..., degree], in the point order of `tables`."""
    p = np.uint64(table.prime)
    shape = values.shape
    work = values.reshape(-1, table.degree).astype(np.uint64)
    groups, half = 1, table.degree // 2
    while half:
        view = work.reshape(-1, groups, 2, half)
        twiddles = table.forward[groups : 2 * groups].astype(np.uint64)[None, :, None]
        low, high = view[:, :, 0].copy(), view[:, :, 1] * twiddles % p
        view[:, :, 0], view[:, :, 1] = (low + high) % p, (low + p - high) % p
        groups, half = 2 * groups, half // 2
    return _square_transpose(work, table.side).reshape(shape).astype(np.uint32)


def intt(values: U32, table: NttTable) -> U32:
    """Inverse of `ntt`."""
    p = np.uint64(table.prime)
    shape = values.shape
    work = _square_transpose(values.reshape(-1, table.degree).astype(np.uint64), table.side)
    groups, half = table.degree // 2, 1
    while groups:
        view = work.reshape(-1, groups, 2, half)
        twiddles = table.inverse[groups : 2 * groups].astype(np.uint64)[None, :, None]
        low, high = view[:, :, 0].copy(), view[:, :, 1].copy()
        view[:, :, 0], view[:, :, 1] = (low + high) % p, (low + p - high) % p * twiddles % p
        groups, half = groups // 2, 2 * half
    return (work * np.uint64(table.degree_inverse) % p).reshape(shape).astype(np.uint32)


def _square_transpose(work: NDArray[np.uint64], side: int) -> NDArray[np.uint64]:
    return np.ascontiguousarray(work.reshape(-1, side, side).transpose(0, 2, 1)).reshape(work.shape)


# Outer layer, server side ------------------------------------------------------------------------------------------


def load_keys(keys: U32, ring: Ring) -> U32:
    """Key halves [..., 3, N] in the form that this backend multiplies with; here, as they are."""
    return keys


def expand_a(a: U32, keys: U32, ring: Ring) -> tuple[U32, U32]:
    """The ``a`` side of expansion: ``a`` [2, N] and key halves [L, 2, 3, N] → digits [I-1, 2, 3, N], leaves [I, 2, N].

    Oblivious expansion (ePrint 2017/1142) stopped early; node c of level l has its digits at index 2^l - 1 + c.
    """
    nodes = [a]
    digits = np.empty((ring.leaves - 1, 2, 3, ring.N), dtype=np.uint32)
    for level in range(ring.levels):
        plus, minus = [], []
        for c, node in enumerate(nodes):
            moved = node[:, ring.automorphisms[level]]
            digits[(1 << level) - 1 + c] = d = switch_digits(moved, ring)
            switched = divide_by_special(_key_product(d, keys[level], ring), ring)
            plus.append(_add(node, switched, ring))
            minus.append(_times(_subtract(node, switched, ring), ring.monomials[level, :2], ring))
        nodes = plus + minus
    return digits, np.stack(nodes)


def expand_b(b: U32, digits: U32, keys: U32, ring: Ring) -> U32:
    """The ``b`` side of expansion for T masks: b [T, 2, N], digits T × [I-1, 2, 3, N], keys T × [L, 2, 3, N] → [2, N, T, I].

    Runs modulo Q·P on ``P·b``, so a key switch is pointwise; only the leaves are divided by P.
    """
    leaves = np.empty((2, ring.N, len(b), ring.leaves), dtype=np.uint32)
    for t in range(len(b)):
        nodes = [_times_special(b[t], ring)]
        for level in range(ring.levels):
            plus, minus = [], []
            for c, node in enumerate(nodes):
                product = _key_product(digits[t][(1 << level) - 1 + c], keys[t][level], ring)
                switched = _add(node[:, ring.automorphisms[level]], product, ring)
                plus.append(_add(node, switched, ring))
                minus.append(_times(_subtract(node, switched, ring), ring.monomials[level], ring))
            nodes = plus + minus
        for i, node in enumerate(nodes):
            leaves[:, :, t, i] = divide_by_special(node, ring)
    return leaves


def product(hint: U32, leaves: U32, ring: Ring) -> U32:
    """Ĥ product: hint [2, N, rows, I], leaves [2, N, T, I] → [T, rows, 2, N] of residues."""
    out = np.empty((leaves.shape[2], hint.shape[2], 2, ring.N), dtype=np.uint32)
    for i in range(2):
        sums = np.einsum("nri,nti->trn", hint[i].astype(np.uint64), leaves[i].astype(np.uint64))
        out[:, :, i] = sums % np.uint64(ring.moduli[i])
    return out


def combine_a(products: U32, keys: U32, bits: int, ring: Ring) -> tuple[U32, U32]:
    """The ``a`` side of combination: products [blocks·G, 2, N], keys [G-1, 2, 3, N] → digits, ``a'``.

    Digits are [blocks, G-1, 2, 3, N]; ``a'`` is [blocks·N] of ``bits``-bit words, ``round(a·2^bits/Q)``.
    """
    blocks = len(products) // ring.fold
    digits = np.empty((blocks, ring.fold - 1, 2, 3, ring.N), dtype=np.uint32)
    for block in range(blocks):
        for r in range(1, ring.fold):
            moved = products[block * ring.fold + r][:, ring.rotations[r]]
            digits[block, r - 1] = switch_digits(moved, ring)
    return digits, combine_b(unmoved(products, ring)[None], digits[None], keys[None], bits, ring)[0]


def unmoved(products: U32, ring: Ring) -> U32:
    """Products [blocks·G, 2, N] with only ρ_0 left: after a key switch nothing of the moved ``a`` halves remains."""
    kept = np.zeros_like(products)
    kept[:: ring.fold] = products[:: ring.fold]
    return kept


def combine_b(products: U32, digits: U32, keys: U32, bits: int, ring: Ring) -> U32:
    """Combination for T masks: products [T, blocks·G, 2, N], digits T × [blocks, G-1, 2, 3, N] → [T, blocks·N].

    ``D = Σ_r ρ_r(E_r)`` modulo Q·P, then ``round(D·2^bits/(Q·P))``.
    """
    count, rows = products.shape[:2]
    out = np.empty((count, rows // ring.fold * ring.N), dtype=np.uint32)
    for t in range(count):
        for block in range(rows // ring.fold):
            total = np.zeros((3, ring.N), dtype=np.uint32)
            for r in range(ring.fold):
                moved = products[t, block * ring.fold + r][:, ring.rotations[r]]
                total = _add(total, _times_special(moved, ring), ring)
                if r:
                    total = _add(total, _key_product(digits[t][block, r - 1], keys[t][r - 1], ring), ring)
            coefficients = np.stack([intt(total[i], ring.tables[i]) for i in range(3)])
            out[t, block * ring.N : (block + 1) * ring.N] = scale_to_bits(coefficients, bits, ring)
    return out


def switch_digits(values: U32, ring: Ring) -> U32:
    """Residues [2, N] (points) → the two centred digits of a hybrid key switch, as points of all three primes [2, 3, N]."""
    digits = np.empty((2, 3, ring.N), dtype=np.uint32)
    for j in range(2):
        p = ring.moduli[j]
        centred = intt(values[j], ring.tables[j]).astype(np.int64)
        centred[centred > p // 2] -= p
        for i in range(3):
            digits[j, i] = ntt((centred % ring.moduli[i]).astype(np.uint32), ring.tables[i])
    return digits


def divide_by_special(values: U32, ring: Ring) -> U32:
    """``round(x / P)``: residues [3, N] modulo Q·P → [2, N] modulo Q, points to points."""
    special = ring.moduli[2]
    rest = intt(values[2], ring.tables[2]).astype(np.int64)
    rest[rest > special // 2] -= special
    out = np.empty((2, ring.N), dtype=np.uint32)
    for i in range(2):
        p = np.uint64(ring.moduli[i])
        correction = ntt((rest % ring.moduli[i]).astype(np.uint32), ring.tables[i]).astype(np.uint64)
        inverse = np.uint64(pow(special, -1, ring.moduli[i]))
        out[i] = (values[i].astype(np.uint64) + p - correction) % p * inverse % p
    return out


def scale_to_bits(values: U32, bits: int, ring: Ring) -> U32:
    """Coefficients [3, N] modulo Q·P → ``round(x·2^bits/(Q·P))`` modulo 2^bits, by 64-bit fractions of each residue."""
    total = np.zeros(values.shape[-1], dtype=np.uint64)
    for i in range(3):
        p = np.uint64(ring.moduli[i])
        total += values[i].astype(np.uint64) * np.uint64(ring.crt_inverse[i]) % p * np.uint64((1 << 64) // ring.moduli[i])
    return ((total + np.uint64(1 << (63 - bits))) >> np.uint64(64 - bits)).astype(np.uint32)


def _key_product(digits: U32, keys: U32, ring: Ring) -> U32:
    p = ring.moduli_array[:, None]
    return ((digits.astype(np.uint64) * keys).sum(axis=0) % p).astype(np.uint32)


def _times_special(values: U32, ring: Ring) -> U32:
    out = np.zeros((3, ring.N), dtype=np.uint32)
    out[:2] = values.astype(np.uint64) * np.uint64(ring.moduli[2]) % ring.moduli_array[:2, None]
    return out


def _add(left: U32, right: U32, ring: Ring) -> U32:
    p = ring.moduli_array[: len(left), None]
    return ((left.astype(np.uint64) + right) % p).astype(np.uint32)


def _subtract(left: U32, right: U32, ring: Ring) -> U32:
    p = ring.moduli_array[: len(left), None]
    return ((left.astype(np.uint64) + p - right) % p).astype(np.uint32)


def _times(left: U32, right: U32, ring: Ring) -> U32:
    p = ring.moduli_array[: len(left), None]
    return (left.astype(np.uint64) * right % p).astype(np.uint32)


# The hint, built once ------------------------------------------------------------------------------------------------


def load_inner(a: U32, ring: Ring) -> U32:
    """Inner public polynomials [C, n] modulo 2^32 → centred, as points of both outer primes [C, 2, n]."""
    return centred_points(a.view(np.int32), ring.inner_tables, ring)


def centred_points(values: I32, tables: tuple[NttTable, ...], ring: Ring) -> U32:
    """Signed polynomials [C, degree] → points of both outer primes [C, 2, degree]."""
    out = np.empty((len(values), 2, tables[0].degree), dtype=np.uint32)
    for i in range(2):
        out[:, i] = ntt((values.astype(np.int64) % ring.moduli[i]).astype(np.uint32), tables[i])
    return out


def inner_hint(weights: I8, a: U32, bits: int, ring: Ring) -> I32:
    """H' of some rows: weights [rows, d], public polynomials [C, n] → [rows, n], ``round(W·A / 2^(32-bits))`` centred.

    Row by row ``H = Σ_c W_c(X)·a_c(1/X)`` modulo 2^32, because coefficient 0 of ``W_c(1/X)·a_c·X^i`` is the entry of i.
    """
    rows, n = len(weights), ring.n
    total = np.zeros((rows, n), dtype=np.uint32)
    for c in range(len(a)):
        conjugate = np.concatenate([a[c, :1], np.uint32(0) - a[c, :0:-1]])
        matrix = np.empty((n, n), dtype=np.uint32)
        for i in range(n):
            matrix[i, i:], matrix[i, :i] = conjugate[: n - i], np.uint32(0) - conjugate[n - i :]
        part = weights[:, c * n : (c + 1) * n].astype(np.int32).view(np.uint32)
        total += part @ matrix[: part.shape[1]]
    rounded = (total + np.uint32(1 << (31 - bits))) >> np.uint32(32 - bits)
    centred = rounded.astype(np.int32)
    centred[centred >= 1 << (bits - 1)] -= 1 << bits
    return centred


def outer_hint(block: I32, ring: Ring) -> U32:
    """Ĥ of one block: H' [slots ≤ N, n] → [2, N, G, I], ``Ĥ_{r,i} = Σ_j ρ_r⁻¹(H'_{iG+j}(X))·Y^(-j)`` in points."""
    padded = np.zeros((ring.N, ring.n), dtype=np.int64)
    padded[: len(block)] = block
    out = np.empty((2, ring.N, ring.fold, ring.leaves), dtype=np.uint32)
    for i in range(2):
        p = np.uint64(ring.moduli[i])
        points = ntt((padded.T % ring.moduli[i]).astype(np.uint32), ring.tables[i])
        grouped = points.reshape(ring.leaves, ring.fold, ring.N).astype(np.uint64)
        for r in range(ring.fold):
            moved = grouped[:, :, ring.inverse_rotations[r]]
            terms = moved * ring.folds[i][None] % p
            out[i, :, r, :] = (terms.sum(axis=1) % p).astype(np.uint32).T
    return out


# Online --------------------------------------------------------------------------------------------------------------


def matmul(weights: I8, rows: U32) -> U32:
    """``W·x`` modulo 2^32: weights [out, d] int8, rows [T, d] → [T, out]."""
    wide = weights.astype(np.int32).view(np.uint32)
    return np.stack([(wide * row[None]).sum(axis=1, dtype=np.uint32) for row in rows]) if len(rows) else _no_rows(wide)


def _no_rows(weights: U32) -> U32:
    return np.empty((0, len(weights)), dtype=np.uint32)


def pack(values: U32, bits: int) -> U8:
    """Words [T, count] below 2^bits → bytes [T, ceil(count·bits/8)], little-endian bit order, each row padded with zeros."""
    shifts = np.arange(bits, dtype=np.uint32)
    binary = ((values[:, :, None] >> shifts) & np.uint32(1)).astype(np.uint8)
    return np.packbits(binary.reshape(len(values), values.shape[1] * bits), axis=1, bitorder="little")


def unpack(data: U8, count: int, bits: int) -> U32:
    """Inverse of `pack`: bytes [T, ceil(count·bits/8)] → words [T, count]."""
    binary = np.unpackbits(data, axis=1, bitorder="little")[:, : count * bits]
    weights = np.uint32(1) << np.arange(bits, dtype=np.uint32)
    return (binary.reshape(len(data), count, bits) * weights).sum(axis=2, dtype=np.uint32)


def answer(data: U8, weights: I8, h: U32, input_bits: int, result_bits: int, *, serial: bool = False) -> U8:
    """The server's online step for T rows: packed rows up, shares h [T, out] → packed ``W·b - h``, rounded to its top
    bits and packed. ``serial`` keeps the work on the calling thread.
    """
    rows = unpack(data, weights.shape[1], input_bits) << np.uint32(32 - input_bits)
    return pack(_top_bits(matmul(weights, rows) - h, result_bits), result_bits)


def read_lines(weights: I8, first: int, last: int) -> int:
    """Bring weights from ``first`` up to ``last``, of all in order, into the caches; the sum of one in each 64."""
    return int(weights.reshape(-1)[first:last:64].sum(dtype=np.int64))


# Client ----------------------------------------------------------------------------------------------------------------


def secret_products(public: U32, secret: U32, tables: tuple[NttTable, ...], ring: Ring) -> U32:
    """``a·s`` for public points [C, 2, degree] and secret points [2, degree]: exact integers, modulo 2^32 [C, degree].

    Exact while ``|a·s|`` stays below Q/2, which a ternary secret guarantees for 32-bit and shorter ``a``.
    """
    p1, p2 = ring.moduli[:2]
    residues = [
        intt((public[:, i].astype(np.uint64) * secret[i] % np.uint64(ring.moduli[i])).astype(np.uint32), tables[i])
        for i in range(2)
    ]
    first, second = residues[0].astype(np.uint64), residues[1].astype(np.uint64)
    lift = (second + np.uint64(p2) - first % np.uint64(p2)) * np.uint64(pow(p1, -1, p2)) % np.uint64(p2)
    value = first + np.uint64(p1) * lift
    value = np.where(value > np.uint64(p1 * p2 // 2), value - np.uint64(p1 * p2), value)
    return (value & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def gaussian(words: NDArray[np.uint64], cumulative: NDArray[np.uint64], guide: NDArray[np.int32]) -> I32:
    """Rounded Gaussian samples [count] from uniform words [count], by inversion (`random.GaussianTable`)."""
    magnitude = np.searchsorted(cumulative, words >> np.uint64(1), side="right").astype(np.int32)
    return np.where(words & np.uint64(1), -magnitude, magnitude).astype(np.int32)


def scales(x: NDArray[np.float32], target: float) -> NDArray[np.float64]:
    """τ of each row [T]: ``target / ‖x‖₂``, 0 for a row of zeros, NaN for a row that is not finite."""
    norms = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1))
    tau = np.zeros(len(x))
    np.divide(target, norms, out=tau, where=norms != 0)
    tau[np.isinf(norms)] = np.nan
    return tau


def encrypt(x: NDArray[np.float32], tau: NDArray[np.float64], masks: U32, bits: int) -> U8:
    """``round(τ·x) + mask`` modulo 2^32, rounded to its top ``bits`` and packed: x and masks [T, d], τ [T]."""
    message = np.rint(x.astype(np.float64) * tau[:, None]).astype(np.int64).astype(np.uint32)
    return pack(_top_bits(message + masks, bits), bits)


def _top_bits(values: U32, bits: int) -> U32:
    if bits == 32:
        return values
    return (values + np.uint32(1 << (31 - bits))) >> np.uint32(32 - bits)


def decrypt(data: U8, mu: U32, bits: int) -> I32:
    """Packed results and μ [T, out] → centred integers ``W·x + noise`` [T, out]."""
    return ((unpack(data, mu.shape[1], bits) << np.uint32(32 - bits)) - mu).view(np.int32)


def dequantize(
    values: I32, tau: NDArray[np.float64], scale: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``value·(1/τ)·c + bias`` of integers [T, out] in float64, as float32 [T, out]; where τ is 0, the bias."""
    inverse = np.zeros(len(tau))
    np.divide(1.0, tau, out=inverse, where=tau != 0)
    return (values * inverse[:, None] * scale.astype(np.float64) + bias).astype(np.float32)
