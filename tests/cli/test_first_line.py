"""Every command says something before it loads a heavy library, and refuses what it can without one.

One fresh interpreter runs them all; in it, importing torch, transformers or Numba ends a command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
STARTS = [
    "generate hi",
    "compile smollm2 OUT",
    "finetune smollm2 --data FILE --out OUT",
    "serve HALF",
    "gateway",
    "chat",
    "bench",
    "report",
    "doctor",
]
REFUSALS = {
    "generate ''": "the prompt is empty",
    "generate hi --model /none": "no folder or file '/none'",
    "generate hi --bundle /none": "holds no bundle",
    "generate hi --server 127.0.0.1:1": "connection refused",
    "generate hi --server none.invalid:1 --tls": "none.invalid:1",
    "generate --batch /none": "no file /none",
    "compile /none OUT": "no folder or file '/none'",
    "compile smollm2 FULL": "not empty",
    "finetune --data /none --out OUT": "no file /none",
    "finetune --data FILE --out FULL": "not empty",
    "serve /none": "is not a half of a bundle",
    "pull 127.0.0.1:1 OUT": "connection refused",
    "check /none --half HALF": "no folder or file '/none'",
    "check smollm2 --half /none": "holds no bundle",
    "check smollm2 --half HALF": "bundle.json is damaged",
    "generate hi --bundle HALF": "bundle.json is damaged",
    "chat --bundle HALF": "bundle.json is damaged",
    "gateway --bundle /none": "holds no bundle",
    "gateway --model /none": "no folder or file '/none'",
    "gateway --server 127.0.0.1:1": "connection refused",
    "generate hi --pad 0": "--pad is off, a number of rows, or powers",
    "generate hi --pad 64 --speculate lookup": "leave out --speculate",
    "gateway --pad 64,half": "--pad is off, a number of rows, or powers",
    "gateway --pad 64 --cache-gib 1": "leave out one of them",
    "chat --pad x": "--pad is off, a number of rows, or powers",
    "chat --bundle /none": "holds no bundle",
    "chat --server 127.0.0.1:1": "connection refused",
    "bench --from /none": "/none is not a record",
    "report /none": "no folder or file '/none'",
    "report --text /none": "no file /none",
}
PROGRAM = """
import contextlib, importlib.abc, io, json, shlex, sys
class Heavy(BaseException):
    pass
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("torch", "transformers", "numba"):
            raise Heavy(name)
sys.meta_path.insert(0, Finder())
from veil.cli import app
found = {}
for line in json.loads(sys.argv[1]):
    err = io.StringIO()
    for name in [name for name in sys.modules if name.startswith("veil.") and not name.startswith("veil.cli")]:
        del sys.modules[name]
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            app(shlex.split(line), standalone_mode=False)
            how = "done"
        except Heavy as error:
            how = "heavy"
        except BaseException as error:
            how = type(error).__name__
    found[line] = how, err.getvalue()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """How each command ended, and its standard error."""
    folder = tmp_path_factory.mktemp("first")
    for name in ("FULL", "HALF"):
        (folder / name).mkdir()
        (folder / name / "bundle.json").write_text("{}")
    (folder / "FILE").write_text("text")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "VEIL_DATA_DIR": str(folder / "data")}
    command = [sys.executable, "-c", PROGRAM, json.dumps([*STARTS, *REFUSALS])]
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    ended: dict[str, tuple[str, str]] = json.loads(run.stdout.splitlines()[-1])
    return ended


@pytest.mark.parametrize("line", STARTS)
def test_a_line_comes_before_anything_heavy(line: str, found: dict[str, tuple[str, str]]) -> None:
    how, said = found[line]
    assert how == "heavy" and said.startswith("veil: "), (how, said)


@pytest.mark.parametrize("line", REFUSALS)
def test_a_refusal_needs_nothing_heavy(line: str, found: dict[str, tuple[str, str]]) -> None:
    how, said = found[line]
    assert how == "done" and REFUSALS[line] in said, (how, said)
