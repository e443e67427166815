"""Runs in the peer's own environment: times one layer shape after another with concrete-ml-extensions, one JSON line each.

    python peer_process.py '[[768, 2304], [768, 768]]'

It is started as a file and imports nothing of veil. A shape is ``[width, outputs]``. One row is encrypted, multiplied with
int8 weights and decrypted with the library's own default parameters, as Concrete ML's executor does for each layer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version

import concrete_ml_extensions as library  # type: ignore[import-not-found]
import numpy as np


def main() -> None:
    """Print the library's version and parameters, then a line for each shape."""
    fields = json.loads(library.default_params())
    params = library.MatmulCryptoParameters.deserialize(json.dumps(fields))
    start = time.perf_counter()
    private, compression = library.create_private_key(params)
    key_bytes = len(compression.serialize())
    head = {"version": version("concrete-ml-extensions"), "parameters": fields, "key_bytes": key_bytes}
    say(head | {"keys_s": time.perf_counter() - start})
    for width, outputs in json.loads(sys.argv[1]):
        say(layer(width, outputs, private, compression, params, fields["packing_ks_polynomial_size"]))


def layer(width: int, outputs: int, private: object, compression: object, params: object, step: int) -> dict[str, float]:
    """Seconds and bytes of one row through a layer, and the error of its result relative to the exact one."""
    rng = np.random.default_rng(width * 65537 + outputs)
    row = rng.integers(0, 256, (1, width), dtype=np.uint64)
    weights = rng.integers(-127, 128, (width, outputs), dtype=np.int64)
    words = weights.astype(np.uint64)
    times = [time.perf_counter()]
    encrypted = library.encrypt_matrix(pkey=private, crypto_params=params, data=row)
    times.append(time.perf_counter())
    product = library.matrix_multiplication(encrypted_matrix=encrypted, data=words, compression_key=compression)
    times.append(time.perf_counter())
    result = library.decrypt_matrix(product, private, params, outputs % step or step)
    times.append(time.perf_counter())
    exact = (row.astype(np.int64) @ weights)[0].astype(np.float64)
    error = result[0, :outputs].astype(np.int64).astype(np.float64) - exact
    encrypt_s, multiply_s, decrypt_s = np.diff(times).tolist()
    return {
        "width": width,
        "outputs": outputs,
        "encrypt_s": encrypt_s,
        "multiply_s": multiply_s,
        "decrypt_s": decrypt_s,
        "up_bytes": len(encrypted.serialize()),
        "down_bytes": len(product.serialize()),
        "relative_error": float(np.sqrt(np.mean(error**2)) / np.sqrt(np.mean(exact**2))),
    }


def say(value: Mapping[str, object]) -> None:
    """One line, now."""
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
