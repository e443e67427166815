"""A model on several devices: every integer is that of one, whatever the sizes and however many outputs are asked for."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veil.bundle.manifest import Group, Layer, Manifest
from veil.bundle.server_half import ServerModel
from veil.kernels.backend import kernels_for
from veil.kernels.gpus import OnGpu, cuts
from veil.kernels.reference import pack
from veil.params import Params, packed_bytes
from veil.seed import PublicSeed
from veil.server.engine import Engine
from veil.server.gpus import ServerGpu, SpreadEngine, engines, gpu_bytes
from veil.server.local import LocalServer
from veil.server.store import SessionStore
from veil.wire.messages import BatchUpload, Span

PARAMS = Params.insecure_tiny()


def model_of(sizes: list[tuple[int, int, str]]) -> ServerModel:
    draw = np.random.default_rng(3)
    groups = tuple(
        Group((Layer(f"layer{place}", "linear", width, rows, 8, False),), segment, None, 24, 13 + place)
        for place, (width, rows, segment) in enumerate(sizes)
    )
    weights = tuple(draw.integers(-127, 128, (rows, width), dtype=np.int8) for width, rows, _ in sizes)
    return ServerModel(PARAMS, PublicSeed(bytes(32)), Manifest(groups), weights)


MODEL = model_of([(5, 3, "body"), (48, 100, "body"), (17, 33, "body"), (40, 77, "head")])
"""One group is narrower than a cut: some devices have none of it."""


def answers(engine: Engine) -> list[bytes]:
    """Everything that an engine says to fixed uploads and rows: all outputs and first outputs, rows of two batches."""
    draw = np.random.default_rng(4)
    server, data = LocalServer(engine), []
    session = server.open()
    for number in range(2):
        residues = [
            pack(draw.integers(0, prime, (1, PARAMS.N), dtype=np.uint32), PARAMS.prime_bits)[0]
            for _ in range(PARAMS.terms)
            for prime in PARAMS.outer_primes
        ]
        data.append(BatchUpload(number, np.concatenate(residues)))
    server.prepare(session, data, tuple(engine.model.manifest.segments))
    found = []
    for group, info in enumerate(engine.model.manifest.groups):
        for row, slots in enumerate((info.rows, min(info.rows, 9), 1)):
            spans = [Span(0, 2 * row, 2), Span(1, 2 * row, 1)]
            rows = draw.integers(0, 256, (3, packed_bytes(info.width, 24)), dtype=np.uint8)
            reply = engine.kernels.to_numpy(server.evaluate(session, group, spans, rows, slots))
            assert reply.shape == (3, packed_bytes(slots, info.result_bits))
            found.append(reply.tobytes())
    return found


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_several_devices_answer_as_one_does(name: str, count: int) -> None:
    kernels = kernels_for(name)
    assert answers(SpreadEngine.over(MODEL, [kernels] * count)) == answers(Engine.build(MODEL, kernels))


def test_rows_of_several_sessions_in_one_product_are_cut_apart_again() -> None:
    one, several = (Engine.build(MODEL, kernels_for("cpu")), SpreadEngine.over(MODEL, [kernels_for("cpu")] * 2))
    replies = []
    for engine in (one, several):
        draw, claims, server = np.random.default_rng(5), [], LocalServer(engine)
        for _ in range(3):
            session = server.store.find(server.open())
            data = np.concatenate(
                [
                    pack(draw.integers(0, prime, (1, PARAMS.N), dtype=np.uint32), PARAMS.prime_bits)[0]
                    for _ in range(PARAMS.terms)
                    for prime in PARAMS.outer_primes
                ]
            )
            server.prepare(session.name, [BatchUpload(0, data)], ("body",))
            rows = draw.integers(0, 256, (2, packed_bytes(48, 24)), dtype=np.uint8)
            claims.append(server.admission.claim(session, 1, [Span(0, 0, 2)], rows, 100))
        replies.append([engine.kernels.to_numpy(reply).tobytes() for reply in engine.answer(claims)])
    assert replies[0] == replies[1] and len(set(replies[0])) == 3


def test_cuts_are_whole_and_near_equal() -> None:
    for rows in (0, 1, 7, 8, 9, 100, 50257):
        for devices in (1, 2, 3, 8):
            ends = cuts(rows, devices)
            assert ends[0] == 0 and ends[-1] == rows and ends == sorted(ends) and len(ends) == devices + 1
            assert all(end % 8 == 0 or end == rows for end in ends)
            assert max(b - a for a, b in itertools.pairwise(ends)) <= -(-rows // devices) + 8


def test_memory_is_counted_for_every_gpu() -> None:
    whole, cut = Engine.build(MODEL, kernels_for("cpu")), SpreadEngine.over(MODEL, [kernels_for("cpu")] * 3)
    assert cut.batch_bytes(["body"]) >= whole.batch_bytes(["body"])
    shares = cut.hint.prepare(cut.kernels.asarray(np.zeros((1, PARAMS.terms, 2, PARAMS.N), np.uint32)), ("body",))
    held = sum(part.nbytes for part in shares["body"].parts)
    assert held <= cut.batch_bytes(["body"])


def test_a_model_that_fits_is_copied_and_a_larger_one_is_cut() -> None:
    kernels, needed, store = kernels_for("cpu"), gpu_bytes(MODEL, 1 << 20), SessionStore()
    roomy = [ServerGpu(kernels=kernels, free_bytes=needed)] * 2
    copies, said = engines(MODEL, roomy, 1 << 20)
    assert len(copies) == 2 and "2 copies" in said
    chosen = []
    for _ in range(4):
        chosen.append(store.least_used(copies))
        store.open("", chosen[-1])
    assert [copies.index(engine) for engine in chosen] == [0, 1, 0, 1]
    cut, said = engines(MODEL, [ServerGpu(kernels=kernels, free_bytes=needed - 1)] * 2, 1 << 20)
    assert len(cut) == 1 and isinstance(cut[0], SpreadEngine) and "cut by slots over 2" in said


def test_a_gpu_is_chosen_for_each_call() -> None:
    entered: list[str] = []

    class Within:
        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *_: object) -> None:
            entered.append("out")

    kernels: Any = SimpleNamespace(
        name="cuda", asks_cheaply=False, joins_groups=True, batches_at_once=4, zeros=lambda *shape: (list(entered), shape)
    )
    gpu: Any = OnGpu(kernels, Within)
    assert gpu.zeros(2, 3) == (["in"], (2, 3)) and entered == ["in", "out"] and gpu.name == "cuda"
