"""Several prompts from a file, the rows of all of them together: one JSON object a line, in and out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from veil.errors import ModelSourceError, one_line

AT_ONCE = 16
"""Prompts that go together."""

_MOST = 10_000


@dataclass(frozen=True)
class Entry:
    """One line of the file: turns of a chat, and whatever names it."""

    turns: list[dict[str, str]]
    id: object


def read(path: Path) -> list[Entry]:
    """A file with one object a line: ``prompt`` or ``messages``, and ``id`` if wanted; or a text. `ValueError`."""
    found: list[Entry] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_entry(json.loads(line), len(found)))
        except ValueError as error:
            raise ValueError(
                f'{path}, line {number}: {error}; a line is {{"prompt": "..."}}, {{"messages": [...]}} or a text in quotes'
            ) from None
    if not 0 < len(found) <= _MOST:
        raise ValueError(f"{path} has {len(found)} prompts; give between 1 and {_MOST:,}")
    return found


def _entry(given: object, place: int) -> Entry:
    if isinstance(given, str):
        given = {"prompt": given}
    if not isinstance(given, dict) or not set(given) <= {"prompt", "messages", "id"}:
        raise ValueError("it is no prompt")
    turns = given.get("messages") or [{"role": "user", "content": given.get("prompt")}]
    plain = isinstance(turns, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not plain or not all(turn["content"].strip() for turn in turns):
        raise ValueError("it is empty, or no text")
    return Entry(turns, given.get("id", place))


def encoded(entries: list[Entry], tokenizer: PreTrainedTokenizerBase, raw: bool) -> dict[str, torch.Tensor]:
    """Ids and mask [prompts, tokens] of prompts, filled up on the left."""
    ids = []
    for entry in entries:
        if raw or not tokenizer.chat_template:
            ids.append(tokenizer("\n".join(turn["content"] for turn in entry.turns))["input_ids"])
            continue
        try:
            made = tokenizer.apply_chat_template(entry.turns, add_generation_prompt=True, return_dict=True)
        except Exception as error:  # a template is the model's, a program of its own
            raise ModelSourceError(f"the chat template fails ({one_line(error)}); use --raw") from None
        ids.append(made["input_ids"])
    width = max(map(len, ids))
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return {
        "input_ids": torch.tensor([[fill] * (width - len(row)) + list(row) for row in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]),
    }
