"""Records survive the way through JSON, and a file that is not one is refused with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veil.bench import files, precision
from veil.bench.load_record import LoadSeries
from veil.bench.record import FORMAT, Record, SignalSeries, Timing, WidthSeries
from veil.params import Params


def test_a_record_comes_back_as_it_was(tiny_record: Record, tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    files.write(tiny_record, path)
    back = files.read(path, Record)
    assert back.model == tiny_record.model and back.settings == tiny_record.settings
    assert back.phases[0].name == tiny_record.phases[0].name
    assert back.token_s.total == pytest.approx(tiny_record.token_s.total, rel=1e-5)
    files.write(back, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()


def test_the_top_level_is_what_programs_read(tiny_record: Record) -> None:
    value = json.loads(files.to_json(tiny_record))
    assert set(value["token_s"]) == {"total", "offline", "online", "plaintext", "peer"}
    plaintext = {"plaintext_total", "plaintext_offline", "plaintext_online"}
    assert set(value["ratio"]) == plaintext | {"peer", "floor", "clear_bytes"}
    assert [prompt["rows"] for prompt in value["prompts"]] == [5, 20]
    assert value["bytes_per_token"]["total"] > 0
    assert value["format"] == FORMAT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.pop("token_s"), "token_s"),
        (lambda value: value.update(format=99), "format 99"),
        (lambda value: value.update(kind="song"), "kind 'song'"),
        (lambda value: value.update(more=1), "unknown field 'more'"),
        (lambda value: value["token_s"].update(total="fast"), "'fast' where float"),
        (lambda value: value["model"].update(shapes=[[1, 2]]), "shorter"),
    ],
)
def test_what_does_not_fit_is_named(tiny_record: Record, tmp_path: Path, change: object, words: str) -> None:
    value = json.loads(files.to_json(tiny_record))
    change(value)  # type: ignore[operator]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"record.json is not a record of 'veil bench'") as caught:
        files.read(path, Record)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "3"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a record"):
        files.read(path, Record)
    with pytest.raises(ValueError, match="is not a record"):
        files.read(tmp_path / "absent.json", Record)


def test_each_kind_says_what_it_is(tiny_record: Record, tmp_path: Path) -> None:
    series = precision.measure("cpu", (48,), lambda stage, done, total: None, Params.insecure_tiny())
    files.write(series, tmp_path / "signal.json")
    assert files.read(tmp_path / "signal.json", SignalSeries).points[0].width == 48
    assert isinstance(files.read_any(tmp_path / "signal.json"), SignalSeries)
    with pytest.raises(ValueError, match="is a SignalSeries, expected a Record"):
        files.read(tmp_path / "signal.json", Record)
    assert set(files.KINDS.values()) == {Record, WidthSeries, SignalSeries, LoadSeries}


def test_timings_are_medians_and_tenths() -> None:
    timing = Timing.of([float(value) for value in range(11)])
    assert (timing.median_s, timing.low_s, timing.high_s, timing.count) == (5.0, 1.0, 9.0, 11)
    alone = Timing.of([2.0])
    assert (alone.median_s, alone.low_s, alone.high_s, alone.count) == (2.0, 2.0, 2.0, 1)
