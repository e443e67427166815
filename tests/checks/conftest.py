"""A group of random weights whose answers are simulated: exact products, the predicted noise, and what a cheat does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil import noise
from veil.bundle.constants import row_norms, target_norm
from veil.bundle.manifest import Group, Layer, Manifest
from veil.checks.rows import AnswerChecks
from veil.checks.vectors import GroupVectors, make_vectors
from veil.compile.compiler import with_bits
from veil.errors import WrongAnswer
from veil.kernels.backend import kernels_for
from veil.kernels.cpu.backend import CpuKernels
from veil.kernels.interface import Rows, Scaling
from veil.kernels.reference import top_bits
from veil.params import Params
from veil.random import SecretRng

WIDTH, SLOTS = 576, 768
PARAMS = Params.default()


def random_weights(draw: np.random.Generator, slots: int = SLOTS) -> Any:
    values = draw.standard_normal((slots, WIDTH))
    return np.rint(127 * values / np.abs(values).max(axis=1, keepdims=True)).astype(np.int8)


class Simulated:
    """One group, its server's answers and its client's checks."""

    def __init__(self, seed: int = 1, slots: int = SLOTS) -> None:
        self.draw = np.random.default_rng(seed)
        self._secrets = SecretRng.insecure_for_tests(seed)
        self.weights = random_weights(self.draw, slots)
        largest = float(row_norms(self.weights).max())
        self.group = with_bits(Group((Layer("a", "linear", WIDTH, slots, 8, False),), "body"), largest, PARAMS)
        kernels = kernels_for("cpu")
        assert isinstance(kernels, CpuKernels)
        self.kernels = kernels
        self._made: list[AnswerChecks] = []
        ones = np.ones(slots, dtype=np.float32)
        self.scaling = Scaling(None, ones, 0 * ones, target_norm(PARAMS, largest), 0.0)

    def vectors(self) -> GroupVectors:
        return make_vectors(self.group, self.weights, self._secrets)

    def checks(self, vectors: GroupVectors | None = None) -> AnswerChecks:
        return AnswerChecks([vectors or self.vectors()], Manifest((self.group,)), PARAMS, self.kernels, "the weights")

    def several(self, count: int) -> list[AnswerChecks]:
        """Checks with fresh vectors each, made once."""
        while len(self._made) < count:
            self._made.append(self.checks())
        return self._made[:count]

    def rows(self, count: int) -> Any:
        return self.draw.standard_normal((count, WIDTH)).astype(np.float32)

    def message(self, x: Any) -> Any:
        norms = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        return np.rint(x.astype(np.float64) * (self.scaling.target / norms)).astype(np.int64)

    def results(self, x: Any, weights: Any = None) -> Any:
        """What an honest server's answers decrypt to, words [R, slots], for these rows; or one with other weights."""
        weights = self.weights if weights is None else weights
        error = np.rint(self.draw.normal(0, np.sqrt(noise.input_error(PARAMS, self.group.input_bits)), x.shape))
        exact = self.kernels.matmul(weights, (self.message(x) + error.astype(np.int64)).astype(np.uint32))
        own = np.rint(self.draw.normal(0, np.sqrt(noise.shares(PARAMS)), exact.shape)).astype(np.int64)
        return exact + own.astype(np.uint32)

    def packed(self, results: Any) -> Any:
        return self.kernels.pack(top_bits(results, self.group.result_bits), self.group.result_bits)

    @property
    def rms(self) -> float:
        """Of a slot of middling norm."""
        return float(np.median(row_norms(self.weights))) * self.scaling.target / np.sqrt(WIDTH)

    def check(self, checks: AnswerChecks, x: Any, results: Any) -> None:
        """A pass of these rows; `WrongAnswer`."""
        scales = np.ones(len(x))
        checks.stop_if_caught()
        checks.decrypt(0, self.sent(x), self.packed(results), self.scaling, self.shares(len(x)), 0, self.group.rows, scales)
        checks.end_pass()

    def sent(self, x: Any) -> Any:
        """What the check reads of rows."""
        nothing = [Rows(np.zeros((len(x), WIDTH), dtype=np.uint32), 0, len(x))]
        return self.kernels.encrypt_checked(x, self.scaling, nothing, 0, self.group.input_bits)[2]

    def shares(self, rows: int) -> list[Rows]:
        return [Rows(np.zeros((rows, self.group.rows), dtype=np.uint32), 0, rows)]

    def residuals(self, checks: AnswerChecks, x: Any, results: Any) -> Any:
        """Residuals in deviations, and each row's largest."""
        signs = checks.vectors[0][self.group.rows]
        bits = self.group.result_bits
        data, shares, scales = self.packed(results), self.shares(len(x)), np.ones(len(x))
        residuals = np.empty((len(x), signs.count))
        self.kernels.decrypt_checked(data, self.sent(x), self.scaling, shares, 0, bits, scales, signs, residuals)
        return residuals, np.abs(residuals).max(axis=1)

    def rows_until_caught(self, cheat: Any, most: int) -> int:
        """Rows, one a pass, until the checks stop; ``most + 1`` where they do not."""
        checks = self.checks()
        x = self.rows(most)
        results = cheat(x)
        for row in range(most):
            try:
                self.check(checks, x[row : row + 1], results[row : row + 1])
            except WrongAnswer:
                return row + 1
        return most + 1


@pytest.fixture(scope="session")
def simulated() -> Simulated:
    return Simulated()


@pytest.fixture
def other_shape() -> Any:
    """Makes a `Simulated` of other slots."""
    return lambda slots, seed=3: Simulated(seed, slots)
