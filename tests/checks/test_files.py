"""Sign vectors on disk: for their owner alone, of one half, and required or not as the user says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from veil.bundle.manifest import Group, Layer, Manifest
from veil.checks.choice import chosen_vectors
from veil.checks.files import Vectors, load_vectors, path_of, save_vectors
from veil.checks.vectors import make_vectors
from veil.checks.words import answers_words
from veil.errors import BundleError, Unchecked
from veil.random import SecretRng

HALF, OTHER = "a" * 64, "b" * 64
MANIFEST = Manifest((Group((Layer("a", "linear", 24, 37, 8, False),), "body"),))


@pytest.fixture
def kept() -> Vectors:
    weights = np.random.default_rng(1).integers(-127, 128, (37, 24), dtype=np.int8)
    vectors = Vectors("org/model", [make_vectors(MANIFEST.groups[0], weights, SecretRng())])
    save_vectors(HALF, vectors)
    return vectors


def test_vectors_come_back(kept: Vectors) -> None:
    found = load_vectors(HALF, MANIFEST)
    assert found is not None and found.against == "org/model" and found.nbytes == kept.nbytes
    for name in ("signs", "sums", "overlap"):
        assert np.array_equal(getattr(found.groups[0], name), getattr(kept.groups[0], name)), name
    assert load_vectors(OTHER, MANIFEST) is None


@pytest.mark.skipif(os.name != "posix", reason="modes")
@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_they_are_secret(kept: Vectors, mode: int) -> None:
    assert path_of(HALF).stat().st_mode & 0o777 == 0o600
    path_of(HALF).chmod(mode)
    with pytest.raises(BundleError, match="may be read by others"):
        load_vectors(HALF, MANIFEST)


def test_those_of_another_half_are_refused(kept: Vectors) -> None:
    path_of(HALF).rename(path_of(OTHER))
    with pytest.raises(BundleError, match="is not of this half"):
        load_vectors(OTHER, MANIFEST)


@pytest.mark.parametrize("name", ["signs.0", "sums.0", "overlap.0"])
def test_those_of_another_size_are_refused(kept: Vectors, name: str) -> None:
    arrays = load_file(path_of(HALF))
    arrays[name] = np.ascontiguousarray(arrays[name][..., :-1])
    save_file(arrays, path_of(HALF), {"format": "1", "half": HALF, "against": "x"})
    path_of(HALF).chmod(0o600)
    with pytest.raises(BundleError, match="does not fit the half; make it anew with 'veil check"):
        load_vectors(HALF, MANIFEST)


def test_a_cut_off_file_is_one_error(kept: Vectors) -> None:
    os.truncate(path_of(HALF), 40)
    with pytest.raises(BundleError, match="cannot be read"):
        load_vectors(HALF, MANIFEST)


def test_whether_answers_are_checked_is_the_users_word(kept: Vectors, tmp_path: Path) -> None:
    assert chosen_vectors("off", HALF, MANIFEST, tmp_path) is None
    assert chosen_vectors("auto", OTHER, MANIFEST, tmp_path) is None
    for word in ("auto", "require"):
        found = chosen_vectors(word, HALF, MANIFEST, tmp_path)
        assert found is not None and found.against == "org/model"
    with pytest.raises(Unchecked, match=f"veil check MODEL --half {tmp_path}"):
        chosen_vectors("require", OTHER, MANIFEST, tmp_path)
    with pytest.raises(ValueError, match="checked is 'maybe', expected one of require, auto, off"):
        chosen_vectors("maybe", HALF, MANIFEST, tmp_path)


def test_what_a_person_is_told() -> None:
    assert answers_words("remote", "org/model") == "checked against org/model"
    assert answers_words("remote", None).startswith("unchecked: 'veil check'")
    assert answers_words("execute", None) == "computed in this process"
