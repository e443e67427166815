"""Fetching a client half from a server that need not be honest."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from veil.bundle.terms import Terms
from veil.client.connection import Address
from veil.commands import pull
from veil.errors import BundleError

WEAK = Terms(no_cryptography=True)


@pytest.mark.parametrize(
    "name", ["tokenizer/x.py", "config.PY", "x.pyc", "tokenizer/vocab.pkl", "tensors.bin", "x.so", "Makefile"]
)
@pytest.mark.parametrize("cached", [True, False])
def test_a_file_that_python_might_run_is_refused_before_anything_is_fetched(
    name: str, cached: bool, llama: Any, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "cache"))
    fetched: list[Any] = []
    monkeypatch.setattr(pull, "fetch_file", lambda *arguments, **_: fetched.append(arguments))
    half = Path(shutil.copytree(llama.path, tmp_path / "bundle"))
    (half / "client" / name).write_bytes(b"x")
    with serve(dataclasses.replace(llama, path=half), offer=True) as server:
        address = Address(target=f"127.0.0.1:{server.port}")
        with pytest.raises(
            BundleError, match=f"the server offers the file '{name}', which does not belong in a client half"
        ):
            if cached:
                pull.cached(address, terms=WEAK, name=None)
            else:
                pull.run(address, tmp_path / "half", terms=WEAK, name=None, as_json=False)
    assert not fetched
    assert not (tmp_path / "half").exists() and not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("header", ["[" * 60000, "[]", "", "7", '{"params": ' + "9" * 5000 + "}"])
def test_a_description_that_is_no_header_is_one_error(header: str, llama: Any, serve: Any, tmp_path: Path) -> None:
    with serve(llama, offer=True) as server:
        server.service.described.bundles[0].header = header
        with pytest.raises(BundleError, match="the server describes a bundle with something that is not"):
            pull.run(Address(target=f"127.0.0.1:{server.port}"), tmp_path / "half", terms=WEAK, name=None, as_json=False)
        with pytest.raises(BundleError, match="the server describes a bundle with something that is not"):
            llama.connect(server.port)


def test_tables_without_a_digest_are_refused(llama: Any, serve: Any, tmp_path: Path) -> None:
    half = Path(shutil.copytree(llama.path, tmp_path / "bundle")) / "client"
    (half / "tables.safetensors").unlink()
    fields = json.loads((half / "bundle.json").read_text())
    fields["sha256"].pop("tables.safetensors")
    (half / "bundle.json").write_text(json.dumps(fields))
    with serve(llama, offer=True) as server, pytest.raises(BundleError, match="the server does not offer it"):
        dataclasses.replace(llama, path=half.parent).connect(server.port)


def test_what_a_half_is_made_of_is_taken(llama: Any) -> None:
    files = [
        path.relative_to(llama.path / "client").as_posix() for path in (llama.path / "client").rglob("*") if path.is_file()
    ]
    others = ["tokenizer/chat_template.jinja", "tokenizer/additional_chat_templates/rag.jinja", "tokenizer/tokenizer.model"]
    for name in [*files, *others, "tokenizer/merges.txt", "tokenizer/bpe.codes"]:
        assert pull.safe_path(name) == Path(name)
