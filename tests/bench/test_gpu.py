"""The GPU's program, on this processor with tiny shapes: what it measures is there, and a wrong answer ends it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.record import Record

from bench import gpu
from veil.kernels.backend import kernels_for
from veil.params import Params

TINY = Params.insecure_tiny()


def test_rows_offline_and_a_token_are_measured(tmp_path: Path) -> None:
    kernels = kernels_for("cpu")
    shapes = gpu.Shapes(body=((70, 51), (64, 100), (48, 33)), head=(70, 90), token_ms=1.0)
    record = Record(benchmark="one GPU", parameters={})
    gpu.measure_shapes("tiny", shapes, kernels, TINY, record, gpu.Clock(kernels, repeats=2))
    assert [row.name for row in record.rows] == [
        "tiny, an offline row, server",
        "tiny, an offline row, client",
        "tiny, server's work for a token",
    ]
    assert all(row.value > 0 and row.unit == "ms" and row.repetitions == 2 for row in record.rows)
    assert record.rows[2].bytes == 70 * 51 + 64 * 100 + 48 * 33 + 70 * 90
    record.write(tmp_path / "gpu.json")
    assert Record.read(tmp_path / "gpu.json") == record


def test_a_wrong_answer_is_noticed() -> None:
    shapes = gpu.Shapes(body=((70, 51),), head=(70, 90), token_ms=1.0)
    model = gpu.Model(shapes, kernels_for("cpu"), TINY)
    data, shares = model.token(), model.shares()
    gpu.check(model, data, shares)
    shares["head"][0].material[:] = 1 << 30
    with pytest.raises(SystemExit, match="WRONG: the answer of layer1"):
        gpu.check(model, data, shares)


def test_shapes_are_those_of_the_models() -> None:
    def sums(name: str) -> tuple[int, int]:
        sizes = [*gpu.MODELS[name].body, gpu.MODELS[name].head]
        return sum(rows for _, rows in sizes), sum(width * rows for width, rows in sizes)

    assert sums("gpt2")[1] == 123_532_032
    assert sums("llama-1b") == (505_088, 1_235_746_816)
    assert sums("llama-8b") == (1_504_512, 7_504_658_432)
