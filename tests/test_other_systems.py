"""Stand-ins for Windows and macOS: a fresh interpreter that lacks what those lack imports every module of the package.

A stand-in has the names and the absences, not the behaviour: `sys.platform`, `os.name`, modules and functions of POSIX.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
POSIX_MODULES = ["resource", "fcntl", "termios", "pwd", "grp", "tty", "pty"]
POSIX_NAMES = [
    "fork",
    "forkpty",
    "getuid",
    "geteuid",
    "getgid",
    "setpriority",
    "getpriority",
    "nice",
    "getloadavg",
    "mkfifo",
]
LINUX_NAMES = ["sched_getaffinity", "sched_setaffinity", "sched_yield", "memfd_create", "posix_fadvise"]
ABSENT = {
    "win32": (POSIX_MODULES, [*POSIX_NAMES, *LINUX_NAMES]),
    "darwin": ([], LINUX_NAMES),
}
PROGRAM = """
import importlib, json, os, pkgutil, select, socket, sys
# Libraries look at the system too; they are there already, as those of the other system would be.
import numpy, numba, torch, transformers, grpc, rich.console, typer, fastapi, uvicorn, cryptography, safetensors.torch
import concurrent.futures.process, multiprocessing.context, subprocess, asyncio, tempfile, platformdirs, ctypes
import transformers.generation, transformers.modeling_utils, psutil, grpc_health.v1.health, prometheus_client
system, modules, names = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
sys.platform = system
for name in names:
    if hasattr(os, name):
        delattr(os, name)
for name in modules:
    sys.modules[name] = None
for name in ("poll", "epoll"):
    if hasattr(select, name):
        delattr(select, name)
for name in ("TCP_KEEPIDLE", "TCP_QUICKACK", "SO_BUSY_POLL", "SO_REUSEPORT", "MSG_NOSIGNAL", "AF_UNIX"):
    if hasattr(socket, name):
        delattr(socket, name)
if system == "win32":
    import signal
    for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "pthread_sigmask", "setitimer"):
        if hasattr(signal, name):
            delattr(signal, name)
    import ctypes
    real = ctypes.CDLL
    def cdll(name, *args, **kwargs):
        if name is None:
            raise TypeError("there is no such library on Windows")
        return real(name, *args, **kwargs)
    ctypes.CDLL = cdll
import veil
LEFT_OUT = ("veil.kernels.cuda", "veil.wire.generate", "veil.bench.peer_process")  # they need what is not installed
failed, count = {}, 0
for info in pkgutil.walk_packages(veil.__path__, "veil."):
    if info.name.startswith(LEFT_OUT) or info.name.endswith("__main__"):
        continue
    count += 1
    try:
        importlib.import_module(info.name)
    except BaseException as error:
        failed[info.name] = f"{type(error).__name__}: {error}"
for name in veil.__all__:
    getattr(veil, name)
found = {}
try:
    from veil.priority import cores, let_helpers_sleep, in_thread_of_its_own
    from veil.process import raise_file_limit, keep_out_of_dumps
    from veil.kernels.cpu import parallel
    let_helpers_sleep()
    keep_out_of_dumps()
    found = {"cores": cores(), "files": raise_file_limit(), "result": in_thread_of_its_own(lambda: 3)}
    from veil.commands.checkup import checkups
    found["doctor"] = {n: check()[0] for n, check in checkups() if n in ("versions", "processor", "cache", "disk", "extras")}
except BaseException as error:
    failed["use"] = f"{type(error).__name__}: {error}"
print(json.dumps({"failed": failed, "count": count, "found": found}))
"""


@pytest.mark.parametrize("system", ["win32", pytest.param("darwin", marks=pytest.mark.slow)])
def test_every_module_is_imported(system: str, tmp_path: Path) -> None:
    modules, names = ABSENT[system]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "VEIL_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PROGRAM, system, json.dumps(modules), json.dumps(names)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["failed"] == {}
    assert seen["count"] > 200
    assert seen["found"]["cores"] >= 1 and seen["found"]["result"] == 3
    assert set(seen["found"]["doctor"].values()) <= {"ok", "note"}
