"""Packed polynomials on the wire: lengths are checked before anything is allocated, residues before anything is used."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from veil.errors import WireError
from veil.params import Params, packed_bytes

U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]


def encode_keys(halves: U32, params: Params, kernels: ModuleType) -> bytes:
    """Key halves [keys, 2, 3, N] → residues packed to their primes' bits: prime by prime within each digit."""
    return _encode(halves.reshape(-1, 3, params.N), params.moduli, kernels)


def decode_keys(data: bytes, params: Params, kernels: ModuleType) -> U32:
    """Inverse of `encode_keys`; a wrong length or a residue out of range raises `WireError`."""
    if len(data) != params.epoch_key_bytes:
        raise WireError(f"epoch keys have {len(data)} bytes, expected {params.epoch_key_bytes}")
    keys = len(params.automorphisms)
    return _decode(data, keys * 2, params.moduli, params.N, kernels).reshape(keys, 2, 3, params.N)


def encode_mask(half: U32, params: Params, kernels: ModuleType) -> bytes:
    """A mask's ``b`` half [2, N] → packed residues."""
    return _encode(half[None], params.outer_primes, kernels)


def decode_mask(data: bytes, params: Params, kernels: ModuleType) -> U32:
    """Inverse of `encode_mask`; a wrong length or a residue out of range raises `WireError`."""
    if len(data) != params.mask_bytes:
        raise WireError(f"a mask has {len(data)} bytes, expected {params.mask_bytes}")
    return _decode(data, 1, params.outer_primes, params.N, kernels)[0]


def rows_from(data: bytes, rows: int, count: int, bits: int) -> U8:
    """Bytes → [rows, packed bytes of count words]; another length raises `WireError`."""
    row_bytes = packed_bytes(count, bits)
    if len(data) != rows * row_bytes:
        raise WireError(f"{len(data)} bytes for {rows} rows of {count} words, expected {rows * row_bytes}")
    return np.frombuffer(data, dtype=np.uint8).reshape(rows, row_bytes)


def _encode(polynomials: U32, moduli: tuple[int, ...], kernels: ModuleType) -> bytes:
    parts = [kernels.pack(np.ascontiguousarray(polynomials[:, i]), p.bit_length()) for i, p in enumerate(moduli)]
    return np.concatenate(parts, axis=1).tobytes()


def _decode(data: bytes, count: int, moduli: tuple[int, ...], degree: int, kernels: ModuleType) -> U32:
    raw = np.frombuffer(data, dtype=np.uint8).reshape(count, -1)
    out = np.empty((count, len(moduli), degree), dtype=np.uint32)
    first = 0
    for i, p in enumerate(moduli):
        length = packed_bytes(degree, p.bit_length())
        part = np.ascontiguousarray(raw[:, first : first + length])
        out[:, i] = kernels.unpack(part, degree, p.bit_length())
        first += length
        if (out[:, i] >= p).any():
            raise WireError(f"a coefficient is not below its modulus {p}")
    return out
