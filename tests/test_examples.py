"""The examples run as they stand (the one that needs SmolLM2 is slow)."""

from __future__ import annotations

import json
import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_every_example_is_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path


def test_examples_import_nothing_deeper_than_the_package() -> None:
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]:
        assert not re.findall(r"(?:from|import) veil\.\w+", path.read_text(encoding="utf-8")), path


def test_gpt2(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "gpt2.py"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["disable", "simulate", "execute"]
    assert lines[0].split(maxsplit=1)[1] == lines[2].split(maxsplit=1)[1]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_notebook_on_a_tiny_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.setenv("VEIL_TINY", "1")
    cells = json.loads((EXAMPLES / "finetune.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            assert not cell["outputs"], "what it prints is not committed"
    assert names["losses"][-1] < names["losses"][0]
    assert "adapter_model.safetensors" in capsys.readouterr().out


def test_the_notebooks_run_in_a_kernel(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in one kernel, whose names are forgotten between two; what they print is not committed."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("VEIL_MODEL", str(llama_folder))
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    whole, lengths = nbformat.v4.new_notebook(), {}
    for name in ("private_chat", "your_own_model", "server_and_client"):
        cells = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells), name
        whole.cells += [*cells, nbformat.v4.new_code_cell("%reset -f")]
        lengths[name] = len(whole.cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nbclient.NotebookClient(
            whole, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        ).execute()
    said = [
        "".join(out.get("text", "") for cell in whole.cells[:end] for out in cell.get("outputs", []))
        for end in lengths.values()
    ]
    assert "bytes, the first of them" in said[0]
    assert re.search(r"execute +perplexity .* top-1 \d+%", said[1].replace("\n", " "))
    assert "round trips; answers are unchecked" in said[2]


@pytest.mark.slow
def test_chat(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "chat.py"))
    assert "blue" in capsys.readouterr().out.lower()
