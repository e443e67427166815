"""The peer: concrete-ml-extensions, in an environment of its own, on the same layer shapes and the same machine.

Its token is the sum over the model's linear layers of encrypt, multiply and decrypt, one row at a time, as Concrete ML's
executor calls them. Each distinct shape is measured once. A layer far wider than its step of 2048 outputs (GPT-2's head
takes minutes) is measured at whole steps and scaled by its outputs; the record says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from veil.bench.record import Peer, PeerLayer
from veil.cache import cache_folder
from veil.errors import VeilError
from veil.progress import Progress

PACKAGE = "concrete-ml-extensions"
VERSION = "0.2.0"
STEP = 2048
_WIDEST = 4 * STEP
_MEASURED = 2 * STEP
_PYTHONS = ("3.11", "3.12")

Shapes = Sequence[tuple[int, int, int]]


class PeerUnavailable(VeilError):
    """The peer cannot be installed or run here."""


def environment() -> Path:
    """The folder of the peer's virtual environment, in veil's cache."""
    return cache_folder() / f"{PACKAGE}-{VERSION}"


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def require(*, install: bool, progress: Progress) -> Path:
    """The peer's interpreter. It is installed from the package index only with consent (``install``).

    Raises `PeerUnavailable` without that consent, without a Python it supports, or when the installation fails.
    """
    folder = environment()
    python = python_of(folder)
    if python.exists() and _works(python):
        return python
    if not install:
        raise PeerUnavailable(
            f"{PACKAGE} {VERSION} is not installed in {folder}; add --install-peer to let this command make that virtual "
            "environment from the package index (190 MB)"
        )
    progress(f"installing {PACKAGE} {VERSION}", 0, 0)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    requirements = [f"{PACKAGE}=={VERSION}", "numpy"]
    _run([_supported_python(), "-m", "venv", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *requirements])
    if not _works(python):
        shutil.rmtree(folder, ignore_errors=True)
        raise PeerUnavailable(f"{PACKAGE} {VERSION} was installed but cannot be imported; it may not support this processor")
    return python


def measured_outputs(outputs: int) -> int:
    """How many outputs of a layer are measured: all, or two whole steps of a layer wider than four."""
    return outputs if outputs <= _WIDEST else _MEASURED


class PeerHead(TypedDict):
    """The first line of the peer's process."""

    version: str
    key_bytes: int


class MeasuredShape(TypedDict):
    """Each further line: what one row of a layer cost, as `veil.bench.peer_process` measured it."""

    width: int
    outputs: int
    encrypt_s: float
    multiply_s: float
    decrypt_s: float
    up_bytes: int
    down_bytes: int
    relative_error: float


def measure(shapes: Shapes, python: Path, progress: Progress) -> Peer:
    """Run every distinct shape once; `PeerUnavailable` when the peer's process fails."""
    wanted = sorted({(width, measured_outputs(outputs)) for width, outputs, _ in shapes})
    script = Path(__file__).with_name("peer_process.py")
    command = [str(python), str(script), json.dumps(wanted)]
    stage = f"{PACKAGE}, one row of each layer shape"
    progress(stage, 0, len(wanted))
    answers: list[str] = []
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_clean()) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    answers.append(line)
                    progress(stage, len(answers) - 1, len(wanted))
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        trouble = errors.read().strip().splitlines()
    if process.returncode or len(answers) != 1 + len(wanted):
        raise PeerUnavailable(f"the peer's process failed ({trouble[-1] if trouble else process.returncode})")
    head: PeerHead = json.loads(answers[0])
    layers: list[MeasuredShape] = [json.loads(line) for line in answers[1:]]
    return summed(shapes, head, layers)


def summed(shapes: Shapes, head: PeerHead, layers: Sequence[MeasuredShape]) -> Peer:
    """The peer's token from its answers: each shape's cost, scaled by outputs where it was cut, times its count."""
    found = {(layer["width"], layer["outputs"]): layer for layer in layers}
    rows = []
    for width, outputs, count in shapes:
        measured = found[width, measured_outputs(outputs)]
        scale = outputs / measured["outputs"]
        rows.append(
            PeerLayer(
                width=width,
                outputs=outputs,
                count=count,
                measured_outputs=measured["outputs"],
                encrypt_s=measured["encrypt_s"],
                multiply_s=measured["multiply_s"] * scale,
                decrypt_s=measured["decrypt_s"] * scale,
                up_bytes=float(measured["up_bytes"]),
                down_bytes=measured["down_bytes"] * scale,
                relative_error=measured["relative_error"],
            )
        )
    return Peer(
        name=PACKAGE,
        version=head["version"],
        token_s=sum(row.count * (row.encrypt_s + row.multiply_s + row.decrypt_s) for row in rows),
        bytes_per_token=sum(row.count * (row.up_bytes + row.down_bytes) for row in rows),
        key_bytes=head["key_bytes"],
        layers=tuple(rows),
    )


def _supported_python() -> str:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here in _PYTHONS:
        return sys.executable
    for wanted in _PYTHONS:
        found = shutil.which(f"python{wanted}")
        if found:
            return found
    raise PeerUnavailable(f"{PACKAGE} {VERSION} needs Python {' or '.join(_PYTHONS)}, this is {here}; install one of them")


def _works(python: Path) -> bool:
    code = f"import concrete_ml_extensions, importlib.metadata as m; print(m.version({PACKAGE!r}))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=120, env=_clean())
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == VERSION


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_clean())
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if re.search("error", line, re.IGNORECASE)] or ["no message"]
        raise PeerUnavailable(f"{' '.join(command[1:3])} failed ({lines[-1].strip()}); is a package index reachable?")


def _clean() -> dict[str, str]:
    """The environment without what would lead the peer's interpreter to this one's packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
