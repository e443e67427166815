"""`veil generate` with a schema, with texts that end the answer, and with prompts from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from veil.cli import app
from veil.commands.structure import Until, cut_at

SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, new_byte_model: Any, new_byte_tokenizer: Any) -> Path:
    made = tmp_path_factory.mktemp("models") / "bytes"
    new_byte_model().save_pretrained(made)
    new_byte_tokenizer().save_pretrained(made)
    return made


def generate(folder: Path, *arguments: Any, mode: str = "torch") -> Any:
    fixed = ["generate", "--model", folder, "--mode", mode, "--max-new-tokens", "24"]
    return CliRunner().invoke(app, [str(argument) for argument in [*fixed, *arguments]])


def test_a_schema_is_followed(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    done = generate(folder, "hi", "--json-schema", file, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(json.loads(done.stdout)["text"])["a"] in (1, 2)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"hi"\n{"prompt": "a longer one", "id": "b"}\n\n{"messages": [{"role": "user", "content": "x"}]}\n')
    done = generate(folder, "--batch", prompts, "--json-schema", file)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["id"] for line in lines] == [0, "b", 2]
    assert all(json.loads(line["text"])["a"] in (1, 2) for line in lines)
    file.write_text('{"type": 7}')
    refused = generate(folder, "hi", "--json-schema", file)
    assert refused.exit_code == 2 and "schema" in refused.stderr.splitlines()[-1]


def test_a_batch_answers_as_each_alone(folder: Path, tmp_path: Path) -> None:
    words = ["hi", "something longer", "x y"]
    alone = [json.loads(generate(folder, one, "--json").stdout)["text"] for one in words]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, words)))
    together = [json.loads(line)["text"] for line in generate(folder, "--batch", file).stdout.splitlines()]
    assert together == alone


def test_a_stop_ends_the_answer(folder: Path) -> None:
    whole = json.loads(generate(folder, "hi", "--json").stdout)["text"]
    stop = whole[5:7]
    cut = json.loads(generate(folder, "hi", "--json", "--stop", stop).stdout)
    assert cut["text"] == whole[: whole.find(stop)] and cut["new_tokens"] < 24
    shown = generate(folder, "hi", "--stop", stop).stdout
    assert shown.endswith("\n") and stop not in shown


def test_a_stop_is_never_shown_in_pieces() -> None:
    for step in (1, 2, 50):
        shown: list[str] = []
        until = Until(["END", "ENOUGH"], shown.append)
        text = "an EN and an END of it"
        for start in range(0, len(text), step):
            until(text[start : start + step])
        assert "".join(shown) == "an EN and an \n" and until.stopped
    shown = []
    until = Until(["END"], shown.append)
    until("an EN")
    assert "".join(shown) == "an "
    until.finish()
    assert "".join(shown) == "an EN"
    assert cut_at("a b c", ["c", "b"]) == "a "


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--batch"),
        (["hi", "--batch", "x"], "--batch"),
        (["--batch", "nothing.jsonl"], "check the path"),
        (["hi", "--json-schema", "nothing.json"], "check the path"),
        (["hi", "--stop", ""], "at least one character"),
    ],
)
def test_options_that_do_not_fit(folder: Path, arguments: list[str], words: str) -> None:
    done = generate(folder, *arguments)
    assert done.exit_code == 2 and words in done.stderr.splitlines()[-1] and done.stdout == ""


@pytest.mark.parametrize("line", ["{", "5", '{"promt": "a"}', '{"prompt": " "}', '{"messages": [{"role": "user"}]}', ""])
def test_lines_that_are_no_prompts(folder: Path, tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line)
    done = generate(folder, "--batch", file)
    assert done.exit_code == 2 and str(file) in done.stderr.replace("\n", "") and done.stdout == ""
