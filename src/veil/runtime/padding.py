"""Steps that lengths are rounded up to, so that a server sees the step and not the length."""

from __future__ import annotations

from dataclasses import dataclass

from veil.given import count_given, flag_given


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Prompts take rows, and answers passes, in multiples of ``step``, or in powers of two from ``step`` on (``powers``).

    With ``whole_answers`` every answer takes as many passes as it may have tokens at most. `ValueError` for a step below 1.
    """

    step: int = 64
    powers: bool = False
    whole_answers: bool = False

    def __post_init__(self) -> None:
        if count_given("the step of a padding", self.step) < 1:
            raise ValueError(f"the step of a padding is {self.step}, it has to be 1 at least")
        flag_given("powers", self.powers)
        flag_given("whole_answers", self.whole_answers)

    @classmethod
    def parse(cls, text: str) -> Padding | None:
        """What ``--pad`` says: ``off``, a step, or ``powers``; with ``,whole`` behind it for whole answers."""
        first, comma, rest = text.partition(",")
        if text == "off":
            return None
        if (first == "powers" or (first.isascii() and first.isdecimal() and 0 < int(first) <= 1 << 16)) and (
            not comma or rest == "whole"
        ):
            step = 16 if first == "powers" else int(first)
            return cls(step=step, powers=first == "powers", whole_answers=bool(comma))
        raise ValueError(f"--pad is off, a number of rows, or powers, each with ,whole behind it or not; it is {text!r}")

    def rows(self, count: int) -> int:
        """The step of a number of rows; none stays none."""
        if count < 1:
            return 0
        if self.powers:
            return max(self.step, 1 << (count - 1).bit_length())
        return -(-count // self.step) * self.step

    def tokens(self, count: int, most: int | None) -> int:
        """The step of a number of tokens, where an answer has ``most`` of them."""
        wanted = self.rows(count)
        if most is None:
            return wanted
        return max(count, most if self.whole_answers else min(wanted, most))
