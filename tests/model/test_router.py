"""One evaluation serves all layers of a group that read the same tensor, and no layer that reads another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from veil.errors import NotCompiled, NotFiniteActivation
from veil.kernels import cpu
from veil.model.manifest import Group, Layer, Manifest
from veil.model.router import GroupConstants, Router, clear_service, simulated_service
from veil.params import Params

TINY = Params.insecure_tiny()


def layer(name: str, width: int, rows: int, kind: Any = "linear") -> Layer:
    return Layer(name, kind, width, rows, 8, True)


MANIFEST = Manifest(
    (
        Group((layer("q", 6, 3), layer("k", 6, 2)), "body"),
        Group((layer("e", 5, 4, "embedding"),), "body"),
    )
)


class Desk:
    """A router over clear integer weights that writes down each evaluation."""

    def __init__(self, fixed_norm: float | None = None) -> None:
        draw = np.random.default_rng(1)
        self.weights = tuple(draw.integers(-127, 128, (group.rows, group.width), dtype=np.int8) for group in MANIFEST.groups)
        bounds = (float(np.linalg.norm(self.weights[0].astype(float), axis=1).max()), 127.0)
        self.constants = tuple(
            GroupConstants(
                draw.random(group.rows).astype(np.float32),
                draw.standard_normal(group.rows).astype(np.float32),
                bound,
                fixed_norm,
            )
            for group, bound in zip(MANIFEST.groups, bounds, strict=True)
        )
        self.router = Router(TINY, MANIFEST, self.constants, cpu)
        self.seen: list[tuple[int, np.ndarray, np.ndarray]] = []
        clear = clear_service(self.weights, cpu)

        def service(group: int, x: np.ndarray, tau: np.ndarray) -> np.ndarray:
            self.seen.append((group, x.copy(), tau.copy()))
            return clear(group, x, tau)

        self.router.service = service

    def expected(self, group: int, part: slice, x: torch.Tensor) -> torch.Tensor:
        matrix = self.weights[group][part] * self.constants[group].scale[part, None]
        return x.double() @ torch.from_numpy(matrix.T).double() + torch.from_numpy(self.constants[group].bias[part])


@pytest.fixture
def desk() -> Desk:
    return Desk()


Q, K = slice(0, 3), slice(3, 5)


def test_a_group_is_evaluated_once_for_one_tensor(desk: Desk) -> None:
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    q, k = desk.router.linear("q", x), desk.router.linear("k", x)
    assert len(desk.seen) == 1
    assert (q.shape, k.shape) == ((2, 3, 3), (2, 3, 2))
    torch.testing.assert_close(q.double(), desk.expected(0, Q, x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(k.double(), desk.expected(0, K, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("change", ["copy", "view", "in place"])
def test_another_tensor_is_another_evaluation(desk: Desk, change: str, inference: bool) -> None:
    """An equal copy, a view, and above all the same tensor with new values in it, under ``inference_mode`` as well."""
    with torch.inference_mode(inference):
        x = torch.ones(1, 6)
        desk.router.linear("q", x)
        if change == "in place":
            x.mul_(-2)
        other = x.clone() if change == "copy" else x[:] if change == "view" else x
        k = desk.router.linear("k", other)
    assert len(desk.seen) == 2
    torch.testing.assert_close(k.double(), desk.expected(0, K, other), atol=1e-4, rtol=1e-4)


def test_a_layer_that_is_called_twice_is_evaluated_twice(desk: Desk) -> None:
    x = torch.ones(1, 6)
    for _ in range(2):
        desk.router.linear("q", x)
    assert len(desk.seen) == 2
    desk.router.linear("k", x)
    assert len(desk.seen) == 2
    desk.router.linear("k", x)
    assert len(desk.seen) == 3


def test_results_that_nobody_claimed_are_forgotten(desk: Desk) -> None:
    x = torch.ones(1, 6)
    desk.router.linear("q", x)
    desk.router.begin_forward()
    desk.router.linear("k", x)
    assert len(desk.seen) == 2


def test_an_embedding_is_the_product_with_a_one_hot_row(desk: Desk) -> None:
    ids = torch.tensor([[0, 4], [2, 2]])
    out = desk.router.embedding("e", ids)
    assert out.shape == (2, 2, 4)
    torch.testing.assert_close(out.double(), desk.expected(1, slice(0, 4), torch.eye(5)[ids]), atol=1e-4, rtol=1e-4)
    for bad in (5, -1):
        with pytest.raises(IndexError, match="outside the embedding's 5 rows"):
            desk.router.embedding("e", torch.tensor([bad]))


@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6), (6,)])
def test_rows_of_any_shape(desk: Desk, shape: tuple[int, ...]) -> None:
    """No rows at all (an expert without a token), and a single row without a batch."""
    out = desk.router.linear("q", torch.ones(shape))
    assert out.shape == (*shape[:-1], 3)


def test_no_ids(desk: Desk) -> None:
    assert desk.router.embedding("e", torch.zeros(1, 0, dtype=torch.long)).shape == (1, 0, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types(desk: Desk, dtype: torch.dtype) -> None:
    x = torch.ones(1, 6, dtype=dtype)
    torch.testing.assert_close(desk.router.linear("q", x).double(), desk.expected(0, Q, x), atol=1e-4, rtol=1e-4)


def test_a_row_of_zeros_gives_the_bias(desk: Desk) -> None:
    out = desk.router.linear("q", torch.zeros(2, 6))
    torch.testing.assert_close(out, torch.from_numpy(desk.constants[0].bias[Q]).expand(2, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_activation_that_is_not_finite_stops_here(desk: Desk, bad: float) -> None:
    x = torch.ones(3, 6)
    x[1, 2] = bad
    with pytest.raises(NotFiniteActivation, match=r"NaN or infinity reached q\+k"):
        desk.router.linear("q", x)
    assert desk.seen == []


def test_without_a_mode_nothing_runs(desk: Desk) -> None:
    desk.router.service = None
    with pytest.raises(NotCompiled, match="set_fhe_mode"):
        desk.router.linear("q", torch.ones(1, 6))


def test_an_observer_sees_every_evaluation(desk: Desk) -> None:
    seen: list[Any] = []
    desk.router.observer = lambda group, x, tau, values: seen.append((group, x.shape, tau.shape, values.shape))
    desk.router.linear("q", torch.ones(2, 6))
    assert seen == [(0, (2, 6), (2,), (2, 5))]


def test_a_fixed_scale_is_one_for_all_rows_and_clips_longer_ones() -> None:
    desk = Desk(fixed_norm=2.0)
    x = torch.zeros(4, 6)
    x[0, 0], x[1, 0], x[2, 0] = 1.0, 2.0, 6.0
    out = desk.router.linear("q", x)
    ((_, _, tau),) = desk.seen
    assert tau[0] == tau[1] == tau[3]
    assert tau[2] == pytest.approx(tau[0] / 3)
    clipped = x.clone()
    clipped[2, 0] = 2.0
    torch.testing.assert_close(out.double(), desk.expected(0, Q, clipped), atol=1e-4, rtol=1e-4)


def test_simulated_noise_has_the_predicted_variance(desk: Desk) -> None:
    """8,000 results of 2,000 equal rows: mean square over prediction within 10 % of 1."""
    from veil import noise
    from veil.model.quantize import row_norms, target_norm

    service = simulated_service(TINY, desk.weights, cpu, np.random.default_rng(2))
    x = np.ones((2000, 6), dtype=np.float32)
    tau = cpu.scales(x, target_norm(TINY, desk.constants[0].bound))
    error = service(0, x, tau).astype(np.int64) - clear_service(desk.weights, cpu)(0, x, tau)
    ratio = error**2 / noise.result(TINY, row_norms(desk.weights[0]))
    assert ratio.mean() == pytest.approx(1.0, rel=0.1)
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(error.size)
