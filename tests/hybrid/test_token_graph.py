"""One-row passes that are recorded once and replayed: the same text, each row used once, nothing recorded under a secret.

A callable that runs the recorded step again stands in for a CUDA graph, and NumPy's kernels for a GPU's.
"""

from __future__ import annotations

import copy
import gc
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, StaticCache

from veil.errors import NotFiniteActivation, StreamChanged, WrongAnswer
from veil.hybrid import model as hybrid_module
from veil.hybrid import sides, token_graph
from veil.hybrid.model import HybridFHEModel
from veil.kernels.reference_kernels import ReferenceKernels
from veil.params import Params
from veil.runtime.modules import select_modules
from veil.runtime.residual import ResidualStream
from veil.server.store import SessionStore

TINY = Params.insecure_tiny(signal_db=60.0)
REMOTE = ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc", "lm_head"]
PROMPT = torch.tensor([[5, 9, 11]])
SETTINGS: dict[str, Any] = {"do_sample": False, "attention_mask": torch.ones_like(PROMPT)}


class Buffer(np.ndarray[Any, Any]):
    """An array with what the recorded pass asks of a tensor."""

    def copy_(self, other: Any) -> None:
        self[...] = other

    def zero_(self) -> None:
        self[...] = 0


class GpuKernels(ReferenceKernels):
    """NumPy's kernels under a GPU's name: asking whether a row is finite waits for the end of the pass."""

    name = "cuda"
    asks_cheaply = False

    def zeros(self, *shape: int) -> Any:
        return super().zeros(*shape).view(Buffer)


class Gpu:
    """A model in mode ``execute`` whose passes are recorded by the stand-in; what it recorded and which rows were spent."""

    def __init__(self, model: Any, remote: list[str], fuse_norms: str) -> None:
        self.hybrid = HybridFHEModel(model, remote)
        self.hybrid.compile_model(PROMPT, params=TINY, device="cuda", fuse_norms=fuse_norms)
        self.recorded = self.replayed = 0
        self.spent: list[tuple[int, int, int]] = []
        self.broken = False
        self.on_replay: Callable[[], object] = lambda: None

    @property
    def graph(self) -> Any:
        assert self.hybrid.sides.graph is not None
        return self.hybrid.sides.graph

    def capture(self, step: Callable[[], None], pool: Any = None, *, warm: bool = True) -> Callable[[], None]:
        assert not warm, "a step that runs before it is recorded moves the cache on"
        router: Any = self.hybrid.sides.router
        row = router.evaluator
        self.recorded += 1
        if self.broken:
            raise RuntimeError("no graph holds this")
        kept = inspect.getclosurevars(step).nonlocals["kept"].values()
        (cache,) = (value for value in kept if isinstance(value, StaticCache))
        state = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values, layer.cumulative_length)]
        session = self.hybrid.sides.local
        if session is not None and session.checks is not None:
            state += [torch.from_numpy(own) for own in (session.checks.running.sums, session.checks.running.rows)]
        before = [tensor.clone() for tensor in state]
        step()  # while a graph is recorded Python runs and nothing is computed: here that is taken back
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)

        def replay() -> None:
            before, router.evaluator = router.evaluator, row
            self.on_replay()
            try:
                step()
            finally:
                router.evaluator = before
            if session is not None and session.checks is not None:
                session.checks.forget_row()  # a replay runs no Python that would know of it
            self.replayed += 1

        return replay

    def generate(self, count: int = 5, *, static: bool = True, **options: Any) -> list[int]:
        cache = {"cache_implementation": "static"} if static else {}
        model: Any = self.hybrid.model
        output = model.generate(PROMPT, max_new_tokens=count, **SETTINGS, **cache, **options)
        return [int(token) for token in output[0, 3:]]


