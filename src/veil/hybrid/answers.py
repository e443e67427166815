"""Whether a hybrid model's answers are checked, and the secret vectors for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.given import text_given
from veil.hybrid.facts import CompiledFacts
from veil.random import SecretRng

if TYPE_CHECKING:
    from veil.checks.files import Vectors


class CheckedAnswers(CompiledFacts):
    """The part of `HybridFHEModel` that has answers checked."""

    @property
    def checked_against(self) -> str | None:
        """The model whose weights every answer is checked against; None where answers are unchecked."""
        return None if self._calls.sides is None else self.sides.checked_against(self._calls.mode)

    def check_answers(self, against: str) -> None:
        """Check mode ``execute`` from its first use on, against the weights that are here, called ``against``.

        Raises `RuntimeError` where that mode was used already, `NotCompiled` without weights.
        """
        if self.sides.local is not None:
            raise RuntimeError("mode 'execute' was used already; check_answers comes before it")
        self.sides.vectors = self.sign_vectors(text_given("against", against, "the name of a model"))

    def sign_vectors(self, against: str) -> Vectors:
        """Fresh secret vectors of the weights that are here, called ``against``; `NotCompiled` without weights."""
        from veil.checks.files import Vectors
        from veil.checks.vectors import make_vectors

        weights, rng = self.sides.weights_here(), SecretRng()
        groups = zip(self.manifest.groups, weights, strict=True)
        return Vectors(against, [make_vectors(group, own, rng) for group, own in groups])
