"""`veil bench` on the tiny model: tables, record and plot; and options that do not fit, refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from veil.bench import files, machine, precision, run
from veil.bench.record import Record, SignalSeries
from veil.cli import app
from veil.params import Params


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def assert_refused(result: Result, words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("veil: ") and words in line


@pytest.fixture
def stored(tiny_record: Record, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    files.write(tiny_record, path)
    return path


def test_a_whole_run(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Params.insecure_tiny()
    monkeypatch.setattr(Params, "default", lambda: tiny)
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 20)
    out, plot = tmp_path / "r.json", tmp_path / "p.svg"
    sizes = ("--prompt-rows", "4,9", "--new-tokens", "2", "--repeats", "1")
    result = invoke("--model", llama_folder, "--plaintext", *sizes, "--json", out, "--plot", plot)
    assert result.exit_code == 0, result.output
    made = files.read(out, Record)
    assert (made.settings.prompt_rows, made.settings.new_tokens, made.settings.repeats) == (4, 2, 1)
    assert made.ratio.plaintext_total is not None and [prompt.rows for prompt in made.prompts] == [4, 9]
    assert "tiny-llama" in result.stdout and "× plaintext" in result.stdout
    assert "veil: encrypted generation" in result.stderr
    assert plot.read_text().startswith("<?xml")


def test_records_are_shown_and_drawn_again(stored: Path, tmp_path: Path) -> None:
    plot = tmp_path / "rows.png"
    result = invoke("--from", stored, "--from", stored, "--figure", "rows", "--plot", plot)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("tiny ·") == 2
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_signal_is_measured_shown_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Params.insecure_tiny()
    monkeypatch.setattr(Params, "default", lambda: tiny)
    out = tmp_path / "signal.json"
    result = invoke("--signal", "--widths", "48,100", "--json", out)
    assert result.exit_code == 0, result.output
    assert "signal to noise of one encrypted layer" in result.stdout and " dB" in result.stdout
    assert [point.width for point in files.read(out, SignalSeries).points] == [48, 100]
    plot = tmp_path / "signal.png"
    assert invoke("--from", out, "--plot", plot).exit_code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert_refused(invoke("--from", out, "--from", out, "--plot", plot), "one series")


def test_widths_of_the_signal_are_those_that_models_have() -> None:
    assert precision.WIDTHS == (512, 2048, 8192, 14336, 28672)


def test_json_to_standard_output_is_nothing_else(tiny_record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure", lambda request, progress: tiny_record)
    result = invoke("--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["token_s"]["total"] == pytest.approx(tiny_record.token_s.total, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "x.pdf"], ".png or .svg"),
        (["--widths", "512,wide"], "give whole numbers from 1 on"),
        (["--widths", "500"], "multiple of 256"),
        (["--widths", "512", "--peer", "concrete-ml"], "leave out --peer"),
        (["--widths", "512", "--fuse-norms", "on"], "leave out --fuse-norms"),
        (["--widths", "512", "--figure", "rows"], "a series has its own figure"),
        (["--figure", "widths"], "a series has its own figure"),
        (["--signal", "--figure", "widths"], "a series has its own figure"),
        (["--signal", "--plaintext"], "--signal measures no time"),
        (["--prompt-rows", "64,0"], "--prompt-rows is '64,0'"),
        (["--from", "x.json", "--json", "y.json"], "leave out --widths, --signal and --json"),
        (["--from", "no-such.json"], "is not a record"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("work began"))
    assert_refused(invoke(*arguments), words)


def test_a_figure_of_another_kind_of_record(stored: Path, tmp_path: Path) -> None:
    result = invoke("--from", stored, "--figure", "widths", "--plot", tmp_path / "x.png")
    assert_refused(result, "does not fit")


def test_the_peer_needs_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path))
    assert_refused(invoke("--model", "gpt2", "--peer", "concrete-ml"), "--install-peer")


def test_an_absent_gpu_is_told_of_first() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert_refused(invoke("--model", "gpt2", "--device", "cuda"), "no CUDA device")
