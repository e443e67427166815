"""The documentation's code runs, and its site is built without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import veil

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    ("README.md", "from transformers import AutoModelForCausalLM, AutoTokenizer"): "tests/test_snippet.py runs it",
    ("concrete-ml.md", "import torch"): "tests/hybrid/test_concrete.py runs it",
    ("gateway.md", "from openai import OpenAI"): "needs a gateway on its usual port; tests/gateway/test_openai.py does this",
    (
        "training.md",
        "hybrid = HybridFHEModel(model, linear_modules(model))",
    ): "a sketch; tests/training/test_trainers.py does this",
}
"""Blocks of Python that do not run here, by page and first line, and why."""


def blocks(page: Path) -> list[str]:
    """A page's blocks of Python that run here."""
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [code for code in found if (page.name, code.splitlines()[0]) not in ELSEWHERE]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Iterator[tuple[Path, str]]:
    """A folder with a compiled tiny Llama as ``bundle``, and the address of a server for it."""
    folder = tmp_path_factory.mktemp("docs")
    source = veil.load_model(str(llama_folder))
    assert source.tokenizer is not None
    hybrid = veil.HybridFHEModel(source.model, veil.linear_modules(source.model))
    hybrid.compile_model(source.tokenizer("w1 w2 w3", return_tensors="pt").input_ids)
    hybrid.save(folder / "bundle", source.tokenizer)
    with veil.Server.open(folder / "bundle") as server:
        yield folder, server.address


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(
    page: Path,
    place: tuple[Path, str],
    llama_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its blocks one after the other, with a tiny model in SmolLM2's place and a server on a free port.

    ``hybrid``, a model in mode execute, and ``inputs`` are there before the first.
    """
    folder, address = place
    if page.name == "README.md":
        monkeypatch.chdir(folder)
    else:
        monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "cache"))
    given = veil.HybridFHEModel.load(folder / "bundle")
    given.set_fhe_mode("execute")
    names: dict[str, Any] = {"veil": veil, "hybrid": given, "inputs": given.tokenizer("w1 w2", return_tensors="pt")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for code in blocks(page):
            small = code.replace('"smollm2"', repr(str(llama_folder))).replace("127.0.0.1:8471", address)
            exec(compile(re.sub(r"max_new_tokens=\d+", "max_new_tokens=4", small), page.name, "exec"), names)
    given.close()
    names["hybrid"].close()


def test_what_runs_elsewhere_is_still_there() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    assert [key for key in ELSEWHERE if f"```python\n{key[1]}\n" not in pages[key[0]]] == []


def test_every_page_is_on_the_site() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[2:] if f": {page.name}" not in listed] == []
    assert [path.stem for path in (ROOT / "examples").glob("*.ipynb") if f"notebooks/{path.stem}.md" not in listed] == []


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    listed = set(re.findall(r"^::: veil\.(\w+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M))
    errors = {name for name, value in vars(veil.errors).items() if isinstance(value, type)}
    assert set(veil.__all__) - errors - {"__version__"} == listed - {"errors"}


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert "compile_model" in api and "ServerUnreachable" in api
    found = re.findall(r'<(?:script|img)[^>]* src="(http[^"]*)"|<link[^>]* rel="stylesheet"[^>]* href="(http[^"]*)"', api)
    assert not found, "a page asks another host"
