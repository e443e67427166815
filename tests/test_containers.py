"""The container files, as far as they can be checked where nothing builds them: what they copy, install and set is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FILES = sorted((ROOT / "deploy").glob("Containerfile*"))


def steps_of(path: Path) -> list[tuple[str, str]]:
    """Instructions and what follows them, lines that go on joined."""
    lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]  # type: ignore[misc]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_container_file_fits_the_project(path: Path) -> None:
    steps = steps_of(path)
    said = dict(steps)
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    project = PROJECT["project"]
    assert {"pyproject.toml", project["readme"], *project["license-files"], "src"} <= set(copied), "what a build reads"
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', said["RUN"])
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (constraints,) = re.findall(r"--constraint (\S+)", said["RUN"])
    assert constraints in copied
    assert "libgomp1" in said["RUN"], "without OpenMP kernels of several threads take turns"
    versions = [text.rpartition(" ")[2] for text in project["classifiers"]]
    assert re.fullmatch(r"docker\.io/library/python:(3\.\d+)-slim", said["FROM"])[1] in versions  # type: ignore[index]
    program = re.findall(r'"([^"]+)"', said["ENTRYPOINT"])[0]
    assert program in project["scripts"]
    assert said["USER"] == "veil" and "useradd --system --create-home veil" in said["RUN"], "nothing runs as root"
    assert all(value.startswith("/home/veil/") for value in re.findall(r"=(\S+)", said["ENV"])), "it can write there"
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    own = [name for name in re.findall(r"(\w+)=", said["ENV"]) if name.startswith("VEIL_")]
    assert all(f'"{name}"' in source for name in own), "a variable that nothing reads"


def test_the_default_ports_are_the_ones_that_are_open() -> None:
    ports = {path.name: dict(steps_of(path))["EXPOSE"].split() for path in FILES}
    serve, gateway = ((ROOT / "src/veil/cli" / name).read_text(encoding="utf-8") for name in ("serve.py", "gateway.py"))
    assert f"= {ports['Containerfile'][0]}," in serve and f"= {ports['Containerfile.client'][0]}," in gateway
    assert len(FILES) == 2
