"""The CUDA backend: the functions of `reference` on tensors that stay on the device, with exactly the same results.

Words are ``torch.uint32`` (64-bit ones ``torch.uint64``), so `to_numpy` gives the arrays of `reference` back. Where the
CPU backend takes a list with one store for each mask, this one takes the stacked stores and two index vectors (int32):
``sets[t]`` and ``epochs[t]`` are the rows of the digits' and keys' stores that mask t uses. Own layouts, so that a tile
of neighbouring points is contiguous:

    Ĥ        [rows, I, 2, N]   (reference [2, N, rows, I]); the rows of one block are its G rotations
    leaves   [T, I, 2, N]      (reference [2, N, T, I])

The module needs `triton`; with ``TRITON_INTERPRET=1`` it runs on CPU tensors, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from veil.kernels import cuda_hint, cuda_ntt, cuda_online, cuda_outer
from veil.kernels.cuda_ntt import Constants, warps
from veil.kernels.ring import Ring
from veil.kernels.tables import NttTable
from veil.params import packed_bytes

Tensor = torch.Tensor
Store = Tensor | Sequence[Tensor]

name = "cuda"


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def available() -> bool:
    """Whether there is a CUDA device."""
    return torch.cuda.is_available()


def memory_bytes() -> tuple[int, int]:
    """Free and total memory of the current device."""
    free, total = torch.cuda.mem_get_info()
    return int(free), int(total)


def asarray(values: NDArray[Any], device: str | None = None) -> Tensor:
    """A copy of an array on the device, of the same type."""
    target = device or ("cpu" if interpreted() else "cuda")
    return torch.from_numpy(np.require(values, requirements=["C", "W"])).to(target, copy=True)


def to_numpy(values: Tensor) -> NDArray[Any]:
    """A copy of a tensor as an array of the same type."""
    return np.array(values.cpu().numpy())


def capture(step: Callable[[], None], pool: Any = None, *, warm: bool = True) -> Callable[[], None]:
    """Record the launches of ``step`` (fixed shapes, fixed buffers) as one CUDA graph; the result replays it.

    The step runs once before, unless all that it launches is known to be ``warm`` (False). Graphs of one ``pool``
    (`graph_pool`) share the memory of what they make on the way, so the results of one are gone when another is replayed.
    """
    if interpreted():
        if warm:
            step()
        return step
    if warm:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        step()
    return graph.replay


def graph_pool() -> Any:
    """A pool of memory for `capture`."""
    return None if interpreted() else torch.cuda.graph_pool_handle()


def _k(ring: Ring, like: Tensor) -> Constants:
    return cuda_ntt.constants(ring, like.device)


def _log(degree: int) -> int:
    return degree.bit_length() - 1


def _empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype = torch.uint32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


# Transforms ----------------------------------------------------------------------------------------------------------


def ntt(values: Tensor, table: NttTable) -> Tensor:
    """See `reference.ntt`."""
    return _transform(values, table, inverse=False)


def intt(values: Tensor, table: NttTable) -> Tensor:
    """See `reference.intt`."""
    return _transform(values, table, inverse=True)


def _transform(values: Tensor, table: NttTable, *, inverse: bool) -> Tensor:
    source = values.contiguous()
    out = torch.empty_like(source)
    cuda_ntt.transform_batch(source.view(-1, table.degree), out.view(-1, table.degree), table, inverse)
    return out


def centred_points(values: Tensor, tables: tuple[NttTable, ...], ring: Ring) -> Tensor:
    """See `reference.centred_points`; ``tables`` is the ring's outer or inner tables."""
    k, degree = _k(ring, values), tables[0].degree
    out = _empty((len(values), 2, degree), values)
    twiddles = k.inner_twiddles if tables is ring.inner_tables else k.twiddles
    if len(values):
        cuda_hint.signed_points[(len(values), 2)](
            values.contiguous(), out, twiddles, k.words, _log(degree), num_warps=warps(degree)
        )
    return out


# Outer layer ---------------------------------------------------------------------------------------------------------


