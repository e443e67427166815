"""Malicious halves, servers and recorders. The servers and tiny bundles are those of ``tests/remote``."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from veil import HybridFHEModel, linear_modules
from veil.bundle import header_file
from veil.disk import digest
from veil.params import Params
from veil.wire.messages import rows_of

_spec = importlib.util.spec_from_file_location("veil_tests_remote", Path(__file__).parents[1] / "remote" / "conftest.py")
assert _spec is not None and _spec.loader is not None
remote = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(remote)

bundle, llama, expected, serve, generated, raw = (
    remote.bundle,
    remote.llama,
    remote.expected,
    remote.serve,
    remote.generated,
    remote.raw,
)
certificate, start = remote.certificate, remote.start


@pytest.fixture(autouse=True)
def own_folders(known_servers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and known servers of this test alone."""
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("VEIL_DATA_DIR", str(tmp_path / "data"))  # after the one of all tests


@pytest.fixture
def forged(tmp_path: Path) -> Callable[..., Any]:
    """A copy of a bundle whose client half was changed by ``change(half)`` or ``header(fields)`` and signed anew."""

    def make(
        original: Any,
        change: Callable[[Path], object] = lambda half: None,
        header: Callable[[dict[str, Any]], object] = lambda fields: None,
    ) -> Any:
        path = tmp_path / f"forged-{len(list(tmp_path.iterdir()))}"
        half = Path(shutil.copytree(original.path, path)) / "client"
        change(half)
        fields = json.loads((half / header_file.HEADER).read_text())
        found = [file for file in half.rglob("*") if file.is_file() and file.name != header_file.HEADER]
        fields["sha256"] = {file.relative_to(half).as_posix(): digest(file) for file in found}
        header(fields)
        (half / header_file.HEADER).write_text(json.dumps(fields))
        return replace(original, path=path)

    return make


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Any:
    """A tiny mixture of experts as a bundle that keeps its routing to itself."""
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=5,
        num_experts_per_tok=2,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = MixtralForCausalLM(config).eval()
    hybrid = HybridFHEModel(model, linear_modules(model))
    hybrid.compile_model(torch.tensor([[5, 9, 33]]), params=Params.insecure_tiny(signal_db=60.0), device="cpu")
    path = tmp_path_factory.mktemp("bundles") / "mixtral"
    hybrid.save(path, tokenizer=tiny_tokenizer)
    hybrid.set_fhe_mode("execute")
    assert hybrid.sides.engine is not None
    return remote.Bundle("mixtral", path, hybrid, hybrid.sides.engine)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What a curious server writes down: (group, rows) of every request, in order."""
    from veil.server.admission import Admission

    seen: list[tuple[int, int]] = []
    original = Admission.claim

    def claim(admission: Admission, session: Any, group: int, spans: Any, *rest: Any, **options: Any) -> Any:
        seen.append((group, rows_of(spans)))
        return original(admission, session, group, spans, *rest, **options)

    monkeypatch.setattr(Admission, "claim", claim)
    return seen


class Recorder:
    """Stands on the way to a port of this machine and writes down what passes towards it; ``target`` 0 answers nothing."""

    def __init__(self, target: int = 0) -> None:
        self.seen = bytearray()
        self._target = target
        self._listener = socket.create_server(("0.0.0.0", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._target:
                threading.Thread(target=self._pump, args=(near, None, True), daemon=True).start()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket | None, note: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if note:
                    self.seen += data
                if sink is not None:
                    sink.sendall(data)
        except OSError:
            pass
        finally:
            source.close()
            if sink is not None:
                sink.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def recorder() -> Iterator[Callable[[int], Recorder]]:
    """Makes recorders in front of ports."""
    made: list[Recorder] = []

    def make(target: int = 0) -> Recorder:
        made.append(Recorder(target))
        return made[-1]

    yield make
    for one in made:
        one.close()
