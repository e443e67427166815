"""`veil report` on a tiny model: tables, one JSON object, a page, and errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from typer.testing import CliRunner

from veil.cli import app
from veil.params import Params

TEXT = " ".join(f"w{(7 * index * index + index) % 59}" for index in range(40))


ROWS = 24
"""Tokens that are encrypted, each a row of every layer."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_json_and_page(llama_folder: Path, text: Path, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    result = invoke(llama_folder, "--text", text, "--tokens", 24, "--sample", ROWS, "--html", html, "--fused", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [mode["name"] for mode in report["modes"]] == ["float", "disable", "simulate", "8-bit activations"]
    assert [mode["tokens"] for mode in report["modes"]] == [23] * 4
    assert [mode["name"] for mode in report["sample"]][3] == "execute"
    assert report["sample"][0]["tokens"] == ROWS - 1
    assert report["security_bits"] > 128
    assert len(report["layers"]) == 2 * 7 + 1
    samples = ROWS * 16 / 1.2  # of the narrowest layers, whose outputs' scales are not all alike
    assert all(abs(layer["ratio"] - 1) < 5 * (2 / samples) ** 0.5 for layer in report["layers"])
    widths, params = [found["width"] for found in report["widths"]], Params.default()
    assert widths == [512, 1024, 2048, 4096, 8192, 14336, 28672]
    costs = report["costs"]
    assert (costs["batch_bytes"], costs["batch_rows"]) == (params.batch_bytes, 64)
    assert costs["up_offline_bytes"] == params.batch_bytes / 64
    inputs, slots = 2 * (32 + 32 + 32 + 48) + 32, 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32) + 64
    assert 2 * inputs < costs["up_online_bytes"] < 3 * inputs, "17 to 24 bits an input"
    assert slots < costs["down_online_bytes"] < 2 * slots, "9 to 15 bits a result"
    assert min(costs["prepare_s"], costs["online_s"], costs["client_s"]) > 0
    assert report["by_bits"] == []
    plain, fused = report["fusion"]
    assert (plain["round_trips"], fused["round_trips"]) == (4 * 2 + 1, 2 * 2 + 2)
    assert plain["up_online_bytes"] == costs["up_online_bytes"]
    assert plain["down_online_bytes"] == costs["down_online_bytes"]
    assert fused["remote_weights"] > plain["remote_weights"] == report["costs"]["remote_weights"]
    assert 0 < fused["fidelity"]["kl"] < 10 * plain["fidelity"]["kl"]
    assert "Fused norms" in html.read_text()
    assert "tiny-llama under veil" in html.read_text()


def test_tables(llama_folder: Path, text: Path) -> None:
    result = invoke(llama_folder, "--text", text, "--tokens", 12, "--sample", 0, "--bits", "--fused")
    assert result.exit_code == 0, result.output
    for shown in (
        "perplexity",
        "simulate",
        "8-bit activations",
        "bits of the weights",
        "by width",
        "fused norms",
        "security",
    ):
        assert shown in result.output


def test_a_model_that_predicts_no_token_is_refused(tmp_path: Path, text: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    result = invoke(tmp_path / "bert", "--text", text)
    assert result.exit_code == 2
    assert "BertModel, which does not predict a text's next token" in result.output


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"\xff\xfe\x00", [], "cannot be read as text"),
        (b"w1", [], "fewer than two tokens"),
        (b"w1 w2 w3", ["--html", "no/such/place.html"], "no folder"),
    ],
)
def test_errors_are_one_line(llama_folder: Path, tmp_path: Path, content: bytes, options: list[str], message: str) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    result = invoke(llama_folder, "--text", tmp_path / "text.txt", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
