"""The tables of the README and the docs are those that the committed records give."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import tables
from veil.bench import files
from veil.bench.record import Record, SignalPoint, SignalSeries

ROOT = Path(__file__).resolve().parents[2]


def marked(name: str, body: str = "old\n") -> str:
    return f"before\n<!-- results: {name} -->\n{body}<!-- end of results -->\nafter\n"


def test_no_table_is_stale() -> None:
    for path in tables.documents():
        text = path.read_text()
        assert tables.rewritten(text) == text, f"{path.name} is stale; run python -m bench tables"


def test_every_table_that_stands_somewhere_is_known() -> None:
    placed = {name for path in tables.documents() for name in re.findall(r"<!-- results: ([\w-]+) -->", path.read_text())}
    assert placed <= set(tables.TABLES)


def test_every_start_has_its_end() -> None:
    for path in tables.documents():
        text = path.read_text()
        assert len(re.findall(r"<!-- results: ", text)) == len(re.findall(r"<!-- end of results -->", text))


def test_a_changed_record_makes_a_table_stale(tiny_record: Record, tmp_path: Path) -> None:
    path = tmp_path / "cpu-gpt2.json"
    files.write(replace(tiny_record, model=replace(tiny_record.model, name="gpt2")), path)
    first = tables.rewritten(marked("cpu"), tmp_path)
    assert first.startswith("before\n<!-- results: cpu -->\n|  | GPT-2 124M |\n") and first.endswith("-->\nafter\n")
    assert tables.rewritten(first, tmp_path) == first
    files.write(replace(tiny_record, model=replace(tiny_record.model, name="gpt2", round_trips=77)), path)
    assert tables.rewritten(first, tmp_path) != first


def test_the_main_table_has_every_ratio(tiny_record: Record, tmp_path: Path) -> None:
    prompts = tuple(replace(prompt, rows=rows) for prompt, rows in zip(tiny_record.prompts, (64, 512), strict=True))
    record = replace(tiny_record, model=replace(tiny_record.model, name="smollm2"), prompts=prompts)
    files.write(record, tmp_path / "cpu-smollm2.json")
    lines = dict(tables.cpu(tmp_path))
    for name, value in (
        ("total / plaintext", record.ratio.plaintext_total),
        ("offline / plaintext", record.ratio.plaintext_offline),
        ("online / plaintext", record.ratio.plaintext_online),
        ("bytes / the same tensors in clear float32", record.ratio.clear_bytes),
    ):
        assert lines[name].strip("*") == f"{value:.2f} ×"
    assert "a row of a 64-row prompt, plaintext" in lines and "a row of a 512-row prompt, plaintext" in lines
    ratios = [cells[1].strip("*") for cells in tables.cpu(tmp_path) if cells[0] == "encrypted / plaintext"]
    assert ratios == [f"{prompt.ratio:.2f} ×" for prompt in prompts]
    (_, row) = tables.token_bytes(tmp_path)
    assert row[0] == "SmolLM2-135M" and row[5] == f"{record.bytes_per_token.total:,.0f}"


def test_a_table_without_its_record_stays_and_is_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    for name in tables.TABLES:
        assert tables.rewritten(marked(name), tmp_path, lambda name, error: told.append(name)) == marked(name)
    assert told == list(tables.TABLES)
    (tmp_path / "signal.json").write_text('{"format": 1}')
    assert tables.rewritten(marked("signal"), tmp_path) == marked("signal")


def test_the_signal_table(tmp_path: Path) -> None:
    point = SignalPoint(
        width=28672, slots=64, rows=64, input_bits=27, result_bits=13,
        measured_db=44.91, predicted_db=45.02, largest_slot_db=46.0, error_ratio=1.0,
    )  # fmt: skip
    series = SignalSeries(commit="c", versions={}, device="cpu", parameters={}, points=(point,))
    files.write(series, tmp_path / "signal.json")
    assert "| 28,672 | 44.9 dB | 45.0 dB | 27 / 13 |" in tables.rewritten(marked("signal"), tmp_path)


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="no table 'nothing'"):
        tables.rewritten(marked("nothing"))


def test_every_committed_record_can_be_read() -> None:
    for path in (ROOT / "bench" / "results").glob("cpu-*.json"):
        assert files.read(path, Record).token_s.plaintext is not None, path.name
