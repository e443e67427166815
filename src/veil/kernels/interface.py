"""`Kernels`: everything that differs between processors, as one typed interface. One algorithm uses it, on every processor.

Three classes satisfy it: `ReferenceKernels` (NumPy, the definition of correct), `cpu.CpuKernels` (Numba) and
`cuda.CudaKernels` (Triton). Their results are equal, word for word. Arrays stay where a backend computes: NumPy arrays on a
processor, tensors on a GPU. Letters are those of docs/protocol.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from veil.kernels.ring import Ring
from veil.kernels.row_test import RowChunks, RowTest

if TYPE_CHECKING:
    import torch

I8 = NDArray[np.int8]
F64 = NDArray[np.float64]
U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]

Array = Any
"""An array of a backend: a NumPy array, or a tensor on a GPU."""


TILE = 16
"""Blocks that are put into a hint together."""


@dataclass(eq=False, slots=True)
class Rows:
    """``count`` rows of a batch's material [T, words], from row ``first``."""

    material: Array
    first: int
    count: int


@dataclass(eq=False, slots=True)
class GroupRows:
    """Packed rows [R, bytes] of one group, a NumPy array, and what `Kernels.answer` takes beside them."""

    data: NDArray[np.uint8]
    weights: Array
    shares: Sequence[Rows]
    column: int
    bits: tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True)
class GroupResults:
    """Packed results of several requests [bytes] uint8, and where those of each begin and end, row after row."""

    packed: NDArray[np.uint8]
    places: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Scaling:
    """How a group's inputs are scaled to fill the modulus, and its results scaled back; arrays of the backend.

    Inputs are divided by ``divisors`` [width] (None: by nothing), then scaled to the norm ``target``; with ``fixed`` (not
    0) all rows have the scale that takes a row of that norm there, and longer ones are clipped to it. Results are
    multiplied by ``scale`` [rows], and ``bias`` [rows] is added.
    """

    divisors: Array | None
    scale: Array
    bias: Array
    target: float
    fixed: float


@dataclass(frozen=True, eq=False)
class SignVectors:
    """Secret signs that check a group's results, in chunks of slots; arrays of the backend. See docs/protocol.md.

    ``edges`` int32 [chunks + 1] are the slots where chunks begin and end, ``signs`` int8 [J, slots] the vectors, ``sums``
    int16 [chunks, J, width] what they make of the weights, ``inverse`` float64 [chunks, J] one over the deviations.
    """

    edges: Array
    signs: Array
    sums: Array
    inverse: Array
    longest: int
    """Slots of the longest chunk."""

    @property
    def count(self) -> int:
        """Residuals of a row."""
        return int(self.inverse.shape[0] * self.inverse.shape[1])


def first_slots(scaling: Scaling, slots: int) -> Scaling:
    """The scaling of a group's first outputs."""
    if slots == len(scaling.scale):
        return scaling
    return replace(scaling, scale=scaling.scale[:slots], bias=scaling.bias[:slots])


class Hint(Protocol):
    """G of some blocks of slots, as points of both outer primes, where a backend wants it."""

    @property
    def blocks(self) -> int:
        """Blocks of w slots."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What `Kernels.load_hint` takes, to be kept on disk; shapes and dtypes are the backend's own."""


class Words(Protocol):
    """Uniform words; `veil.random.SecretRng` has secret ones."""

    def words16(self, count: int) -> NDArray[np.uint16]: ...
    def words64(self, count: int) -> NDArray[np.uint64]: ...


class Errors(Protocol):
    """A source of secret errors: rounded Gaussians."""

    def draw(self, *shape: int) -> Array:
        """Samples of this shape, int8."""


def answer_each(kernels: Kernels, asked: Sequence[GroupRows]) -> GroupResults:
    """`Kernels.answer_groups` by one product for each group."""
    made = []
    for own in asked:
        packed = kernels.answer(kernels.asarray(own.data), own.weights, own.shares, own.column, own.bits)
        made.append(kernels.to_numpy(packed).reshape(-1))
    packed = made[0] if len(made) == 1 else np.concatenate(made)
    return GroupResults(packed, places_of([own.size for own in made]))


