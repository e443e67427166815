"""`codec` on a CUDA device: the same bytes, as tensors there, and the same checks."""

from __future__ import annotations

import torch

from veil.errors import WireError
from veil.kernels import cuda
from veil.params import Params, packed_bytes

Tensor = torch.Tensor


def encode_keys(halves: Tensor, params: Params) -> Tensor:
    """Key halves [keys, 2, 3, N] → packed residues [keys·2, bytes]; see `codec.encode_keys`."""
    return _encode(halves.view(-1, 3, params.N), params.moduli)


def decode_keys(data: Tensor, params: Params) -> Tensor:
    """Inverse of `encode_keys`; a wrong size or a residue out of range raises `WireError`."""
    keys = len(params.automorphisms)
    return _decode(data, 2 * keys, params.moduli, params.N).view(keys, 2, 3, params.N)


def encode_masks(halves: Tensor, params: Params) -> Tensor:
    """``b`` halves [T, 2, N] of masks → packed residues [T, bytes]; see `codec.encode_mask`."""
    return _encode(halves, params.outer_primes)


def decode_masks(data: Tensor, count: int, params: Params) -> Tensor:
    """Inverse of `encode_masks`; a wrong size or a residue out of range raises `WireError`."""
    return _decode(data, count, params.outer_primes, params.N)


def _encode(polynomials: Tensor, moduli: tuple[int, ...]) -> Tensor:
    parts = [cuda.pack(polynomials[:, i].contiguous(), p.bit_length()) for i, p in enumerate(moduli)]
    return torch.cat(parts, dim=1)


def _decode(data: Tensor, count: int, moduli: tuple[int, ...], degree: int) -> Tensor:
    lengths = [packed_bytes(degree, p.bit_length()) for p in moduli]
    if data.dtype != torch.uint8 or tuple(data.shape) != (count, sum(lengths)):
        raise WireError(f"{tuple(data.shape)} bytes of residues, expected {(count, sum(lengths))}")
    parts = [
        cuda.unpack(part.contiguous(), degree, p.bit_length())
        for part, p in zip(torch.split(data, lengths, dim=1), moduli, strict=True)
    ]
    # Residues have 30 bits at most, so they compare as signed integers.
    wrong = [(part.view(torch.int32) >= p).any() for part, p in zip(parts, moduli, strict=True)]
    if torch.stack(wrong).any().item():
        raise WireError("a coefficient is not below its modulus")
    return torch.stack([part.view(torch.int32) for part in parts], dim=1).view(torch.uint32)
