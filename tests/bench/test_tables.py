"""The tables of the README and the docs are those that the committed records give."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from veil.bench import record
from veil.bench.record import Record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_tables", ROOT / "bench" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_tables"] = module
    spec.loader.exec_module(module)
    return module


def test_no_table_is_stale(tables: ModuleType) -> None:
    for path in tables.documents():
        text = path.read_text()
        assert tables.rewritten(text) == text, f"{path.name} is stale; run python bench/tables.py"


def test_every_table_stands_somewhere(tables: ModuleType) -> None:
    placed = {name for path in tables.documents() for name in re.findall(r"<!-- results: ([\w-]+) -->", path.read_text())}
    assert placed == set(tables.TABLES)


def test_every_start_has_its_end(tables: ModuleType) -> None:
    for path in tables.documents():
        text = path.read_text()
        assert len(re.findall(r"<!-- results: ", text)) == len(re.findall(r"<!-- end of results -->", text))


def test_a_changed_record_makes_a_table_stale(tables: ModuleType, tiny_record: Record, tmp_path: Path) -> None:
    from dataclasses import replace

    path = tmp_path / "cpu-gpt2.json"
    record.write(replace(tiny_record, model=replace(tiny_record.model, name="gpt2")), path)
    text = "before\n<!-- results: cpu -->\nold\n<!-- end of results -->\nafter\n"
    first = tables.rewritten(text, tmp_path)
    assert first.startswith("before\n<!-- results: cpu -->\n|  | GPT-2 124M |\n") and first.endswith("-->\nafter\n")
    assert tables.rewritten(first, tmp_path) == first
    record.write(
        replace(tiny_record, model=replace(tiny_record.model, name="gpt2", round_trips=77)), path
    )  # fmt: skip
    assert tables.rewritten(first, tmp_path) != first


def test_an_unknown_table_is_an_error(tables: ModuleType) -> None:
    with pytest.raises(ValueError, match="no table 'nothing'"):
        tables.rewritten("<!-- results: nothing -->\n<!-- end of results -->")


def test_every_committed_record_can_be_read() -> None:
    for path in (ROOT / "bench" / "results").glob("cpu-*.json"):
        found = record.read(path, Record)
        assert found.token_s.plaintext is not None, path.name