def places_of(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where parts of these sizes begin and end, one after the other."""
    return list(itertools.pairwise([0, *itertools.accumulate(sizes)]))


class JoinedProduct(Protocol):
    """The product of rows of several groups that a table of `veil.kernels.joined_rows` describes; for one thread."""

    most_rows: int

    def take_widths(self, widths: Iterable[int]) -> None:
        """Know the inputs of all groups whose rows `begin` gets."""

    def begin(self, rows: NDArray[np.int64], turns: NDArray[np.int64]) -> None:
        """Begin a product of ``rows`` [n, columns], `most_rows` at most, and note in ``turns`` [n, 3] where results will be.

        What the rows' addresses name is read before this returns; weights and shares until `finish`.
        """

    def finish(self) -> NDArray[np.uint8]:
        """The packed results [bytes] uint8 of what was begun, which hold until the next `begin` but one."""


class Kernels(Protocol):
    """A processor's kernels. Methods take and return arrays of the backend, unless their types say otherwise."""

    name: str
    asks_cheaply: bool
    """Whether `finite` costs nothing: false on a GPU, where it waits for everything before it."""

    joins_groups: bool
    """Whether rows of several groups are answered quicker together: on a GPU a launch costs more than a small product."""

    batches_at_once: int
    """Batches that are best made and uploaded together: the server goes over its hint once for all, but strips of more than
    two do not fit a core's cache, and of four a GPU's launches are no longer what takes the time.
    """

    def asarray(self, values: NDArray[np.generic]) -> Array:
        """A NumPy array as one of the backend, shape and dtype kept; an array of the backend as it is."""

    def to_numpy(self, values: Array) -> NDArray[Any]:
        """An array of the backend as a NumPy array, shape and dtype kept."""

    def from_torch(self, values: torch.Tensor) -> Array:
        """A tensor, detached and contiguous, as an array of the backend, shape and dtype kept."""

    def to_torch(self, values: Array) -> torch.Tensor:
        """An array of the backend as a tensor, shape and dtype kept."""

    def zeros(self, *shape: int) -> Array:
        """Words of zero of this shape, uint32."""

    def pack(self, values: U32, bits: int) -> NDArray[np.uint8]:
        """NumPy words [R, count] below 2^bits → bytes [R, ⌈count·bits/8⌉], little-endian, each row padded with zeros."""

    def unpack(self, data: NDArray[np.uint8], count: int, bits: int) -> U32:
        """The inverse of `pack`, of NumPy arrays: bytes [R, ⌈count·bits/8⌉] → words [R, count] below 2^bits."""

    def concatenate(self, parts: Sequence[Array]) -> Array:
        """Arrays of one dtype, equal in shape but for the first axis, one after the other along it."""

    def synchronize(self) -> None:
        """Wait until what the calling thread asked for is done, so that other threads may use it."""

    # The server's half, once ---------------------------------------------------------------------------------------------

    def load_weights(self, weights: Sequence[I8]) -> list[Array]:
        """Each group's int8 weights [rows, width], where `answer` reads them quickest."""

    def inner_hint(self, weights: Array, a: U32, ring: Ring) -> Array:
        """H of some slots, in the order of G: weights [slots, width] int8, a [elements, k, m] → [slots, n] int32.

        Entry ``(i·r + v)·T + t`` is the centred ``round(W·A / 2^(32 - ℓ_h))`` that multiplies coefficient ``u·r + v`` of
        the secret's element i in the subring, u + t' = t.
        """

    def new_hint(self, blocks: int, ring: Ring) -> Hint:
        """Room for G of some blocks, all zero."""

    def fill_hint(self, hint: Hint, first: int, rows: Array, ring: Ring) -> None:
        """Put H [slots, n] int32 from block ``first``, a multiple of `TILE`, into G; only the last tile may lack slots."""

    def load_hint(self, arrays: dict[str, NDArray[np.generic]], ring: Ring) -> Hint:
        """A hint from arrays as `Hint.arrays` gave them; they may be maps of a file, and are not written to."""

    def prepare(self, hint: Hint, batches: Array, bits: int, ring: Ring) -> Array:
        """``D_β = Σ_v G_{β,v}·b_v`` of all blocks for B batches, switched to ``bits`` bits; one pass over G.

        ``batches`` [B, terms, 2, N] are points of both primes → [B, T, blocks·w] uint32, ``round(D·2^bits/Q)`` modulo
        2^bits: with 32 bits the shares h, with ℓ_a bits and the a_v for the b_v the public a'.
        """

    def decode_batches(self, data: Array, ring: Ring) -> Array:
        """Packed uploads [B, bytes] → points [B, terms, 2, N]; `WireError` for a residue that is not below its prime."""

    # The client's half, offline ------------------------------------------------------------------------------------

    def errors(self, rng: Words, sigma: float) -> Errors:
        """A source of errors of this deviation, seeded by ``rng``."""

    def encrypt_batches(self, a: Array, z: Array, secrets: Array, errors: Array, ring: Ring) -> Array:
        """The packed ``b_v = -a_v·z + e_v + Δ·s_v(X^w)`` of B batches for public points a [terms, 2, N] → [B, bytes] uint8.

        z [B, N] and the secrets [B, k, m] are ternary, errors [B, terms, N]; all three int8.
        """

    def load_inner(self, a: U32, ring: Ring) -> Array:
        """Public inner polynomials [elements, k, m] modulo 2^32, in the form that `pads` multiplies with."""

    def pads(self, inner: Array, secrets: Array, errors: Iterable[Array], ring: Ring) -> list[Array]:
        """``A·s + e`` for each of the secrets [B, k, m] int8: for each element Σ_i a_i·s_i → B times [T, elements·r] uint32.

        Input ``c·r + v`` of row t is coefficient ``t·r + v`` of element c. Of ``errors`` the next [T, elements·r] int8 are
        asked when a batch's turn has come.
        """

    def load_public(self, table: U32, ring: Ring) -> Array:
        """The public a' [T, slots] of ℓ_a-bit words, slots whole blocks, in the form that `shares` multiplies with."""

    def shares(self, public: Array, z: Array, slots: int, ring: Ring) -> list[Array]:
        """``μ = (a'·z mod 2^ℓ_a)·2^(32 - ℓ_a)`` for each z of [B, N] int8 → B times [T, slots] uint32."""

    # A row, online -------------------------------------------------------------------------------------------------------

    def encrypt(self, x: Array, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int) -> tuple[Array, Array]:
        """Scale rows x [R, width] float32, add their pads from ``column`` on, round to the top ``bits``, pack.

        Returns packed rows [R, bytes] uint8 and, for `decrypt`, the scales [R] float64: NaN for a row that is not finite,
        whose packed row is zero.
        """

    def encrypt_checked(
        self, x: Array, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int
    ) -> tuple[Array, Array, Array]:
        """What `encrypt` gives, and what `decrypt_checked` of the same kernels reads of the rows that were sent [R, …]."""

    def answer(
        self,
        data: Array,
        weights: Array,
        shares: Sequence[Rows],
        column: int,
        bits: tuple[int, int],
        *,
        serial: bool = False,
    ) -> Array:
        """``W·b - h`` for packed rows [R, bytes] and their shares from ``column`` on, rounded to its top bits and packed.

        ``bits`` are those of inputs and of results; ``serial`` keeps the work on the calling thread.
        """

    def chosen(self) -> AbstractContextManager[object]:
        """Makes these kernels' device the calling thread's while it is open."""

    def joined(self) -> JoinedProduct:
        """What answers rows by their addresses, for the calling thread; only where `joins_groups`."""

    def address(self, values: Array) -> int:
        """Where a device has an array that lies in one piece."""

    def answer_groups(self, asked: Sequence[GroupRows]) -> GroupResults:
        """What `answer` gives for each; it holds until the calling thread's next call. There is at least one.

        A GPU takes several groups in one launch, and has done all of it when this returns.
        """

    def decrypt(self, data: Array, scaling: Scaling, shares: Sequence[Rows], column: int, bits: int, scales: Array) -> Array:
        """Packed results minus μ from ``column`` on, scaled back → [R, rows] float32."""

    def load_vectors(
        self, edges: NDArray[np.int32], signs: I8, sums: NDArray[np.int16], inverse: NDArray[np.float64]
    ) -> SignVectors:
        """Sign vectors where `decrypt_checked` reads them quickest; the shapes are those of `SignVectors`."""

    def decrypt_checked(
        self,
        data: Array,
        sent: Array,
        scaling: Scaling,
        shares: Sequence[Rows],
        column: int,
        bits: int,
        scales: Array,
        vectors: SignVectors,
        out: Array,
    ) -> tuple[Array, SupportsFloat]:
        """What `decrypt` gives, and how far it is from the weights that ``vectors`` know, in deviations of the noise.

        For each chunk and vector ``Σ_j ρ_j·y_j - γ·x_q`` modulo 2^32, centred, times ``inverse``, goes to ``out``
        [R, chunks·J] float64; returned is the largest size, for which a GPU is waited when it is read. The rows x_q are
        those of ``sent``, with the scales that came with them; 0 for one that is not finite. For a place of a `RowTest` a
        GPU does it when the test is launched, and says 0 here.
        """

    def row_test(self, vectors: Sequence[tuple[SignVectors, int]], chunks: RowChunks, sums: F64, rows: F64) -> RowTest:
        """The test of passes of one row through groups of these sign vectors and bits of a result, in the order of their
        residuals, with the host's ``sums`` [tilts, chunks] and ``rows`` [chunks].
        """

    def finite(self, scales: Array) -> bool:
        """Whether every row's scale, of [R] float64, is finite."""

    def prefetch(self, weights: Array) -> Iterator[object]:
        """Steps of a few µs that bring a group's int8 weights [rows, width] nearer; none where memory is near."""
