"""A file of prompts: which lines are prompts, what is said of others, and how prompts of several lengths go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from veil.commands import batch
from veil.commands.batch import Entry
from veil.errors import ModelSourceError


def written(path: Path, *lines: object) -> Path:
    (path / "prompts.jsonl").write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path / "prompts.jsonl"


def user(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}]


def test_lines_are_texts_prompts_or_chats_and_blank_ones_are_none(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, *user("w3")]
    file = written(tmp_path, '"w1"', "", {"prompt": "w2", "id": "b"}, "   ", {"messages": chat, "id": 7}, {"prompt": "w4"})
    assert batch.read(file) == [Entry(user("w1"), 0), Entry(user("w2"), "b"), Entry(chat, 7), Entry(user("w4"), 3)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: .*; a line is"),
        (7, "it is no prompt"),
        ({"prompt": "w1", "max_tokens": 3}, "it is no prompt"),
        ({}, "it is empty, or no text"),
        ({"prompt": " "}, "it is empty, or no text"),
        ({"prompt": 7}, "it is empty, or no text"),
        ({"messages": "w1"}, "it is empty, or no text"),
        ({"messages": [{"role": "user"}]}, "it is empty, or no text"),
        ({"messages": [{"role": 1, "content": "w1"}]}, "it is empty, or no text"),
        ({"messages": [*user("w1"), *user("")]}, "it is empty, or no text"),
    ],
)
def test_another_line_is_named_with_its_number(line: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"prompts.jsonl, line 2: .*{words.removeprefix('line 2: ')}"):
        batch.read(written(tmp_path, '"w1"', line))


def test_a_file_has_some_prompts_and_not_too_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 0 prompts"):
        batch.read(written(tmp_path, ""))
    with pytest.raises(ValueError, match="has 10001 prompts"):
        batch.read(written(tmp_path, *['"w1"'] * 10_001))


def test_shorter_prompts_are_filled_up_on_the_left(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    made = batch.encoded([Entry(user("w1 w2 w3"), 0), Entry(user("w4"), 1)], tiny_tokenizer, raw=True)
    assert made["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    long, short = made["input_ids"].tolist()
    assert tiny_tokenizer.decode(long) == "w1 w2 w3"
    assert short[:2] == [tiny_tokenizer.pad_token_id] * 2 and tiny_tokenizer.decode(short[2:]) == "w4"


def test_chats_go_through_the_template_and_raw_ones_do_not(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [{"role": "system", "content": "w1"}, *user("w2")]
    (templated,) = batch.encoded([Entry(turns, 0)], tiny_tokenizer, raw=False)["input_ids"].tolist()
    (raw,) = batch.encoded([Entry(turns, 0)], tiny_tokenizer, raw=True)["input_ids"].tolist()
    assert tiny_tokenizer.decode(templated) == "<user> w1 </s> <user> w2 </s> <reply>"
    assert tiny_tokenizer.decode(raw) == "w1 w2"


def test_a_template_that_fails_is_one_line(tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "{{ raise_exception('only\nfacts') }}")
    with pytest.raises(ModelSourceError, match=r"^the chat template fails \(.*\); use --raw$"):
        batch.encoded([Entry(user("w1"), 0)], tiny_tokenizer, raw=False)
