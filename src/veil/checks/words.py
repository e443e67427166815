"""What a person is told about the checking of answers."""

from __future__ import annotations


def answers_words(mode: str, against: str | None) -> str:
    """For a table or beside an answer: checked against which model, or not."""
    if against is not None:
        return f"checked against {against}"
    return "unchecked: 'veil check' makes that possible" if mode == "remote" else "computed in this process"
