"""Files that were cut off, caches that cannot be written, processes that were killed: a repaired cache or a clear line.

What a kill leaves is what the folder holds at that moment: a snapshot is taken each time the code touches the disk, and
the next start is run on each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import veil
from veil import HybridFHEModel, linear_modules
from veil.commands import kept
from veil.disk import PART, whole_folder, write_whole
from veil.kernels.backend import kernels_for
from veil.kernels.cpu import kept as kept_kernels
from veil.server import hint_files
from veil.sources import gguf

IDS = torch.arange(3, 9)[None]
KEY = "0" * 64
PLACES = 20
_watching: list[tuple[str, Callable[[], None]]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "os.chmod"):
        folder, note = _watching[-1]
        if isinstance(arguments[0], (str, os.PathLike)) and folder in os.fspath(arguments[0]):
            note()


sys.addaudithook(_audit)


@contextmanager
def snapshots(folder: Path, into: Path) -> Iterator[list[Path]]:
    """Inside the block, a copy of ``folder`` at every moment when a file in it is opened, made, moved or removed."""
    found: list[Path] = []

    def note() -> None:
        watch = _watching.pop()
        try:
            if folder.exists():
                found.append(into / str(len(found)))
                shutil.copytree(folder, found[-1])
        finally:
            _watching.append(watch)

    _watching.append((str(folder), note))
    try:
        yield found
    finally:
        _watching.clear()


def spread(things: list[Any]) -> list[Any]:
    """Twenty of them, the first and the last among them."""
    if len(things) <= PLACES:
        return things
    return [things[index * (len(things) - 1) // (PLACES - 1)] for index in range(PLACES)]


def places_of(folder: Path) -> list[tuple[Path, int]]:
    """Twenty places in a folder's files where one can end, by file and byte: starts, middles, ends."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = {path: path.stat().st_size for path in files}
    every = [
        (path, at) for path in files for at in sorted({0, 1, sizes[path] // 3, sizes[path] // 2, max(0, sizes[path] - 2)})
    ]
    return spread([(path.relative_to(folder), at) for path, at in every])


@pytest.fixture(scope="module")
def compiled(new_model: Callable[[str], Any]) -> HybridFHEModel:
    model = new_model("llama")
    made = HybridFHEModel(model, linear_modules(model))
    made.compile_model(IDS)
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(compiled: HybridFHEModel) -> tuple[HybridFHEModel, bool]:
    """The model from the cache, or made and kept; and whether it was made."""
    made: list[bool] = []

    def make() -> tuple[HybridFHEModel, Any, str]:
        made.append(True)
        return compiled, None, "here"

    hybrid, _ = kept.kept_model(KEY, make, "cpu", lambda *_: None)
    return hybrid, bool(made)


def test_a_compiled_model_that_is_cut_off_anywhere_is_made_again(compiled: HybridFHEModel, cache: Path) -> None:
    compiled.set_fhe_mode("disable")
    expected = compiled(IDS).logits
    opened(compiled)
    folder = cache / "compiled" / KEY[:32]
    for name, at in places_of(folder):
        os.truncate(folder / name, at)
        assert opened(compiled)[1], f"{name} cut off at {at} was believed"
        hybrid, made = opened(compiled)
        assert not made, "the cache was not repaired"
    assert torch.equal(hybrid(IDS).logits, expected)


def test_killed_at_any_moment_of_keeping_a_compiled_model(compiled: HybridFHEModel, cache: Path, tmp_path: Path) -> None:
    compiled.set_fhe_mode("disable")
    expected = compiled(IDS).logits
    with snapshots(cache, tmp_path / "moments") as moments:
        opened(compiled)
    assert len(moments) >= PLACES
    for moment in spread(moments):
        shutil.rmtree(cache)
        shutil.copytree(moment, cache)
        hybrid, _ = opened(compiled)
        assert torch.equal(hybrid(IDS).logits, expected)
        assert not opened(compiled)[1]


def test_killed_at_any_moment_of_saving_a_bundle(compiled: HybridFHEModel, tmp_path: Path) -> None:
    """What is left opens, or says in one line that it is no bundle."""
    compiled.set_fhe_mode("disable")
    expected, bundle = compiled(IDS).logits, tmp_path / "bundle"
    bundle.mkdir()
    with snapshots(bundle, tmp_path / "moments") as moments:
        compiled.save(bundle)
    outcomes = set()
    for moment in [*spread(moments), bundle]:
        try:
            hybrid = HybridFHEModel.load(moment)
            assert torch.equal(hybrid(IDS).logits, expected)
            outcomes.add("opens")
        except veil.BundleError as error:
            assert "holds no bundle" in str(error)  # noqa: PT017
            outcomes.add("refused")
    assert outcomes == {"opens", "refused"}


@pytest.fixture
def conversion(monkeypatch: pytest.MonkeyPatch, llama_folder: Path, tmp_path: Path) -> Path:
    """A file that stands for a GGUF file, whose conversion copies the tiny Llama."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and more")
    monkeypatch.setattr(gguf, "convert", lambda _, folder: shutil.copytree(llama_folder, folder, dirs_exist_ok=True))
    return file


def test_a_converted_model_that_is_cut_off_anywhere_is_made_again(cache: Path, conversion: Path, llama_folder: Path) -> None:
    folder = gguf.converted_folder(conversion)
    for name, at in places_of(folder):
        os.truncate(folder / name, at)
        assert gguf.converted_folder(conversion) == folder
        assert gguf.wrong_with(folder) is None, f"{name} cut off at {at}"
    assert (folder / "model.safetensors").read_bytes() == (llama_folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    folder.mkdir()  # as a version of veil without the list of digests left it, or somebody emptied it
    assert gguf.wrong_with(gguf.converted_folder(conversion)) is None


def test_killed_at_any_moment_of_a_conversion(cache: Path, conversion: Path, tmp_path: Path) -> None:
    with snapshots(cache, tmp_path / "moments") as moments:
        gguf.converted_folder(conversion)
    assert len(moments) >= 10
    for moment in spread(moments):
        shutil.rmtree(cache)
        shutil.copytree(moment, cache)
        folder = gguf.converted_folder(conversion)
        assert gguf.wrong_with(folder) is None


def test_a_hint_that_is_cut_off_anywhere_is_built_again(compiled: HybridFHEModel, tmp_path: Path) -> None:
    engine = compiled.sides.need_engine()
    kernels, folder = kernels_for("cpu"), tmp_path / "hint"
    for name, at in [(None, 0), *places_after(engine, folder)]:
        assert hint_files.save_hint(folder, engine.hint, kernels, "f")
        if name is not None:
            os.truncate(folder / name, at)
        found = hint_files.load_hint(folder, compiled.params, compiled.manifest.segments, kernels, "f")
        assert (found is None) == (name is not None), f"{name} cut off at {at}"


def places_after(engine: Any, folder: Path) -> list[tuple[Path, int]]:
    """Where the files of a hint can end."""
    hint_files.save_hint(folder, engine.hint, kernels_for("cpu"), "f")
    return places_of(folder)


def test_a_cache_that_cannot_be_written_is_one_line(
    compiled: HybridFHEModel,
    conversion: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A folder in a file's place: as root every other one can be written."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="veil"):
        assert opened(compiled)[0] is compiled
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path / "file") in line and "set VEIL_CACHE_DIR" in line
    with pytest.raises(veil.ModelSourceError, match=r"cannot write the converted model to .*file \(.*\); .*VEIL_CACHE_DIR"):
        gguf.converted_folder(conversion)
    conversion.unlink()
    with pytest.raises(veil.ModelSourceError, match=r"cannot read .*model\.gguf"):
        gguf.converted_folder(conversion)


def test_kernels_that_were_cut_off_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_for("cpu").pack(kernels_for("cpu").zeros(1, 8), 8)
    (place,) = (own for own in kept_kernels.folders if own and any(Path(own).glob("packing.*")))
    for file in [*Path(place).glob("packing.*.nb[ic]")][:6]:
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(kept_kernels, "folders", {str(tmp_path)})
    assert kept_kernels.mend() == [] and len(list(tmp_path.iterdir())) >= 2
    for name, at in places_of(tmp_path):
        whole = (tmp_path / name).read_bytes()
        os.truncate(tmp_path / name, at)
        assert kept_kernels.mend() == [name.name], f"{name} cut off at {at}"
        (tmp_path / name).write_bytes(whole)


def test_kernels_without_a_folder_are_compiled_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def njit(**options: Any) -> Callable[[Any], Any]:
        def compiled(function: Any) -> Any:
            if options.get("cache"):
                raise RuntimeError("cannot cache function 'f': no locator available for file 'x'")
            return SimpleNamespace(compile=None, py_func=function)

        return compiled

    monkeypatch.setattr(kept_kernels, "njit", njit)
    monkeypatch.setattr(kept_kernels, "folders", set())
    with caplog.at_level(logging.WARNING, logger="veil"):
        assert [kept_kernels.jitted(nogil=nogil)(len).py_func("ab") for nogil in (True, False)] == [2, 2]
    assert [record.getMessage().count("NUMBA_CACHE_DIR") for record in caplog.records] == [1]
    assert kept_kernels.mend() == []


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"old", mode=0o600)
    with snapshots(tmp_path, tmp_path.with_name("moments-of-a-file")) as moments:
        write_whole(tmp_path / "file", b"new", mode=0o600)
    assert {(moment / "file").read_bytes() for moment in moments} == {b"old", b"new"}
    assert (tmp_path / "file").read_bytes() == b"new" and (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_left_long_ago_is_removed(tmp_path: Path) -> None:
    for name, age_s in (("old", 90_000), ("new", 100)):
        (tmp_path / f"{PART}{name}").mkdir()
        (tmp_path / f"{PART}{name}" / "file").write_text("")
        for path in (tmp_path / f"{PART}{name}" / "file", tmp_path / f"{PART}{name}"):
            os.utime(path, (time.time() - age_s,) * 2)
    with whole_folder(tmp_path / "made"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{PART}new", "made"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_for_real_at_twenty_moments(llama_folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "VEIL_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "veil", "generate", "w1 w2", "--model", str(llama_folder), "--max-new-tokens", "2"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    begun = time.monotonic()
    subprocess.run(command, env=environment, capture_output=True, timeout=300, check=True)
    whole_s = time.monotonic() - begun
    for moment in range(PLACES):
        shutil.rmtree(tmp_path / "cache")
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(whole_s * (0.4 + moment / PLACES))
        process.send_signal(signal.SIGKILL)
        process.wait()
        again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert (again.returncode, again.stdout) == (0, run.stdout), again.stderr
