"""A hint on disk is the one that was kept, or none: what is damaged, of another bundle or cut off is built again."""

from __future__ import annotations

import json
import logging
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veil.bench.load_shapes import random_model
from veil.crypto.hint import ServerHint
from veil.kernels.backend import kernels_for
from veil.server.engine import Engine
from veil.server.hint_files import load_hint, save_hint

Usage = namedtuple("Usage", "total used free")
KERNELS, FINGERPRINT = kernels_for("cpu"), "f" * 64


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.build(random_model("tiny"), KERNELS)


@pytest.fixture
def kept(engine: Engine, tmp_path: Path) -> Path:
    folder = tmp_path / "hints" / "one"
    assert save_hint(folder, engine.hint, KERNELS, FINGERPRINT)
    return folder


def loaded(folder: Path, engine: Engine, kernels: Any = KERNELS, fingerprint: str = FINGERPRINT) -> ServerHint | None:
    model = engine.model
    return load_hint(folder, model.params, model.manifest.segments, kernels, fingerprint)


def test_a_hint_comes_back_as_it_was(kept: Path, engine: Engine) -> None:
    hint = loaded(kept, engine)
    assert hint is not None
    before, after = engine.hint.arrays(), hint.arrays()
    assert before.keys() == after.keys()
    for segment, arrays in before.items():
        for name, values in arrays.items():
            np.testing.assert_array_equal(after[segment][name], values)


def test_a_hint_of_other_weights_or_kernels_or_an_older_veil_is_none(kept: Path, engine: Engine) -> None:
    assert loaded(kept, engine, fingerprint="0" * 64) is None
    assert loaded(kept, engine, kernels=kernels_for("reference")) is None
    about = json.loads((kept / "hint.json").read_text())
    (kept / "hint.json").write_text(json.dumps(about | {"version": 0}))
    assert loaded(kept, engine) is None


@pytest.mark.parametrize("harm", ["cut", "longer", "missing array", "no json", "no sizes", "missing segment"])
def test_what_is_damaged_is_told_of_and_built_again(
    harm: str, kept: Path, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    array, about = min(kept.glob("*.npy")), json.loads((kept / "hint.json").read_text())
    match harm:
        case "cut":
            array.write_bytes(array.read_bytes()[:-1])
        case "longer":
            array.write_bytes(array.read_bytes() + b"x")
        case "missing array":
            array.unlink()
        case "no json":
            (kept / "hint.json").write_text("{")
        case "no sizes":
            (kept / "hint.json").write_text(json.dumps({key: value for key, value in about.items() if key != "sizes"}))
        case "missing segment":
            (kept / "hint.json").write_text(json.dumps(about | {"sizes": {}}))
    with caplog.at_level(logging.WARNING, "veil"):
        assert loaded(kept, engine) is None
    assert ("damaged" in caplog.text) == (harm != "missing array"), "a file that is not there is no damage"


def test_a_disk_without_room_keeps_nothing(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 2 * engine.hint.nbytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10 * free, 0, free - 1))
    assert not save_hint(tmp_path / "one", engine.hint, KERNELS, FINGERPRINT)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told_of(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert not save_hint(tmp_path / "file" / "one", engine.hint, KERNELS, FINGERPRINT)
    assert "is not kept" in caplog.text
