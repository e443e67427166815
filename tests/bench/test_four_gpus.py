"""The program for several GPUs, on this processor with tiny shapes: its weights, its parts; a wrong share is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bench.made_weights import MadeRows, made_model
from bench.record import Record

from bench import four_gpus
from veil.server.gpus import GpuSlots


def test_a_device_and_numpy_make_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.made_weights._AT_ONCE", 300)  # several steps
    whole = MadeRows(7, 0, 40, 100)
    made = whole.tensor(torch.device("cpu"))
    assert made.dtype == torch.int8 and np.array_equal(made.numpy(), whole.array())
    assert np.array_equal(whole[13:29].tensor(torch.device("cpu")).numpy(), whole.array()[13:29])
    assert np.array_equal(whole[13:29][2:5].array(), whole.array()[15:18])
    assert not np.array_equal(MadeRows(8, 0, 40, 100).array(), whole.array())


def test_weights_fill_a_byte_without_its_least() -> None:
    counts = np.bincount(MadeRows(319, 0, 256, 1024).array().reshape(-1).astype(np.int64) + 128, minlength=256)
    share = 256 * 1024 / 256
    assert counts[0] == 0 and abs(counts[1] - 2 * share) < 5 * (2 * share) ** 0.5
    assert np.abs(counts[2:] - share).max() < 5 * share**0.5


def test_large_models_are_cut_without_being_made() -> None:
    model = made_model("llama-70b")
    parts = [GpuSlots(model, place, 4) for place in range(4)]
    assert sum(own.size for own in model.weights) == sum(part.size for own in parts for part in own.weights())
    assert {own.shape for own in parts[3].weights()[-1:]} == {(32064, 8192)}


def test_everything_is_measured_and_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_gpus, "_REPEATS", 2)
    four_gpus.run("tiny", "cpu", 4, tmp_path / "four.json")
    found = Record.read(tmp_path / "four.json")
    assert not found.notes
    differences = [row for row in found.rows if "differ" in row.name]
    assert [row.value for row in differences] == [0, 0, 0] and all(row.target == "0" for row in differences)
    assert found.value("sampled slots whose answers were compared, with 1 and 3 rows") == 1352
    assert found.value("server's work for a token, all 4 GPUs, from the first start to the last end") > 0
    assert found.value("masks, a row, 4 batches at once") > 0


def test_a_wrong_share_is_noticed_and_a_failed_part_is_a_note(tmp_path: Path) -> None:
    measured = four_gpus.Measured("tiny", "cpu", 2, tmp_path / "four.json")
    measured.load()
    measured.spread.take_shares()
    measured.spread.shared.shares["body"].parts[1][:] += 1
    measured.samples()
    assert measured.record.value("sampled shares that differ from the processor's") > 0
    assert not measured.part("a part", lambda: [][0])
    assert Record.read(tmp_path / "four.json").notes == ["a part: IndexError: list index out of range"]
