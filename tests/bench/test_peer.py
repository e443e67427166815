"""The peer: consent, what is measured and what is scaled, and a process that stands for it where it cannot run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from veil.bench import peer

SHAPES = ((768, 2304, 12), (3072, 768, 12), (768, 50257, 1))


def nothing(stage: str, done: int, total: int) -> None: ...


def answer(width: int, outputs: int) -> peer.MeasuredShape:
    return {
        "width": width, "outputs": outputs, "encrypt_s": 0.001, "multiply_s": outputs / 100, "decrypt_s": outputs / 1e6,
        "up_bytes": 10 * width, "down_bytes": 2 * outputs, "relative_error": 1e-4,
    }  # fmt: skip


def test_only_layers_far_wider_than_a_step_are_cut_to_whole_steps() -> None:
    assert [peer.measured_outputs(outputs) for outputs in (1, 2304, 3072, 8192)] == [1, 2304, 3072, 8192]
    assert peer.measured_outputs(50257) % peer.STEP == 0
    assert peer.measured_outputs(50257) < 8192


def test_the_token_is_the_sum_over_layers_and_says_what_was_scaled() -> None:
    head: peer.PeerHead = {"version": "0.2.0", "key_bytes": 134_217_808}
    answers = [answer(width, peer.measured_outputs(outputs)) for width, outputs, _ in SHAPES]
    made = peer.summed(SHAPES, head, answers)
    assert made.token_s == pytest.approx(sum(n * (0.001 + outputs / 100 + outputs / 1e6) for _, outputs, n in SHAPES))
    assert made.bytes_per_token == pytest.approx(sum(n * (10 * width + 2 * outputs) for width, outputs, n in SHAPES))
    assert [layer.measured_outputs == layer.outputs for layer in made.layers] == [True, True, False]
    assert made.version == "0.2.0" and made.key_bytes == 134_217_808


def test_nothing_is_installed_without_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was started"))
    with pytest.raises(peer.PeerUnavailable, match="--install-peer"):
        peer.require(install=False, progress=nothing)
    assert list(tmp_path.iterdir()) == []


def test_a_python_that_the_peer_does_not_support_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_PYTHONS", ("9.9",))
    with pytest.raises(peer.PeerUnavailable, match=r"needs Python 9\.9"):
        peer._supported_python()


def stand_in(folder: Path, body: str) -> Path:
    """An interpreter whose library is ``concrete_ml_extensions`` written here."""
    (folder / "concrete_ml_extensions.py").write_text(body)
    (folder / "concrete_ml_extensions-0.2.0.dist-info").mkdir()
    (folder / "concrete_ml_extensions-0.2.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: concrete-ml-extensions\nVersion: 0.2.0\n"
    )
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


CLEAR = """
import json
import numpy as np

class MatmulCryptoParameters:
    @staticmethod
    def deserialize(text):
        return json.loads(text)

class Bytes:
    def __init__(self, value): self.value = value
    def serialize(self): return bytes(self.value.nbytes)

def default_params(): return json.dumps({"packing_ks_polynomial_size": 2048})
def create_private_key(params): return 1, Bytes(np.zeros(3))
def encrypt_matrix(pkey, crypto_params, data): return Bytes(data)
def matrix_multiplication(encrypted_matrix, data, compression_key): return Bytes(encrypted_matrix.value @ data)
def decrypt_matrix(product, pkey, params, last):
    assert (product.value.shape[1] - last) % 2048 == 0 and 0 < last <= 2048
    return product.value
"""


def test_the_process_multiplies_every_distinct_shape_once(tmp_path: Path) -> None:
    python = stand_in(tmp_path, CLEAR)
    stages: list[tuple[int, int]] = []
    shapes = ((8, 5, 3), (8, 2048, 1), (16, 8200, 2))
    made = peer.measure(shapes, python, lambda stage, done, total: stages.append((done, total)))
    assert [(layer.width, layer.outputs, layer.count) for layer in made.layers] == list(shapes)
    assert [layer.measured_outputs for layer in made.layers] == [5, 2048, 4096]
    assert all(layer.relative_error == 0 for layer in made.layers)
    assert [layer.up_bytes for layer in made.layers] == [64, 64, 128]
    assert [layer.down_bytes for layer in made.layers] == [40, 8 * 2048, pytest.approx(8 * 8200)]
    assert made.key_bytes == 24 and made.token_s > 0
    assert stages[-1] == (3, 3)


@pytest.mark.parametrize(
    ("body", "words"),
    [("raise ImportError('GLIBC is too old')", "GLIBC is too old"), (CLEAR + "\nencrypt_matrix = None", "not callable")],
)
def test_a_peer_that_fails_is_one_clear_error(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(peer.PeerUnavailable, match=words):
        peer.measure(((8, 5, 1),), stand_in(tmp_path, body), nothing)


def test_the_process_imports_nothing_of_veil() -> None:
    tree = ast.parse(Path(peer.__file__).with_name("peer_process.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.split(".")[0] == "veil" for name in names)
