"""NumPy in the place of the CUDA kernels that Triton's interpreter takes seconds for; each has tests of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from veil.kernels import cuda, cuda_secret, reference
from veil.kernels.ring import Ring

Tensor = torch.Tensor


def put(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, order="C"))


get = cuda.to_numpy


def install(patches: pytest.MonkeyPatch) -> None:
    """Put every function below in its place."""
    for function in (ntt, centred_points, secret_products, gaussian, load_keys, expand_a, expand_b, product):
        patches.setattr(cuda, function.__name__, function)
    for function in (combine_a, combine_b, inner_hint, outer_hint):
        patches.setattr(cuda, function.__name__, function)
    for function in (key_stream, key_halves, mask_halves):
        patches.setattr(cuda_secret, function.__name__, function)


def ntt(values: Tensor, table: Any) -> Tensor:
    return put(reference.ntt(get(values), table))


def centred_points(values: Tensor, tables: Any, ring: Ring) -> Tensor:
    return put(reference.centred_points(get(values), tables, ring))


def secret_products(public: Tensor, secret: Tensor, tables: Any, ring: Ring) -> Tensor:
    if secret.ndim == 2:
        return put(reference.secret_products(get(public), get(secret), tables, ring))
    return put(np.stack([reference.secret_products(get(public), get(one), tables, ring) for one in secret]))


def gaussian(words: Tensor, cumulative: Tensor, guide: Tensor) -> Tensor:
    return put(reference.gaussian(get(words), get(cumulative), get(guide)))


def load_keys(keys: Tensor, ring: Ring) -> Tensor:
    return keys.clone()


def expand_a(a: Tensor, keys: Tensor, ring: Ring) -> tuple[Tensor, Tensor]:
    made = [reference.expand_a(get(one), get(keys), ring) for one in a]
    return put(np.stack([digits for digits, _ in made])), put(np.stack([leaves for _, leaves in made]))


def expand_b(b: Tensor, digits: Tensor, keys: Tensor, ring: Ring, sets: Tensor, epochs: Tensor) -> Tensor:
    stores = [get(digits[m]) for m in sets.tolist()], [get(keys[e]) for e in epochs.tolist()]
    return cuda.hint_from_reference(put(reference.expand_b(get(b), *stores, ring)))  # type: ignore[arg-type]


def product(hint: Tensor, leaves: Tensor, ring: Ring) -> Tensor:
    return put(reference.product(get(cuda.hint_to_reference(hint)), get(cuda.hint_to_reference(leaves)), ring))


def combine_a(products: Tensor, keys: Tensor, bits: int, ring: Ring) -> tuple[Tensor, Tensor]:
    made = [reference.combine_a(get(one), get(keys), bits, ring) for one in products]
    return put(np.stack([digits for digits, _ in made])), put(np.stack([words for _, words in made]))


def combine_b(products: Tensor, digits: Tensor, keys: Tensor, bits: int, ring: Ring, sets: Tensor, epochs: Tensor) -> Tensor:
    stores = [get(digits[m]) for m in sets.tolist()], [get(keys[e]) for e in epochs.tolist()]
    return put(reference.combine_b(get(products), *stores, bits, ring))  # type: ignore[arg-type]


def inner_hint(weights: Tensor, a: Tensor, bits: int, ring: Ring) -> Tensor:
    return put(reference.inner_hint(get(weights), get(a), bits, ring))


def outer_hint(block: Tensor, ring: Ring, out: Tensor) -> Tensor:
    made = cuda.hint_from_reference(put(reference.outer_hint(get(block), ring)))
    return out.view(torch.int32).copy_(made.view(torch.int32)).view(torch.uint32)


def key_stream(key: Tensor, first: int, blocks: int) -> Tensor:
    encryptor = Cipher(algorithms.ChaCha20(get(key).tobytes(), bytes(16)), mode=None).encryptor()
    stream = encryptor.update(bytes(64 * (first + blocks)))
    return put(np.frombuffer(stream[64 * first :], dtype=np.uint32))


def _minus_product(a: Any, z: Any, error: Any, i: int, ring: Ring) -> Any:
    p = ring.moduli[i]
    points = reference.ntt((error.astype(np.int64) % p).astype(np.uint32)[None], ring.tables[i])[0].astype(np.int64)
    return points - a.astype(np.int64) * z.astype(np.int64) % p


def key_halves(a: Tensor, z: Tensor, errors: Tensor, ring: Ring) -> Tensor:
    halves, points, noise = get(a), get(z), get(errors)
    orders, out = np.concatenate([ring.automorphisms, ring.rotations[1:]]), np.empty_like(halves)
    for key, digit, i in np.ndindex(*halves.shape[:3]):
        value = _minus_product(halves[key, digit, i], points[i], noise[key, digit], i, ring)
        if i == digit:
            value = value + points[i, orders[key]].astype(np.int64) * ring.moduli[2]
        out[key, digit, i] = value % ring.moduli[i]
    return put(out)


def mask_halves(a: Tensor, sets: Tensor, z: Tensor, secrets: Tensor, errors: Tensor, scales: Tensor, ring: Ring) -> Tensor:
    halves, points, noise, factors = get(a), get(z), get(errors).astype(np.int64), get(scales).astype(np.int64)
    out = np.empty((len(sets), 2, ring.N), dtype=np.uint32)
    for t, m in enumerate(sets.tolist()):
        placed = np.zeros((ring.fold, ring.N // ring.fold), dtype=np.int64)
        placed[:, : ring.leaves] = get(secrets[t]).reshape(ring.leaves, ring.fold).T
        for i in range(2):
            error = noise[t] + placed.reshape(-1) * factors[i]
            out[t, i] = _minus_product(halves[m, i], points[i], error, i, ring) % ring.moduli[i]
    return put(out)
