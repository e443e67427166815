"""The CPU backend: the functions of `reference` with the same arguments and exactly the same results, through Numba."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import config
from numpy.typing import NDArray

from veil.kernels import cpu_hint, cpu_ntt, cpu_online, cpu_outer, cpu_tile
from veil.kernels.memory import aligned, room
from veil.kernels.reference import unmoved
from veil.kernels.ring import Ring
from veil.kernels.tables import NttTable
from veil.params import packed_bytes

U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]

name = "cpu"


class Constants(NamedTuple):
    """`Ring` as Numba takes it; factors in Montgomery form, squares of points [.., R, R]."""

    primes: U32
    negatives: U32
    squares: U32
    ratios: U32
    special: U32
    special_inverse: U32
    centre_special: U32
    half_special: np.uint32
    centre: U32
    crt_inverse: U32
    fractions: NDArray[np.uint64]
    first_inverse: np.uint32
    automorphisms: I32
    rotations: I32
    inverse_rotations: I32
    monomials: U32
    folds: U32
    forward: U32
    inverse: U32
    inner_forward: U32
    inner_inverse: U32


@lru_cache(maxsize=8)
def constants(ring: Ring) -> Constants:
    """The constants of a ring, once."""
    moduli = ring.moduli
    special = moduli[2]
    side = ring.tables[0].side

    def mont(value: int, p: int) -> int:
        return (value << 32) % p

    def words(values: list[int]) -> U32:
        return np.array(values, dtype=np.uint32)

    def square(values: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(values.reshape(*values.shape[:-1], side, side))

    def factors(values: U32) -> U32:
        """Points [.., primes, N] in Montgomery form."""
        p = ring.moduli_array[: values.shape[-2], None]
        return square(((values.astype(np.uint64) << np.uint64(32)) % p).astype(np.uint32))

    folds = np.stack([((ring.folds[i].astype(np.uint64) << np.uint64(32)) % np.uint64(moduli[i])) for i in range(2)])
    return Constants(
        primes=words(list(moduli)),
        negatives=words([-pow(p, -1, 1 << 32) % (1 << 32) for p in moduli]),
        squares=words([(1 << 64) % p for p in moduli]),
        ratios=words([(1 << 32) // p for p in moduli]),
        special=words([mont(special, p) for p in moduli[:2]]),
        special_inverse=words([mont(pow(special, -1, p), p) for p in moduli[:2]]),
        centre_special=words([-special % p for p in moduli[:2]]),
        half_special=np.uint32(special // 2),
        centre=np.array([[-moduli[j] % p for p in moduli] for j in range(2)], dtype=np.uint32),
        crt_inverse=words([mont(ring.crt_inverse[i], moduli[i]) for i in range(3)]),
        fractions=np.array([(1 << 64) // p for p in moduli], dtype=np.uint64),
        first_inverse=np.uint32(mont(pow(moduli[0], -1, moduli[1]), moduli[1])),
        automorphisms=square(ring.automorphisms),
        rotations=square(ring.rotations),
        inverse_rotations=square(ring.inverse_rotations),
        monomials=factors(ring.monomials),
        folds=square(folds.astype(np.uint32)),
        forward=np.stack([cpu_ntt.forward_twiddles(table) for table in ring.tables]),
        inverse=np.stack([cpu_ntt.inverse_twiddles(table) for table in ring.tables]),
        inner_forward=np.stack([cpu_ntt.forward_twiddles(table) for table in ring.inner_tables]),
        inner_inverse=np.stack([cpu_ntt.inverse_twiddles(table) for table in ring.inner_tables]),
    )


def _squares(values: U32) -> U32:
    """View [.., degree] as [.., R, R]."""
    side = 1 << ((values.shape[-1].bit_length() - 1) // 2)
    return values.reshape(*values.shape[:-1], side, side)


def asarray(values: NDArray[Any]) -> NDArray[Any]:
    """An array where this backend works on it; here, the array itself."""
    return values


def ntt(values: U32, table: NttTable) -> U32:
    """See `reference.ntt`."""
    out = np.empty_like(values, order="C")
    batch = np.ascontiguousarray(values).reshape(-1, table.side, table.side)
    cpu_ntt.forward_batch(batch, out.reshape(batch.shape), cpu_ntt.forward_twiddles(table), np.uint32(table.prime))
    return out


def intt(values: U32, table: NttTable) -> U32:
    """See `reference.intt`."""
    out = np.empty_like(values, order="C")
    batch = np.ascontiguousarray(values).reshape(-1, table.side, table.side)
    cpu_ntt.inverse_batch(batch, out.reshape(batch.shape), cpu_ntt.inverse_twiddles(table), np.uint32(table.prime))
    return out


def load_keys(keys: U32, ring: Ring) -> U32:
    """Key halves [..., 3, N] in Montgomery form."""
    out = aligned(keys.shape, np.uint32)
    cpu_outer.to_montgomery(keys.reshape(-1, 3, ring.N), out.reshape(-1, 3, ring.N), constants(ring))
    return out


def expand_a(a: U32, keys: U32, ring: Ring) -> tuple[U32, U32]:
    """See `reference.expand_a`; keys from `load_keys`."""
    digits = np.empty((ring.leaves - 1, 2, 3, ring.N), dtype=np.uint32)
    leaves = np.empty((ring.leaves, 2, ring.N), dtype=np.uint32)
    cpu_outer.expand_a(_squares(a), _squares(keys), _squares(digits), _squares(leaves), constants(ring))
    return digits, leaves


def expand_b(b: U32, digits: list[U32], keys: list[U32], ring: Ring) -> U32:
    """See `reference.expand_b`; keys from `load_keys`. In memory each leaf of a mask stands together."""
    leaves = _leaves(len(b), ring)
    for t in range(len(b)):
        cpu_outer.expand_b(_squares(b[t]), _squares(digits[t]), _squares(keys[t]), leaves[t], constants(ring))
    return _by_point(leaves, ring)


def _leaves(masks: int, ring: Ring) -> U32:
    """Room for leaves [T, I, 2·N and a line]: steps of a power of two between leaves would share a few sets of the cache."""
    return room((masks, ring.leaves, 2 * ring.N + cpu_outer.LINE), np.uint32)


def _by_point(leaves: U32, ring: Ring) -> U32:
    """View `_leaves` as [2, N, T, I]."""
    return leaves[:, :, : 2 * ring.N].reshape(*leaves.shape[:2], 2, ring.N).transpose(2, 3, 0, 1)


def product(hint: U32, leaves: U32, ring: Ring) -> U32:
    """See `reference.product`; quickest for leaves as `expand_b` returns them. ``hint`` may be some rows of a larger one."""
    rows = hint.shape[2]
    if 0 < rows < cpu_tile.ROWS:
        return np.ascontiguousarray(product(np.repeat(hint, cpu_tile.ROWS, axis=2), leaves, ring)[:, :: cpu_tile.ROWS])
    out = room((leaves.shape[2], rows, 2, ring.N), np.uint32)
    if out.size:
        if hint.strides[2:] != (4 * ring.leaves, 4):
            hint = np.ascontiguousarray(hint)
        if leaves.strides[:2] != (4 * ring.N, 4) or leaves.strides[3] % (8 * ring.N) == 0:
            leaves, given = _by_point(_leaves(leaves.shape[2], ring), ring), leaves
            leaves[:] = given
        cpu_outer.product(hint.transpose(0, 1, 3, 2), leaves.transpose(2, 3, 0, 1), out, constants(ring))
    return out


def combine_a(products: U32, keys: U32, bits: int, ring: Ring) -> tuple[U32, U32]:
    """See `reference.combine_a`; keys from `load_keys`."""
    blocks = len(products) // ring.fold
    digits = np.empty((blocks, ring.fold - 1, 2, 3, ring.N), dtype=np.uint32)
    if blocks and ring.fold > 1:
        grouped = products.reshape(blocks, ring.fold, 2, ring.N)
        cpu_outer.rotation_digits(grouped, _squares(digits), constants(ring))
    return digits, combine_b(unmoved(products, ring)[None], [digits], [keys], bits, ring)[0]


def combine_b(products: U32, digits: list[U32], keys: list[U32], bits: int, ring: Ring) -> U32:
    """See `reference.combine_b`; keys from `load_keys`."""
    count, rows = products.shape[:2]
    blocks = rows // ring.fold
    out = np.empty((count, blocks, ring.N), dtype=np.uint32)
    for t in range(count if blocks else 0):
        grouped = products[t].reshape(blocks, ring.fold, 2, ring.N)
        cpu_outer.combine_b(grouped, _squares(digits[t]), _squares(keys[t]), bits, _squares(out[t]), constants(ring))
    return out.reshape(count, blocks * ring.N)


def centred_points(values: I32, tables: tuple[NttTable, ...], ring: Ring) -> U32:
    """See `reference.centred_points`."""
    wide = values.astype(np.int64)
    residues = [ntt((wide % ring.moduli[i]).astype(np.uint32), tables[i]) for i in range(2)]
    return np.stack(residues, axis=1)


def load_inner(a: U32, ring: Ring) -> U32:
    """See `reference.load_inner`."""
    return centred_points(a.view(np.int32), ring.inner_tables, ring)


def inner_hint(weights: I8, a: U32, bits: int, ring: Ring) -> I32:
    """See `reference.inner_hint`."""
    conjugate = np.concatenate([a[:, :1], np.uint32(0) - a[:, :0:-1]], axis=1)
    points = _montgomery_points(load_inner(conjugate, ring), ring)
    largest = 127 * ring.n << 31
    most_chunks = max(1, ring.moduli[0] * ring.moduli[1] // 2 // largest)
    out = np.empty((len(weights), ring.n), dtype=np.int32)
    cpu_hint.inner_hint(weights, _squares(points), most_chunks, bits, out, constants(ring))
    return out


def outer_hint(block: I32, ring: Ring) -> U32:
    """See `reference.outer_hint`."""
    out = np.empty((2, ring.N, ring.fold, ring.leaves), dtype=np.uint32)
    cpu_hint.outer_hint(block, out, constants(ring))
    return out


def secret_products(public: U32, secret: U32, tables: tuple[NttTable, ...], ring: Ring) -> U32:
    """See `reference.secret_products`."""
    out = np.empty((len(public), tables[0].degree), dtype=np.uint32)
    factor = _montgomery_points(secret[None], ring)[0]
    k = constants(ring)
    twiddles = k.inner_inverse if tables is ring.inner_tables else k.inverse
    cpu_hint.secret_products(_squares(public), _squares(factor), _squares(out), twiddles, k)
    return out


def _montgomery_points(points: U32, ring: Ring) -> U32:
    p = ring.moduli_array[None, :2, None]
    return ((points.astype(np.uint64) << np.uint64(32)) % p).astype(np.uint32)


def matmul(weights: I8, rows: U32) -> U32:
    """See `reference.matmul`."""
    out = np.empty((len(rows), len(weights)), dtype=np.uint32)
    if out.size:
        cpu_online.matmul(weights, rows.view(np.int32), out)
    return out


def pack(values: U32, bits: int) -> U8:
    """See `reference.pack`."""
    out = np.empty((len(values), packed_bytes(values.shape[1], bits)), dtype=np.uint8)
    cpu_online.pack(values, out, bits)
    return out


def unpack(data: U8, count: int, bits: int) -> U32:
    """See `reference.unpack`."""
    out = np.empty((len(data), count), dtype=np.uint32)
    cpu_online.unpack(data, out, bits)
    return out


def answer(data: U8, weights: I8, h: U32, input_bits: int, result_bits: int, *, serial: bool = False) -> U8:
    """See `reference.answer`."""
    out = np.empty((len(data), packed_bytes(len(weights), result_bits)), dtype=np.uint8)
    if out.size:
        if serial:
            cpu_online.answer_serially(data, weights, h, input_bits, result_bits, out)
        else:
            threads: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
            cpu_online.answer(data, weights, h, input_bits, result_bits, threads, out)
    return out


def read_lines(weights: I8, first: int, last: int) -> int:
    """See `reference.read_lines`."""
    return int(cpu_online.read_lines(weights.reshape(-1), first, last))


def gaussian(words: NDArray[np.uint64], cumulative: NDArray[np.uint64], guide: I32) -> I32:
    """See `reference.gaussian`."""
    out = np.empty(words.size, dtype=np.int32)
    cpu_online.gaussian(words, cumulative, guide, np.uint64(64 - guide.size.bit_length()), out)
    return out


def scales(x: NDArray[np.float32], target: float) -> NDArray[np.float64]:
    """See `reference.scales`; the sum's order differs, so the last bits may."""
    out = np.empty(len(x), dtype=np.float64)
    cpu_online.scales(x, target, out)
    return out


def encrypt(x: NDArray[np.float32], tau: NDArray[np.float64], masks: U32, bits: int) -> U8:
    """See `reference.encrypt`."""
    out = np.empty((len(x), packed_bytes(x.shape[1], bits)), dtype=np.uint8)
    cpu_online.encrypt(x, tau, masks, bits, out)
    return out


def decrypt(data: U8, mu: U32, bits: int) -> I32:
    """See `reference.decrypt`."""
    out = np.empty(mu.shape, dtype=np.int32)
    cpu_online.decrypt(data, mu, bits, out)
    return out


def dequantize(
    values: I32, tau: NDArray[np.float64], scale: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """See `reference.dequantize`."""
    out = np.empty(values.shape, dtype=np.float32)
    cpu_online.dequantize(values, tau, scale, bias, out)
    return out
