"""Ten short questions with words that a right answer has one of: what `bench/quality.py` asks float and integer layers."""

from __future__ import annotations

ANSWER_TOKENS = 16

QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Name the capital of Spain.", ("madrid",)),
    ("What is 2+3?", ("5", "five")),
    ("What color is the sky?", ("blue",)),
    ("How many days are in a week?", ("7", "seven")),
    ("What is the opposite of hot?", ("cold",)),
    ("Which planet do we live on?", ("earth",)),
    ("What is the largest ocean?", ("pacific",)),
    ("What do bees make?", ("honey",)),
    ("How many legs does a spider have?", ("8", "eight")),
    ("What is frozen water called?", ("ice",)),
)


def is_right(number: int, answer: str) -> bool:
    """Whether an answer to question ``number`` has one of its words."""
    words = "".join(letter if letter.isalnum() else " " for letter in answer.lower()).split()
    return any(word in words for word in QUESTIONS[number][1])