def load_keys(keys: Tensor, ring: Ring) -> Tensor:
    """Key halves [..., 3, N] in Montgomery form."""
    source = keys.contiguous()
    out = torch.empty_like(source)
    block = min(1024, ring.N)
    if source.numel():
        grid = (source.numel() // ring.N, ring.N // block)
        cuda_outer.to_montgomery[grid](source, out, _k(ring, keys).words, ring.N, block)
    return out


def expand_a(a: Tensor, keys: Tensor, ring: Ring) -> tuple[Tensor, Tensor]:
    """See `reference.expand_a`; keys [L, 2, 3, N] from `load_keys`.

    Also takes M sets at once: a [M, 2, N] → digits [M, I-1, 2, 3, N], leaves [M, I, 2, N].
    """
    if a.ndim == 2:
        digits, leaves = expand_a(a[None], keys, ring)
        return digits[0], leaves[0]
    k, sets, n_points, log = _k(ring, a), len(a), ring.N, _log(ring.N)
    digits = _empty((sets, ring.leaves - 1, 2, 3, n_points), a)
    nodes = _empty((sets, ring.leaves, 2, n_points), a)
    nodes[:, 0].copy_(a)
    for level in range(ring.levels):
        count = 1 << level
        cuda_outer.switch_digits[(sets, count, 2)](
            nodes, nodes.stride(0), 2 * n_points, digits[:, count - 1 :], digits.stride(0), k.automorphisms[level],
            k.twiddles, k.words, 1, n_points, log, num_warps=warps(n_points),
        )  # fmt: skip
        cuda_outer.tree_step_a[(sets, count)](
            nodes, digits, digits.stride(0), keys[level], k.monomials[level], k.twiddles, k.words, count,
            ring.leaves, n_points, log, num_warps=warps(n_points),
        )  # fmt: skip
    return digits, nodes


def expand_b(
    b: Tensor, digits: Store, keys: Store, ring: Ring, sets: Tensor | None = None, epochs: Tensor | None = None
) -> Tensor:
    """The ``b`` sides of T masks, b [T, 2, N] → leaves [T, I, 2, N]; keys from `load_keys`.

    With ``sets`` and ``epochs``, stores digits [M, I-1, 2, 3, N] and keys [E, L, 2, 3, N] that they index; without,
    lists of T digits and T keys as in `reference.expand_b`, of which nothing is copied either.
    """
    k, masks, n_points = _k(ring, b), len(b), ring.N
    leaves = _empty((masks, ring.leaves, 2, n_points), b)
    if not masks:
        return leaves
    nodes, other = (_empty((masks, ring.leaves, 3, n_points), b) for _ in range(2))
    digit_base, digit_stride, sets = _places(digits, sets)
    key_base, key_stride, epochs = _places(keys, epochs)
    key_base = key_base[0] if key_base.ndim == 5 else key_base
    block = min(1024, n_points)
    source = b.contiguous()
    for level in range(ring.levels):
        count = 1 << level
        cuda_outer.tree_step[(masks, count * 3 * (n_points // block))](
            source, other, digit_base, digit_stride, sets, key_base[level], key_stride, epochs,
            k.automorphisms[level], k.monomials[level], k.words, count,
            level == 0, ring.leaves, n_points, block, num_warps=8,
        )  # fmt: skip
        source, other = other, nodes if level == 0 else source
    cuda_outer.divide_leaves[(masks * ring.leaves,)](
        source, leaves, k.twiddles, k.words, n_points, _log(n_points), num_warps=warps(n_points)
    )
    return leaves


def _places(store: Store, index: Tensor | None) -> tuple[Tensor, int, Tensor]:
    """Base, stride and index such that mask t's part starts ``index[t]·stride`` words after the base.

    A list becomes distances from its first tensor, which are addresses like any other on one device.
    """
    if index is not None:
        assert isinstance(store, Tensor)
        return store, store.stride(0), index
    first = store[0]
    distances = [(part.data_ptr() - first.data_ptr()) // first.element_size() for part in store]
    return first, 1, torch.tensor(distances, dtype=torch.int64).to(first.device, non_blocking=True)


def product(hint: Tensor, leaves: Tensor, ring: Ring) -> Tensor:
    """Ĥ product: hint [rows, I, 2, N], leaves [T, I, 2, N] → [T, rows, 2, N] of residues."""
    rows, masks = len(hint), len(leaves)
    out = _empty((masks, rows, 2, ring.N), leaves)
    if out.numel():
        tile = cuda_outer.ProductTile.choose(masks, ring.N)
        grid = (2 * ring.N // tile.points * -(-rows // tile.rows) * -(-masks // tile.masks),)
        cuda_outer.product[grid](
            hint, leaves, out, _k(ring, leaves).words, masks, rows, ring.leaves, ring.N,
            tile.masks, tile.rows, tile.points, tile.unroll, tile.stages, num_warps=tile.warps,
        )  # fmt: skip
    return out


def combine_a(products: Tensor, keys: Tensor, bits: int, ring: Ring) -> tuple[Tensor, Tensor]:
    """See `reference.combine_a`; keys [G-1, 2, 3, N] from `load_keys`.

    Also takes M sets at once: products [M, blocks·G, 2, N] → digits [M, blocks, G-1, 2, 3, N], ``a'`` [M, blocks·N].
    """
    if products.ndim == 3:
        digits, words = combine_a(products[None], keys, bits, ring)
        return digits[0], words[0]
    k, sets, n_points, fold = _k(ring, products), len(products), ring.N, ring.fold
    blocks = products.shape[1] // fold
    digits = _empty((sets, blocks, fold - 1, 2, 3, n_points), products)
    if digits.numel():
        cuda_outer.switch_digits[(sets, blocks * (fold - 1), 2)](
            products[:, 1:], products.stride(0), fold * 2 * n_points, digits, digits.stride(0), k.rotations[1:],
            k.twiddles, k.words, fold - 1, n_points, _log(n_points), num_warps=warps(n_points),
        )  # fmt: skip
    own = torch.arange(sets, dtype=torch.int32, device=products.device)
    return digits, _combine(products, digits, keys[None], bits, ring, own, torch.zeros_like(own), moved=1)


def combine_b(
    products: Tensor, digits: Store, keys: Store, bits: int, ring: Ring,
    sets: Tensor | None = None, epochs: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Combination for T masks: products [T, blocks·G, 2, N] → [T, blocks·N] of ``bits``-bit words.

    Stores digits [M, blocks, G-1, 2, 3, N] and keys [E, G-1, 2, 3, N] with ``sets`` and ``epochs``, or lists, as for
    `expand_b`.
    """
    return _combine(products, digits, keys, bits, ring, sets, epochs, moved=ring.fold)


def _combine(
    products: Tensor, digits: Store, keys: Store, bits: int, ring: Ring,
    sets: Tensor | None, epochs: Tensor | None, *, moved: int,
) -> Tensor:  # fmt: skip
    k, masks, n_points = _k(ring, products), len(products), ring.N
    blocks = products.shape[1] // ring.fold
    out = _empty((masks, blocks * n_points), products)
    if out.numel():
        digit_base, digit_stride, sets = _places(digits, sets)
        key_base, key_stride, epochs = _places(keys, epochs)
        cuda_outer.combine[(masks, blocks)](
            products.contiguous(), digit_base, digit_stride, sets, key_base, key_stride, epochs, out, blocks,
            k.rotations, k.twiddles, k.words, k.fractions, bits, moved, ring.fold, n_points, _log(n_points),
            num_warps=warps(n_points),
        )  # fmt: skip
    return out


# The hint, built once ------------------------------------------------------------------------------------------------


def load_inner(a: Tensor, ring: Ring) -> Tensor:
    """See `reference.load_inner`."""
    return centred_points(a.view(torch.int32), ring.inner_tables, ring)


def inner_hint(weights: Tensor, a: Tensor, bits: int, ring: Ring) -> Tensor:
    """See `reference.inner_hint`; the result [rows, n] is a transposed view, as `outer_hint` reads it by columns."""
    rows, width = weights.shape
    n = ring.n
    out = _empty((n, rows), weights, torch.int32)
    if out.numel():
        limbs = _empty((4, n, width), weights, torch.int8)
        block = 1024
        cuda_hint.matrix_limbs[(-(-width // block), n)](a.contiguous(), limbs, width, n, block)
        words = cuda_online.multiply_limbs(weights, limbs, None, 0, 32)
        cuda_hint.round_centred[(-(-out.numel() // block),)](words, out, out.numel(), bits, block)
    return out.T


def outer_hint(block: Tensor, ring: Ring, out: Tensor | None = None) -> Tensor:
    """Ĥ of one block: H' [slots ≤ N, n] → [G, I, 2, N], written to ``out`` if it is given."""
    k, n_points = _k(ring, block), ring.N
    columns = torch.zeros((ring.n, n_points), dtype=torch.int32, device=block.device)
    columns[:, : len(block)].copy_(block.T)
    points = centred_points(columns, ring.tables, ring)
    result = _empty((ring.fold, ring.leaves, 2, n_points), block) if out is None else out
    size = min(1024, n_points)
    cuda_hint.fold_columns[(ring.leaves, 2, n_points // size)](
        points, result, k.inverse_rotations, k.folds, k.words, ring.fold, ring.leaves, n_points, size
    )
    return result


def hint_from_reference(hint: Tensor) -> Tensor:
    """The reference's Ĥ [2, N, rows, I] (or leaves) in this backend's layout."""
    return hint.permute(2, 3, 0, 1).contiguous()


def hint_to_reference(hint: Tensor) -> Tensor:
    """This backend's Ĥ [rows, I, 2, N] (or leaves) in the reference's layout."""
    return hint.permute(2, 3, 0, 1).contiguous()


# Online --------------------------------------------------------------------------------------------------------------


def matmul(weights: Tensor, rows: Tensor) -> Tensor:
    """See `reference.matmul`."""
    masks = len(rows)
    if not masks or not len(weights):
        return _empty((masks, len(weights)), rows)
    source = rows.contiguous()
    limbs = _empty((4, masks, rows.shape[1]), rows, torch.int8)
    block = 1024
    cuda_online.word_limbs[(-(-source.numel() // block),)](source, limbs, source.numel(), block)
    return cuda_online.multiply_limbs(weights, limbs, None, 0, 32)


def pack(values: Tensor, bits: int) -> Tensor:
    """See `reference.pack`; ``bits`` is 8 to 32."""
    masks, count = values.shape
    out = _empty((masks, packed_bytes(count, bits)), values, torch.uint8)
    block = 1024
    if out.numel():
        grid = (masks, -(-out.shape[1] // block))
        cuda_online.pack[grid](values.contiguous(), out, count, out.shape[1], bits, block)
    return out


def unpack(data: Tensor, count: int, bits: int) -> Tensor:
    """See `reference.unpack`; ``bits`` is 8 to 32."""
    out = _empty((len(data), count), data)
    block = 1024
    if out.numel():
        grid = (len(data), -(-count // block))
        cuda_online.unpack[grid](data.contiguous(), out, count, data.shape[1], bits, block)
    return out


def answer(data: Tensor, weights: Tensor, h: Tensor, input_bits: int, result_bits: int) -> Tensor:
    """See `reference.answer`; one row takes one launch."""
    masks, (rows, width) = len(data), weights.shape
    if masks == 1 and rows:
        out = _empty((1, packed_bytes(rows, result_bits)), data, torch.uint8)
        tile, block, threads = 8, *cuda_online.row_block(rows, width)
        padded = 1 << (tile * result_bits // 8 - 1).bit_length()
        cuda_online.answer_one[(-(-rows // tile),)](
            data, weights, h, out, rows, width, out.shape[1], input_bits, result_bits, padded, tile, block,
            width % block == 0, num_warps=threads,
        )  # fmt: skip
        return out
    if not masks or not rows:
        return _empty((masks, packed_bytes(rows, result_bits)), data, torch.uint8)
    count = -(-input_bits // 8)
    limbs = _empty((count, masks, width), data, torch.int8)
    block = 1024
    cuda_online.unpack_limbs[(masks, -(-width // block))](
        data.contiguous(), limbs, width, data.shape[1], masks * width, input_bits, count, block
    )
    words = cuda_online.multiply_limbs(weights, limbs, h.contiguous(), 32 - 8 * count, result_bits)
    return pack(words, result_bits)


# Client --------------------------------------------------------------------------------------------------------------


def secret_products(public: Tensor, secret: Tensor, tables: tuple[NttTable, ...], ring: Ring) -> Tensor:
    """See `reference.secret_products`; ``tables`` is the ring's outer or inner tables.

    Also takes T secrets at once: [T, 2, degree] → [T, C, degree].
    """
    if secret.ndim == 2:
        return secret_products(public, secret[None], tables, ring)[0]
    k, degree = _k(ring, public), tables[0].degree
    out = _empty((len(secret), len(public), degree), public)
    inner = tables is ring.inner_tables
    if out.numel():
        cuda_hint.secret_product[(len(public), len(secret))](
            public.contiguous(), secret.contiguous(), out, k.inner_twiddles if inner else k.twiddles, k.words,
            _log(degree), inner, num_warps=warps(degree),
        )  # fmt: skip
    return out


def gaussian(words: Tensor, cumulative: Tensor, guide: Tensor) -> Tensor:
    """See `reference.gaussian`; a binary search, so ``guide`` is not read."""
    out = _empty((words.numel(),), words, torch.int32)
    block = 1024
    if out.numel():
        entries = cumulative.numel()
        cuda_online.gaussian[(-(-out.numel() // block),)](
            words.contiguous(), cumulative, entries, out, out.numel(), entries.bit_length(), block
        )
    return out


def scales(x: Tensor, target: float) -> Tensor:
    """See `reference.scales`; the sum's order differs, so the last bit may."""
    out = _empty((len(x),), x, torch.float64)
    if len(x):
        cuda_online.scales[(len(x),)](x.contiguous(), out, x.shape[1], _double(target, x.device), 1024)
    return out


@lru_cache(maxsize=4096)
def _double(value: float, device: torch.device) -> Tensor:
    """A scalar on the device: Triton would pass it as float32."""
    return torch.full((1,), value, dtype=torch.float64, device=device)


def encrypt(x: Tensor, tau: Tensor, masks: Tensor, bits: int) -> Tensor:
    """See `reference.encrypt`."""
    words = _empty((len(x), x.shape[1]), x)
    block = 1024
    if words.numel():
        grid = (len(x), -(-x.shape[1] // block))
        cuda_online.encrypt_words[grid](
            x.contiguous(), tau, masks.contiguous(), words, x.shape[1], bits, block, enable_fp_fusion=False
        )
    return pack(words, bits)


def decrypt(data: Tensor, mu: Tensor, bits: int) -> Tensor:
    """See `reference.decrypt`."""
    out = _empty((len(mu), mu.shape[1]), mu, torch.int32)
    block = 1024
    if out.numel():
        grid = (len(mu), -(-mu.shape[1] // block))
        cuda_online.decrypt[grid](data.contiguous(), mu.contiguous(), out, mu.shape[1], data.shape[1], bits, block)
    return out


def dequantize(values: Tensor, tau: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """See `reference.dequantize`."""
    out = _empty(tuple(values.shape), values, torch.float32)
    block = 1024
    if out.numel():
        grid = (len(values), -(-values.shape[1] // block))
        cuda_online.dequantize[grid](
            values.contiguous(), tau, scale, bias, out, values.shape[1], block, enable_fp_fusion=False
        )
    return out


def encrypt_scaled(x: Tensor, target: float, masks: Tensor, bits: int, tau: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`scales` and `encrypt` in one launch, for ``bits`` of whole bytes: packed rows, τ [T] (in ``tau`` if it is given)."""
    rows, width = x.shape
    out = _empty((rows, packed_bytes(width, bits)), x, torch.uint8)
    tau = _empty((rows,), x, torch.float64) if tau is None else tau
    if rows:
        block = min(4096, max(32, 1 << (width - 1).bit_length()))
        cuda_online.encrypt_scaled[(rows,)](
            x.contiguous(), _double(target, x.device), masks.contiguous(), out, tau, width, bits, block,
            num_warps=max(1, block // 256), enable_fp_fusion=False,
        )  # fmt: skip
    return out, tau


def decrypt_scaled(data: Tensor, mu: Tensor, bits: int, tau: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """`decrypt` and `dequantize` in one launch: float32 [T, out]."""
    out = _empty(tuple(mu.shape), mu, torch.float32)
    block = 1024
    if out.numel():
        grid = (len(mu), -(-mu.shape[1] // block))
        cuda_online.decrypt_scaled[grid](
            data.contiguous(), mu, mu.stride(0), tau, scale, bias, out, mu.shape[1], data.shape[1], bits, block,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out
