"""Training examples from a file: chats, question and answer, or plain text; as token ids and labels."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch

from veil.errors import one_line

if TYPE_CHECKING:
    from veil.typing import Tokenizer

IGNORED = -100
"""The label of a token that no loss is taken of."""

_PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Example:
    """Token ids, and which of them are to be learned: a label each, `IGNORED` or the id."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Data:
    """Examples to train on, and others to measure by."""

    training: tuple[Example, ...]
    validation: tuple[Example, ...]


def read_examples(path: Path, tokenizer: Tokenizer, tokens: int) -> tuple[Example, ...]:
    """The examples of a file, of at most ``tokens`` tokens each.

    In a ``.jsonl`` file each line is an object: ``messages`` (a chat of role and content), ``text``, or a pair ``prompt``
    and ``completion``, ``question`` and ``answer``, ``instruction`` and ``output``. Of chats and pairs the answers are
    learned. Any other file is a text, learned whole in pieces of ``tokens``. Raises `ValueError` for what is neither.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES >> 20} MiB; split it")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; convert it") from None
    if path.suffix.lower() != ".jsonl":
        return _pieces(_ids(tokenizer, text), tokens)
    examples: list[Example] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            examples += _of_line(line, f"{path}, line {number}", tokenizer, tokens)
    if not any(label != IGNORED for example in examples for label in example.labels):
        raise ValueError(f"{path} has nothing to learn in it; give it a line of messages, question and answer, or text")
    return tuple(examples)


def divided(examples: Sequence[Example], validation: float, seed: int) -> Data:
    """A share of the examples, chosen by ``seed``, apart for validation: at least one of several, if it is not 0."""
    if not 0 <= validation < 1:
        raise ValueError(f"a validation share of {validation} is not from 0 to below 1")
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)  # noqa: S311
    count = min(len(order) - 1, max(1, round(validation * len(order)))) if validation else 0
    apart = set(order[:count])
    return Data(
        tuple(example for i, example in enumerate(examples) if i not in apart),
        tuple(example for i, example in enumerate(examples) if i in apart),
    )


def batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Batches for ever, the examples of each round in an order that the seed and the round decide."""
    number = 0
    held: list[Example] = []
    while True:
        order = list(range(len(examples)))
        random.Random(f"{seed}/{number}").shuffle(order)  # noqa: S311
        number += 1
        for i in order:
            held.append(examples[i])
            if len(held) == size:
                yield held
                held = []


def tensors(batch: Sequence[Example], padding: int) -> dict[str, torch.Tensor]:
    """A batch as ``input_ids``, ``attention_mask`` and ``labels`` [examples, longest] int64, padded on the right."""
    longest = max(len(example.ids) for example in batch)

    def padded(rows: Sequence[Sequence[int]], filling: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])

    return {
        "input_ids": padded([example.ids for example in batch], padding),
        "attention_mask": padded([[1] * len(example.ids) for example in batch], 0),
        "labels": padded([example.labels for example in batch], IGNORED),
    }


def _of_line(line: str, place: str, tokenizer: Tokenizer, tokens: int) -> Sequence[Example]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{place} is not a JSON object")
    if isinstance(value.get("text"), str):
        return _pieces([*_ids(tokenizer, value["text"]), *_end(tokenizer)], tokens)
    pair = next((names for names in _PAIRS if all(isinstance(value.get(name), str) for name in names)), None)
    if pair is not None:
        asked = value[pair[0]] + (f"\n\n{value['input']}" if isinstance(value.get("input"), str) and value["input"] else "")
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": value[pair[1]]}]
    elif _is_chat(value.get("messages")):
        turns = value["messages"]
    else:
        names = ", ".join(" and ".join(names) for names in _PAIRS)
        raise ValueError(f"{place} has none of messages, text, {names}")
    example = _chat(turns, place, tokenizer)
    return [Example(example.ids[:tokens], example.labels[:tokens])]


def _is_chat(value: object) -> TypeGuard[list[dict[str, str]]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and all(isinstance(turn.get(n), str) for n in ("role", "content")) for turn in value)
    )


def _chat(turns: list[dict[str, str]], place: str, tokenizer: Tokenizer) -> Example:
    """A chat by the tokenizer's template, its assistant's turns to be learned; by lines without a template."""
    ids: list[int] = []
    labels: list[int] = []
    for count, turn in enumerate(turns, 1):
        own = turn["role"] == "assistant"
        start = _template(tokenizer, turns[: count - 1], own, place)
        whole = _template(tokenizer, turns[:count], False, place)
        if own and whole[: len(start)] != start:  # a template that writes answers otherwise than it asks for them
            whole = [*start, *_words(tokenizer, turn["content"]), *_end(tokenizer)]
        if start[: len(ids)] != ids:
            raise ValueError(f"{place}: the chat template changes what came before; give the example as text")
        ids, labels = whole, [*labels, *[IGNORED] * (len(start) - len(labels)), *(whole[len(start) :] if own else [])]
        labels += [IGNORED] * (len(ids) - len(labels))
    return Example(tuple(ids), tuple(labels))


def _template(tokenizer: Tokenizer, turns: list[dict[str, str]], begun: bool, place: str) -> list[int]:
    if not turns and not begun:
        return []
    if not tokenizer.chat_template:
        lines = "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns)
        return _ids(tokenizer, lines + ("assistant:" if begun else ""))
    try:
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=begun, return_dict=True)
    except Exception as error:  # a template is the model's, a program of its own
        raise ValueError(f"{place}: the chat template fails ({one_line(error)})") from None
    return [int(token) for token in encoded["input_ids"]]


def _pieces(ids: Sequence[int], tokens: int) -> tuple[Example, ...]:
    """A text cut into pieces of ``tokens``; a rest of one token, which nothing predicts, is left out."""
    pieces = [tuple(ids[first : first + tokens]) for first in range(0, len(ids), tokens)]
    return tuple(Example(piece, piece) for piece in pieces if len(piece) > 1)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text)["input_ids"]]


def _words(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _end(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
