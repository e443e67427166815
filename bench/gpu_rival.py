"""Times of concrete-ml-extensions (0.2.0, the encrypted matrix product behind Concrete ML's hybrid models) on one card.

    pip install --no-deps concrete-ml-extensions==0.2.0
    python bench/gpu_rival.py --out bench/results/rival-h100.json

One row times GPT-2's five weight matrices, each with the library's own default parameters: 8-bit inputs, 8-bit weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHAPES = {(768, 2304): 12, (768, 768): 12, (768, 3072): 12, (3072, 768): 12, (768, 50257): 1}


def median_ms(step: Callable[[], Any], limit_s: float) -> tuple[float, int, Any]:
    """The median time of a call, after one, of at most 10 or as many as fit; the number of calls; the last result."""
    result, times, started = step(), [], time.perf_counter()
    while len(times) < 10 and (not times or time.perf_counter() - started + times[-1] < limit_s):
        before = time.perf_counter()
        result = step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1e3, len(times), result


def measure(library: Any, width: int, out: int, keys: Any, params: Any, poly_size: int, limit_s: float) -> dict[str, Any]:
    private, compression = keys
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (1, width), dtype=np.uint64)
    weights = rng.integers(-127, 128, (width, out), dtype=np.int64)
    encrypt_ms, _, rows = median_ms(lambda: library.encrypt_matrix(private, params, x), limit_s)
    matrix = library.make_cuda_clear_matrix(weights.astype(np.uint64), compression)
    product_ms, calls, product = median_ms(lambda: library.cuda_matrix_multiplication(rows, matrix, compression), limit_s)
    last = out % poly_size or poly_size
    decrypt_ms, _, y = median_ms(lambda: library.decrypt_matrix(product, private, params, last), limit_s)
    exact = x.astype(np.int64) @ weights
    error = float(np.sqrt(np.mean((y.astype(np.int64)[0, :out] - exact[0]) ** 2.0)) / np.sqrt(np.mean(exact**2.0)))
    return {
        "width": width, "out": out, "encrypt_ms": encrypt_ms, "product_ms": product_ms, "decrypt_ms": decrypt_ms,
        "product_calls": calls, "relative_error": error,
        "up_bytes": len(rows.serialize()), "down_bytes": len(product.serialize()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--warm", action="store_true", help="only compile: it has no code for Hopper, the driver makes it")
    parser.add_argument("--limit", type=float, default=6.0, help="seconds for each of the three timings of a shape")
    options = parser.parse_args()
    import concrete_ml_extensions as library

    if not library.is_cuda_enabled() or not library.is_cuda_available():
        raise SystemExit("this build of concrete-ml-extensions sees no CUDA device")
    fields = json.loads(library.default_params())
    params = library.MatmulCryptoParameters.deserialize(json.dumps(fields))
    keys = library.cuda_create_private_key(params)
    if options.warm:
        started = time.perf_counter()
        measure(library, 768, 768, keys, params, fields["packing_ks_polynomial_size"], 0.0)
        print(f"compiled in {time.perf_counter() - started:.0f} s")
        return
    record: dict[str, Any] = {
        "card": torch.cuda.get_device_name(), "version": version("concrete-ml-extensions"), "params": fields, "rows": [],
        "token_product_ms": 0.0,
    }  # fmt: skip
    for (width, out), count in SHAPES.items():
        row = measure(library, width, out, keys, params, fields["packing_ks_polynomial_size"], options.limit)
        record["rows"].append(row | {"count": count})
        record["token_product_ms"] += count * row["product_ms"]
        print(record["rows"][-1], flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{record['card']}: GPT-2's products for one token: {record['token_product_ms']:,.1f} ms")


if __name__ == "__main__":
    main()
