"""Warming up leaves nothing to compile: a whole encrypted generation adds no new kernel signature."""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba.core.dispatcher import Dispatcher
from transformers import LlamaConfig, LlamaForCausalLM

from veil import HybridFHEModel
from veil.bundle.terms import Terms
from veil.kernels import cpu, warm
from veil.kernels.cpu import kept, packing
from veil.kernels.ring import ring_of
from veil.params import Params
from veil.runtime.modules import select_modules
from veil.server import row_io
from veil.server import warm as server_warm
from veil.server.arrivals import Arrivals


def signatures() -> dict[str, list[Any]]:
    found = {}
    for info in pkgutil.iter_modules(cpu.__path__, "veil.kernels.cpu."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if isinstance(value, Dispatcher):
                found[f"{info.name}.{name}"] = list(value.signatures)
    return found


def test_a_generation_compiles_nothing_after_the_warm_up(tmp_path: Path) -> None:
    params = Params.insecure_tiny()
    for call in warm.every_kernel(ring_of(params)):
        call()
    before = signatures()
    config = LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=90, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    hybrid = HybridFHEModel(model, select_modules(model, "linear+embedding"))
    ids = torch.from_numpy(np.arange(1, 8)[None])
    hybrid.compile_model(ids, params=params, device="cpu")
    hybrid.set_fhe_mode("execute")
    generating: Any = hybrid.model
    generating.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    hybrid.save(tmp_path / "bundle")
    loaded = HybridFHEModel.load(tmp_path / "bundle", device="cpu", terms=Terms(no_cryptography=True))
    loaded.set_fhe_mode("execute")
    loaded(ids)
    after = signatures()
    assert {name: found for name, found in after.items() if found != before[name]} == {}


def test_processes_share_the_steps_and_what_one_left_out_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that takes a step and ends: whoever began compiles it."""
    ran: list[int] = []
    steps: list[Callable[[], object]] = [partial(ran.append, number) for number in range(5)]

    @contextmanager
    def one_that_is_killed(taken: Path, processes: int, parts: Sequence[str]) -> Iterator[list[Any]]:
        (taken / "3").touch()
        yield []

    monkeypatch.setattr(warm, "_others", one_that_is_killed)
    monkeypatch.setattr(warm, "_steps_of", lambda parts: steps)
    said: list[tuple[int, int]] = []
    warm._compile_all([warm.OWN], lambda stage, done, total: said.append((done, total)))
    assert ran == [0, 1, 2, 4, 0, 1, 2, 3, 4] and said[-1] == (6, 6) and said == sorted(said)
    ran.clear()
    for _ in warm._share(steps, tmp_path, 0.5):
        if len(ran) == 1:
            (tmp_path / "0").touch()
    assert ran == [2, 3, 4, 1], "from its part on and round, without what another took"


def test_another_process_takes_what_is_left(tmp_path: Path) -> None:
    steps = len(list(warm.every_kernel(ring_of(Params.insecure_tiny()))))
    for number in range(1, steps):
        (tmp_path / str(number)).touch()
    with warm._others(tmp_path, 2, [warm.OWN]) as (other,):
        assert other.wait(timeout=120) == 0
    assert (tmp_path / "0").exists()


def test_one_process_at_a_time_writes_a_functions_kernels(tmp_path: Path) -> None:
    """Each reads the list, gives its own kernel the next free name and writes the list: two at once would use one name."""
    kernel: Any = packing._pack
    assert isinstance(kernel._cache, kept._SharedCache)
    done = threading.Event()

    def write() -> None:
        with kept._locked(tmp_path / "veil.lock"):
            done.set()

    with kept._locked(tmp_path / "veil.lock"):
        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(0.05)
    thread.join(20)
    assert done.is_set()


def test_what_is_compiled_is_noted_for_these_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_own", {str(tmp_path)})
    monkeypatch.setattr(kept, "folders", {str(tmp_path)})
    called: list[object] = []
    monkeypatch.setattr(warm, "_compile_all", lambda parts, progress: called.append(parts))
    warm.warm_up()
    warm.warm_up()
    assert not warm._missing([warm.OWN]) and called == [[warm.OWN]], "once on a machine"
    server_warm.warm_up()
    server_warm.warm_up()
    assert called == [[warm.OWN], [server_warm.OWN]], "each part once"
    (tmp_path / "f.nbi").write_bytes(b"cut")
    assert kept.mend() == ["f.nbi"] and warm._missing([warm.OWN, server_warm.OWN]) == [warm.OWN, server_warm.OWN], "damaged"
    kept.note_all_there(warm.OWN, warm.SOURCES)
    kept.note_all_there(server_warm.OWN, server_warm.SOURCES)
    (source := tmp_path / "row_io.py").touch()
    monkeypatch.setattr(server_warm, "SOURCES", (source,))
    assert warm._missing([warm.OWN, server_warm.OWN]) == [server_warm.OWN], "for these sources"
    monkeypatch.setattr("numba.__version__", "0.0")
    assert warm._missing([warm.OWN]) == [warm.OWN], "and for this Numba"


def test_a_server_compiles_nothing_for_its_connections_after_the_warm_up() -> None:
    for call in server_warm.steps():
        call()
    kernels: tuple[Any, ...] = (row_io.receive, row_io.reply)
    before = [list(kernel.signatures) for kernel in kernels]
    assert all(before)
    Arrivals(3, 100).compile()
    assert [list(kernel.signatures) for kernel in kernels] == before
