"""The command line with a GPU: both halves there, or the server's alone; the answers are the processor's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remote.processes import veil as run

pytestmark = pytest.mark.gpu

PROMPT = "w23 w6 w7"
OPTIONS = ("--raw", "--max-new-tokens", "4", "--json")


def veil(*arguments: str | Path) -> Any:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def test_a_gpu_answers_as_the_processor_does(llama_folder: Path, start: Any, tmp_path: Path) -> None:
    on_gpu = veil("generate", PROMPT, "--model", llama_folder, "--device", "cuda", *OPTIONS)
    assert "on the GPU for weights and hint of" in on_gpu.stderr
    text = json.loads(on_gpu.stdout)["text"]
    assert json.loads(veil("generate", PROMPT, "--model", llama_folder, "--device", "cpu", *OPTIONS).stdout)["text"] == text
    veil("compile", llama_folder, tmp_path / "bundle")
    server = start("serve", tmp_path / "bundle" / "server", "--device", "cuda", "--port", "0")
    options = ("--server", f"127.0.0.1:{server.port}", "--bundle", tmp_path / "bundle" / "client")
    assert json.loads(veil("generate", PROMPT, *options, *OPTIONS).stdout)["text"] == text
    assert json.loads(veil("generate", PROMPT, "--bundle", tmp_path / "bundle", *OPTIONS).stdout)["text"] == text
