"""A full disk, a quota, a limit of file size: an error that names the place, one line of it for a user, and nothing left."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors import SafetensorError

from veil import HybridFHEModel, linear_modules
from veil.commands import kept
from veil.commands.terminal import one_line_errors
from veil.disk import writing
from veil.params import Params


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """No file of this process may be larger meanwhile, as on a disk with so much room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def hybrid(new_model: Callable[[str], Any]) -> HybridFHEModel:
    model = new_model("llama")
    made = HybridFHEModel(model, linear_modules(model))
    made.compile_model(torch.arange(1, 9)[None], params=Params.insecure_tiny())
    made.set_fhe_mode("execute")
    return made


@pytest.mark.parametrize("room", [100, 4_000, 12_000])
def test_a_bundle_that_does_not_fit_is_an_error_that_names_the_place(
    hybrid: HybridFHEModel, tmp_path: Path, room: int
) -> None:
    """The configuration, the client's tensors and the server's weights are written by different libraries."""
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught, largest_file(room):
        hybrid.save(tmp_path / "bundle")
    assert caught.value.errno == errno.EFBIG and str(tmp_path / "bundle") in str(caught.value.filename)
    assert list((tmp_path / "bundle").iterdir()) == []
    hybrid.save(tmp_path / "bundle")


def test_a_cache_without_room_keeps_nothing_and_the_model_is_there(
    hybrid: HybridFHEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "cache"))
    with largest_file(4_000):
        found, origin = kept.kept_model("0" * 64, lambda: (hybrid, None, "here"), "cpu", lambda *_: None)
    assert (found, origin) == (hybrid, "here")
    assert list((tmp_path / "cache" / "compiled").iterdir()) == []


@pytest.mark.parametrize("chosen", ["lots", "-1", "nan", "inf"])
def test_a_cache_limit_that_is_none_is_told_of_before_the_work(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv("VEIL_CACHE_LIMIT_GB", chosen)
    with pytest.raises(ValueError, match=f"VEIL_CACHE_LIMIT_GB is '{chosen}', expected a number of gigabytes"):
        kept.kept_model("0" * 64, lambda: pytest.fail("compiled"), "cpu", lambda *_: None)


def test_what_safetensors_says_becomes_an_os_error() -> None:
    with pytest.raises(OSError, match="No space left") as caught, writing("out"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "out")
    with pytest.raises(SafetensorError, match="header"), writing("out"):
        raise SafetensorError("invalid header")
    with pytest.raises(FileNotFoundError) as missing, writing("out"):
        open("nothing/here")  # noqa: SIM115
    assert missing.value.filename == "nothing/here"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "veil: No space left on device; make room there"),
        (OSError(errno.EFBIG, "File too large", "a/b"), "veil: a/b: File too large; make room there"),
        (OSError(errno.EACCES, "Permission denied", "a/b"), "veil: a/b: Permission denied; check the path"),
    ],
)
def test_a_command_says_it_in_one_line(error: OSError, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        one_line_errors(command)()
    said = capsys.readouterr().err
    assert caught.value.exit_code == 2 and said.startswith(line) and said.count("\n") == 1
