"""One evaluation serves all layers of a group that read the same tensor, and no layer that reads another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from runtime.odd_rows import ODD
from veil import noise
from veil.bundle.constants import GroupConstants, row_norms, scalings_of, target_norm
from veil.bundle.manifest import Group, Layer, Manifest
from veil.errors import NotCompiled, NotFiniteActivation
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Kernels
from veil.params import Params
from veil.runtime.evaluators import ClearLayers, SimulatedLayers
from veil.runtime.router import Router

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

    def __init__(self, kernels: Kernels, fixed_norm: float | None = None) -> None:
        draw = np.random.default_rng(1)
        self.weights = tuple(draw.integers(-127, 128, (group.rows, group.width), dtype=np.int8) for group in MANIFEST.groups)
        bounds = (float(row_norms(self.weights[0]).max()), 127.0)
        self.constants = tuple(
            GroupConstants(
                draw.random(group.rows).astype(np.float32),
                draw.standard_normal(group.rows).astype(np.float32),
                bound,
                fixed_norm,
            )
            for group, bound in zip(MANIFEST.groups, bounds, strict=True)
        )
        self.kernels, self.place = kernels, "cuda" if kernels.name == "cuda" else "cpu"
        self.scalings = scalings_of(self.constants, TINY, kernels)
        self.loaded = kernels.load_weights(self.weights)
        self.clear = ClearLayers(MANIFEST, self.loaded, self.scalings, kernels)
        self.router = Router(MANIFEST, self.constants, kernels)
        self.router.evaluator = self
        self.seen: list[tuple[int, int]] = []

    def evaluate(self, group: int, x: Any, slots: int | None = None) -> Any:
        outputs = self.clear.evaluate(group, x)
        self.seen.append((group, len(x)))
        return outputs

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """As a layer asks."""
        row = self.router.row(name, x)
        return self.router.linear(name, x) if row is None else row

    def ones(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype, device=self.place)

    def expected(self, group: int, part: slice, x: torch.Tensor) -> torch.Tensor:
        matrix = self.weights[group][part] * self.constants[group].scale[part, None]
        made = x.double().cpu() @ torch.from_numpy(matrix.T).double() + torch.from_numpy(self.constants[group].bias[part])
        return made.to(self.place)


@pytest.fixture(params=["reference", "cpu", "cuda"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return kernels_for(request.param)


@pytest.fixture
def desk(kernels: Kernels) -> Desk:
    return Desk(kernels)


Q, K = slice(0, 3), slice(3, 5)


def test_a_group_is_evaluated_once_for_one_tensor(desk: Desk) -> None:
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)).to(desk.place)
    q, k = desk.linear("q", x), desk.linear("k", x)
    assert desk.seen == [(0, 6)]
    assert (q.shape, k.shape) == ((2, 3, 3), (2, 3, 2))
    torch.testing.assert_close(q.double(), desk.expected(0, Q, x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(k.double(), desk.expected(0, K, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("change", ["copy", "view", "in place"])
def test_another_tensor_is_another_evaluation(desk: Desk, change: str, inference: bool) -> None:
    """An equal copy, a view, and above all the same tensor with new values in it, under ``inference_mode`` as well."""
    with torch.inference_mode(inference):
        x = desk.ones(1, 6)
        desk.linear("q", x)
        if change == "in place":
            x.mul_(-2)
        other = x.clone() if change == "copy" else x[:] if change == "view" else x
        k = desk.linear("k", other)
    assert len(desk.seen) == 2
    torch.testing.assert_close(k.double(), desk.expected(0, K, other), atol=1e-4, rtol=1e-4)


def test_a_layer_that_is_called_twice_is_evaluated_twice(desk: Desk) -> None:
    x = desk.ones(1, 6)
    for _ in range(2):
        desk.linear("q", x)
    assert len(desk.seen) == 2
    desk.linear("k", x)
    assert len(desk.seen) == 2
    desk.linear("k", x)
    assert len(desk.seen) == 3


def test_results_that_nobody_claimed_are_forgotten(desk: Desk) -> None:
    x = desk.ones(1, 6)
    desk.linear("q", x)
    desk.router.begin_forward()
    desk.linear("k", x)
    assert len(desk.seen) == 2


def test_writing_to_one_layer_s_output_leaves_the_other_s(desk: Desk) -> None:
    x = desk.ones(1, 6)
    desk.linear("q", x).zero_()
    torch.testing.assert_close(desk.linear("k", x).double(), desk.expected(0, K, x), atol=1e-4, rtol=1e-4)


def test_one_row_is_answered_as_rows_are(desk: Desk) -> None:
    x = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(1)).to(desk.place)
    row = desk.router.row("q", x)
    assert (row is not None) == (desk.kernels.name == "cpu")
    k = desk.linear("k", x)
    assert len(desk.seen) == 1
    desk.router.begin_forward()
    assert torch.equal(desk.router.linear("k", x), k)
    if row is not None:
        assert torch.equal(desk.router.linear("q", x), row) and row.shape == (1, 1, 3)


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_plain_row_is_left_to_the_checks(kind: str) -> None:
    desk = Desk(kernels_for("cpu"))
    assert desk.router.row("q", ODD[kind]) is None
    assert not desk.seen


def test_a_row_of_functorch_is_left_to_the_checks() -> None:
    desk, found = Desk(kernels_for("cpu")), []

    def mapped(x: torch.Tensor) -> torch.Tensor:
        found.append(desk.router.row("q", x))
        return x

    torch.func.vmap(mapped)(torch.ones(2, 1, 6))
    assert found == [None] and not desk.seen


def test_an_embedding_is_the_product_with_a_one_hot_row(desk: Desk) -> None:
    ids = torch.tensor([[0, 4], [2, 2]], device=desk.place)
    out = desk.router.embedding("e", ids)
    assert out.shape == (2, 2, 4)
    torch.testing.assert_close(out.double(), desk.expected(1, slice(0, 4), torch.eye(5)[ids.cpu()]), atol=1e-4, rtol=1e-4)
    for bad in (5, -1):
        with pytest.raises(IndexError, match="outside the embedding's 5 rows"):
            desk.router.embedding("e", torch.tensor([bad], device=desk.place))


@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6), (6,)])
def test_rows_of_any_shape(desk: Desk, shape: tuple[int, ...]) -> None:
    """No rows at all (an expert without a token), and a single row without a batch."""
    out = desk.linear("q", desk.ones(*shape))
    assert out.shape == (*shape[:-1], 3)


def test_no_ids(desk: Desk) -> None:
    ids = torch.zeros(1, 0, dtype=torch.long, device=desk.place)
    assert desk.router.embedding("e", ids).shape == (1, 0, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types(desk: Desk, dtype: torch.dtype) -> None:
    x = desk.ones(1, 6, dtype=dtype)
    torch.testing.assert_close(desk.linear("q", x).double(), desk.expected(0, Q, x), atol=1e-4, rtol=1e-4)


def test_a_row_of_zeros_gives_the_bias(desk: Desk) -> None:
    out = desk.linear("q", 0 * desk.ones(2, 6))
    torch.testing.assert_close(out.cpu(), torch.from_numpy(desk.constants[0].bias[Q]).expand(2, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_activation_that_is_not_finite_stops_here(desk: Desk, bad: float) -> None:
    x = desk.ones(3, 6)
    x[1, 2] = bad
    with pytest.raises(NotFiniteActivation, match=r"NaN or infinity reached q\+k"):
        desk.linear("q", x)
    assert desk.seen == []


def test_without_a_mode_nothing_runs(desk: Desk) -> None:
    desk.router.evaluator = None
    with pytest.raises(NotCompiled, match="set_fhe_mode"):
        desk.linear("q", desk.ones(1, 6))


def test_an_observer_sees_every_evaluation(desk: Desk) -> None:
    seen: list[Any] = []
    desk.router.observer = lambda group, x, outputs: seen.append((group, x, outputs))
    x = desk.ones(2, 6)
    q = desk.linear("q", x)
    ((group, inputs, outputs),) = seen
    assert group == 0
    assert torch.equal(inputs, x)
    assert outputs.shape == (2, 5)
    assert torch.equal(outputs[:, Q], q)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_cancel_check_ends_a_pass_before_anything_is_sent(desk: Desk, rows: int) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    desk.router.cancel_check = stop
    with pytest.raises(KeyboardInterrupt):
        desk.linear("q", desk.ones(rows, 6))
    assert desk.seen == []


def test_a_fixed_scale_is_one_for_all_rows_and_clips_longer_ones(kernels: Kernels) -> None:
    desk = Desk(kernels, fixed_norm=2.0)
    x = 0 * desk.ones(4, 6)
    x[0, 0], x[1, 0], x[2, 0] = 1.0, 2.0, 6.0
    out = desk.linear("q", x)
    clipped = x.clone()
    clipped[2, 0] = 2.0
    torch.testing.assert_close(out.double(), desk.expected(0, Q, clipped), atol=1e-4, rtol=1e-4)


def test_simulated_noise_has_the_predicted_variance(desk: Desk) -> None:
    """10,000 results of 2,000 equal rows: mean square over prediction within five deviations of 1."""
    noisy = SimulatedLayers(MANIFEST, desk.loaded, desk.scalings, desk.kernels, TINY, np.random.default_rng(2))
    x = desk.kernels.from_torch(desk.ones(2000, 6))
    got, exact = (desk.kernels.to_numpy(part.evaluate(0, x)).astype(np.float64) for part in (noisy, desk.clear))
    own, group = desk.constants[0], MANIFEST.groups[0]
    tau = target_norm(TINY, own.bound) / np.sqrt(6)
    error = (got - exact) * tau / own.scale
    bits = noise.WireBits(group.input_bits, group.result_bits)
    ratio = error**2 / noise.result(TINY, row_norms(desk.weights[0]), bits)
    assert ratio.mean() == pytest.approx(1.0, rel=5 * np.sqrt(2 / ratio.size))
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(error.size)
