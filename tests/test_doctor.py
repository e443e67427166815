"""`veil doctor`: every check gives a finding, faults have remedies, and a missing extra is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from veil.cli import app
from veil.commands import checkup, doctor
from veil.commands.terminal import extra_of, one_line_errors

runner = CliRunner()


def test_this_machine_has_no_problem() -> None:
    done = runner.invoke(app, ["doctor", "--json"])
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.exit_code == 0, found
    assert set(found) == {name for name, _ in checkup.checkups()}
    assert found["kernels"]["found"].startswith("equal to the reference")
    assert all(finding["remedy"] for finding in found.values() if finding["state"] != "ok")


def test_a_remedy_is_shown_as_it_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    check = ("extras", lambda: ("note", "none", "pip install 'veil-llm[server]'"))
    monkeypatch.setattr(doctor, "checkups", lambda server: [check])
    assert "veil-llm[server]" in runner.invoke(app, ["doctor"]).stdout


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    done = runner.invoke(app, ["doctor", "--json"])
    (cache,) = (finding for finding in json.loads(done.stdout) if finding["name"] == "cache")
    assert done.exit_code == 1
    assert (cache["state"], "VEIL_CACHE_DIR" in cache["remedy"]) == ("problem", True)


@pytest.mark.parametrize(("target", "text"), [("127.0.0.1:1", "refused"), ("nothing", "HOST:PORT"), ("a:70000", "a:70000")])
def test_a_server_that_is_not_there_is_a_problem(target: str, text: str) -> None:
    check = dict(checkup.checkups(target))["server"]
    state, found, remedy = check()
    assert state == "problem" and text in found and remedy


def test_kernels_that_differ_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from veil.kernels.cpu.backend import CpuKernels

    honest = CpuKernels.answer
    monkeypatch.setattr(CpuKernels, "answer", lambda *args, **kwargs: honest(*args, **kwargs) ^ 1)
    assert dict(checkup.checkups())["kernels"]()[0] == "problem"


@pytest.mark.parametrize(
    ("module", "extra"), [("fastapi", "gateway"), ("grpc_health.v1", "server"), ("matplotlib.axes", "bench"), ("json", None)]
)
def test_what_installs_a_missing_module(module: str, extra: str | None) -> None:
    assert extra_of(module) == extra


def test_a_missing_extra_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from click.exceptions import Exit

    @one_line_errors
    def command() -> None:
        raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")

    with pytest.raises(Exception) as caught:  # noqa: PT011
        command()
    assert type(caught.value).__name__ == Exit.__name__
    assert capsys.readouterr().err == "veil: fastapi is not installed: pip install 'veil-llm[gateway]'\n"