@contextmanager
def on_gpu(
    model: Any, monkeypatch: pytest.MonkeyPatch, remote: list[str] = REMOTE, fuse_norms: str = "off"
) -> Iterator[Gpu]:
    kernels = GpuKernels()
    monkeypatch.setattr(hybrid_module, "kernels_for", lambda device: kernels)
    monkeypatch.setattr(sides, "_is_on_gpu", lambda model: True)
    made = Gpu(model, remote, fuse_norms)
    graphs = ModuleType("veil.kernels.cuda.graphs")
    graphs.capture = made.capture  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "veil.kernels.cuda.graphs", graphs)
    claim = SessionStore.claim

    def noted(store: SessionStore, session: Any, spans: Any, group: int, segment: str, data: Any) -> Any:
        made.spent += [(group, span.batch, span.first + offset) for span in spans for offset in range(span.count)]
        return claim(store, session, spans, group, segment, data)

    monkeypatch.setattr(SessionStore, "claim", noted)
    made.hybrid.set_fhe_mode("execute")
    yield made
    made.hybrid.close()


@pytest.fixture
def gpu(new_model: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    with on_gpu(new_model("gpt2"), monkeypatch) as made:
        yield made


def clear(gpu: Gpu, count: int = 5) -> list[int]:
    gpu.hybrid.set_fhe_mode("disable")
    tokens = gpu.generate(count)
    gpu.hybrid.set_fhe_mode("execute")
    return tokens


def test_a_replayed_generation_is_the_same_text_and_each_row_is_used_once(gpu: Gpu) -> None:
    """The prompt and the first token run launch by launch, the second is recorded; 3 + 4 rows in all."""
    expected = clear(gpu)
    assert gpu.generate() == expected
    assert (gpu.recorded, gpu.replayed) == (1, 3)
    assert len(set(gpu.spent)) == len(gpu.spent) == 7 + 5 + 5, "of the second group only a prompt's last row matters"
    assert gpu.hybrid.stats.rows == 7
    gpu.hybrid.stats.reset()
    assert gpu.generate(static=False) == expected
    assert (gpu.recorded, gpu.replayed) == (1, 3), "a cache that grows is run launch by launch"
    assert len(set(gpu.spent)) == len(gpu.spent) == 2 * (7 + 5 + 5)


def test_a_replayed_pass_counts_like_any_other(gpu: Gpu) -> None:
    measured = []
    for static in (True, False):
        gpu.hybrid.stats.reset()
        gpu.generate(static=static)
        stats = gpu.hybrid.stats
        measured.append((stats.rows, stats.trips, stats.bytes_up_online, stats.bytes_down_online))
    assert measured[0] == measured[1]
    assert gpu.replayed == 3


def test_a_recording_spends_no_row_and_the_last_row_is_forgotten_at_the_end(gpu: Gpu) -> None:
    gpu.generate(2)
    assert (gpu.recorded, len(gpu.spent)) == (0, 4 + 2 + 2)
    gpu.generate(3)
    assert (gpu.recorded, len(gpu.spent)) == (1, 4 + 2 + 2 + 5 + 3 + 3)
    row = gpu.graph._row
    assert row._pads.any()
    assert all(part.any() for part in (*row._mu.values(), *row._h.values()))
    gpu.hybrid.close()
    assert not any(part.any() for part in (row._pads, *row._mu.values(), *row._h.values()))


def test_another_cache_is_recorded_anew(gpu: Gpu) -> None:
    expected = clear(gpu)
    for _ in range(2):
        assert gpu.generate() == expected
    assert gpu.recorded == 2
    assert gpu.replayed == 6
    assert len(set(gpu.spent)) == len(gpu.spent)


def test_what_a_graph_cannot_hold_runs_launch_by_launch_and_is_not_tried_again(
    gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    expected = clear(gpu)
    gpu.broken = True
    assert gpu.generate() == expected
    assert gpu.generate() == expected
    assert (gpu.recorded, gpu.replayed) == (2, 0)
    (told,) = [own for own in caplog.records if own.name == "veil" and own.levelname == "WARNING"]
    assert told.getMessage().startswith("a token takes several times as long: ")
    router: Any = gpu.hybrid.sides.router
    assert router.evaluator is gpu.hybrid.sides.local
    gpu.broken = False
    assert gpu.generate() == expected
    assert (gpu.recorded, gpu.replayed) == (3, 3), "another cache is another pass"


def test_groups_that_are_not_level_take_their_rows_apart(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that one group has used is no row for a whole pass; what was recorded waits until they are level again."""
    expected = clear(gpu)
    gpu.generate(4)
    replayed = gpu.replayed
    session: Any = gpu.hybrid.sides.local
    begin = session.begin_forward

    def uneven(training: bool = False) -> None:
        begin()
        session.evaluate(0, np.ones((1, 32), dtype=np.float32))

    monkeypatch.setattr(session, "begin_forward", uneven)
    assert gpu.generate() == expected
    assert gpu.replayed == replayed
    assert len(set(gpu.spent)) == len(gpu.spent)
    monkeypatch.undo()


def test_not_a_number_in_a_replayed_pass_is_told_of_at_its_end(gpu: Gpu) -> None:
    expected = clear(gpu)
    assert gpu.generate() == expected
    model: Any = gpu.hybrid.model
    wpe = model.transformer.wpe.weight
    kept = wpe.detach().clone()
    with torch.no_grad():
        wpe[PROMPT.shape[1] + 3] = torch.nan  # where the last pass is
    before = gpu.replayed
    with pytest.raises(NotFiniteActivation, match=r"NaN or infinity reached transformer\.h\.0\.attn\.c_attn"):
        gpu.generate()
    assert gpu.replayed > before
    with torch.no_grad():
        wpe.copy_(kept)
    assert gpu.generate() == expected


def checked_gpu(gpu: Gpu) -> Any:
    """The model with its answers checked; what checks them."""
    gpu.hybrid.set_fhe_mode("disable")
    gpu.hybrid.close()
    gpu.hybrid.check_answers("the weights here")
    gpu.hybrid.set_fhe_mode("execute")
    gpu.generate(1)
    session = gpu.hybrid.sides.local
    assert session is not None
    return session.checks


def test_answers_of_a_replayed_pass_are_checked(gpu: Gpu) -> None:
    expected = clear(gpu)
    checks = checked_gpu(gpu)
    before = checks.running.rows.copy()
    assert gpu.generate() == expected
    assert gpu.replayed == 3
    assert (checks.running.rows - before).tolist() == [5.0] * len(before), "the prompt's rows are one, and four more follow"


def test_a_wrong_answer_in_a_replayed_pass_is_caught_at_its_end(gpu: Gpu) -> None:
    checks = checked_gpu(gpu)
    gpu.generate()
    replayed = gpu.replayed
    engine, cheated = gpu.hybrid.sides.engine, []
    assert engine is not None
    answer = engine.answer

    def cheat(claims: Any, **options: Any) -> Any:
        replies = answer(claims, **options)
        if gpu.replayed > replayed and claims[0].group == 1:
            cheated.append(claims)
            replies[0] = replies[0] ^ np.uint8(0x80)
        return replies

    engine.answer = cheat  # type: ignore[method-assign]
    with pytest.raises(WrongAnswer, match=r"transformer\.h\.1\.mlp\.c_fc are not those of the weights here: off by"):
        gpu.generate()
    assert len(cheated) == 1, "it was caught in the pass itself"
    sent = len(gpu.spent)
    with pytest.raises(WrongAnswer):
        gpu.generate()
    assert len(gpu.spent) == sent, "nothing more is sent"
    assert checks.found is not None


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_stream_that_is_changed_in_a_replayed_pass_is_told_of_at_its_end(
    name: str, new_model: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fused norms a token is one graph too: nothing in it asks the device whether the stream was left alone."""
    model, push = new_model(name), torch.zeros(1)
    attention = model.transformer.h[0].attn if name == "gpt2" else model.model.layers[0].self_attn
    attention.register_forward_hook(lambda module, args, result: (result[0] + push, *result[1:]))
    remote = select_modules(model, "linear")
    with on_gpu(model, monkeypatch, remote, "on") as gpu:
        fused = [group.fusion for group in gpu.hybrid.manifest.groups if group.fusion]
        expected = clear(gpu)
        assert gpu.generate() == expected
        assert (gpu.recorded, gpu.replayed) == (1, 3)
        recorded = gpu.graph._recorded
        assert recorded is not None
        assert recorded.fusions == fused
        asked: list[Any] = []
        monkeypatch.setattr(ResidualStream, "ask", noting(ResidualStream.ask, asked))
        gpu.generate()
        assert [len(own) for own in asked] == [len(fused)] * 5, "once a pass"
        push.fill_(1.0)
        with pytest.raises(StreamChanged, match=f"on its way to {fused[0].after}; compile the model with fuse_norms='off'"):
            gpu.generate()
        push.zero_()
        replayed = gpu.replayed
        monkeypatch.setattr(gpu, "on_replay", lambda: push.fill_(1.0))
        with pytest.raises(StreamChanged, match=f"on its way to {fused[0].after}"):
            gpu.generate()
        assert gpu.replayed == replayed + 1


def noting(ask: Callable[[ResidualStream], None], asked: list[Any]) -> Callable[[ResidualStream], None]:
    """`ResidualStream.ask`, after what it will ask was noted."""

    def noted(stream: ResidualStream) -> None:
        asked.append(list(stream.unasked))
        ask(stream)

    return noted


def test_a_pass_of_several_rows_or_a_group_twice_cannot_be_recorded(gpu: Gpu) -> None:
    row = gpu.graph._row
    x = np.ones((2, 32), dtype=np.float32)
    with pytest.raises(ValueError, match="one row"):
        row.evaluate(0, x)
    row.evaluate(0, x[:1])
    with pytest.raises(ValueError, match="each group once"):
        row.evaluate(0, x[:1])


@pytest.fixture
def fixed_cache(tiny_gpt2: Any) -> StaticCache:
    cache = StaticCache(config=tiny_gpt2.config, max_cache_len=8)
    for layer in cache.layers:
        layer.update(torch.zeros(1, 4, 3, 8), torch.zeros(1, 4, 3, 8))
    return cache


def test_which_passes_are_alike(fixed_cache: StaticCache) -> None:
    one = {"input_ids": torch.tensor([[7]]), "past_key_values": fixed_cache, "use_cache": True, "labels": None}
    signature = token_graph._signature(one)
    assert signature is not None
    assert token_graph._signature(one | {"input_ids": torch.tensor([[8]])}) == signature
    for change in (
        {"use_cache": False},
        {"attention_mask": torch.ones(1, 8)},
        {"input_ids": torch.tensor([[7]], dtype=torch.int32)},
    ):
        other = token_graph._signature(one | change)
        assert other is not None
        assert other != signature


def test_which_passes_no_graph_can_hold(fixed_cache: StaticCache) -> None:
    one: dict[str, Any] = {"input_ids": torch.tensor([[7]]), "past_key_values": fixed_cache}
    assert token_graph._signature(one) is not None
    for change in (
        {"input_ids": None},
        {"input_ids": torch.tensor([[7, 8]])},
        {"past_key_values": None},
        {"past_key_values": DynamicCache()},
        {"other_cache": fixed_cache},
        {"something": object()},
    ):
        assert token_graph._signature(one | change) is None, change


def test_an_output_is_the_caller_s_own() -> None:
    held: dict[str, Any] = {"logits": torch.zeros(2), "parts": (torch.ones(1), [torch.ones(1)]), "name": "x"}
    own: Any = token_graph._own(held)
    held["logits"] += 5
    held["parts"][1][0] += 5
    assert own["logits"].tolist() == [0, 0]
    assert own["parts"][1][0].tolist() == [1]
    assert isinstance(own["parts"], tuple)
    assert own["name"] == "x"


def test_a_pass_is_not_like_one_whose_cache_is_gone_and_had_its_identity(
    fixed_cache: StaticCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_graph, "id", lambda cache: 7, raising=False)
    assert StaticCache.__eq__ is object.__eq__, "references to caches are equal where the caches are one"
    gone: dict[str, Any] = {"input_ids": torch.tensor([[7]]), "past_key_values": copy.deepcopy(fixed_cache)}
    signature = token_graph._signature(gone)
    assert signature is not None
    assert token_graph._signature(gone) == signature
    other: dict[str, Any] = {**gone, "past_key_values": fixed_cache}
    assert token_graph._signature(other) != signature
    cache = weakref.ref(gone.pop("past_key_values"))
    gc.collect()
    assert cache() is None, "a signature keeps no cache"
    assert token_graph._signature(other) != signature
