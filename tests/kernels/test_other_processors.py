"""The kernels' code, lowered by LLVM for other processors than this one: Apple's, ARM servers', an x86-64 without AVX.

Numba compiles them for a processor without extensions (so nothing of x86 is chosen); LLVM then makes objects of that code
for each target. It shows that the code can be lowered, not that it gives the right results there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = {
    "apple-m1": ("arm64-apple-darwin", "apple-m1"),
    "aarch64-linux": ("aarch64-unknown-linux-gnu", "generic"),
    "x86-64": ("x86_64-unknown-linux-gnu", "x86-64"),
}
PROGRAM = r'''
import importlib, itertools, json, pkgutil, re, sys
import llvmlite.binding as llvm
from numba.core.dispatcher import Dispatcher
from veil.kernels import cpu, warm
from veil.kernels.ring import ring_of
from veil.params import Params

steps = list(warm.every_kernel(ring_of(Params.insecure_tiny())))
for step in steps[: int(sys.argv[2])]:
    step()
modules = {}
for info in pkgutil.iter_modules(cpu.__path__, "veil.kernels.cpu."):
    for name, value in vars(importlib.import_module(info.name)).items():
        inside = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        for kernel in [one for one in [value, *inside] if isinstance(one, Dispatcher)]:
            for index, compiled in enumerate(kernel.overloads.values()):
                modules[f"{kernel.py_func.__module__}.{kernel.py_func.__name__}.{index}"] = str(
                    compiled.library._get_module_for_linking()
                )
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
DROP = re.compile(r'^target (?:triple|datalayout) = .*$|"target-(?:cpu|features)"="[^"]*"|"tune-cpu"="[^"]*"', re.M)
COUNT = re.compile(
    r"^(\s*)(%[\w.]+) = (?:tail )?call i8 @llvm\.x86\.atomic\.sub\.cc\.i64"
    r"\(ptr (?:nonnull )?([^,]+), i64 1, i32 4\).*$", re.M
)
numbers = itertools.count()

def counted(found):
    """LLVM's x86 form of "count down, is it zero" as every processor has it."""
    n = next(numbers)
    return (f"{found[1]}%veil.o{n} = atomicrmw sub ptr {found[3]}, i64 1 monotonic\n"
            f"{found[1]}%veil.c{n} = icmp eq i64 %veil.o{n}, 1\n{found[1]}{found[2]} = zext i1 %veil.c{n} to i8")

sizes, foreign = {}, []
for target, (triple, processor) in json.loads(sys.argv[1]).items():
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, opt=2)
    for name, text in modules.items():
        text = COUNT.sub(counted, DROP.sub("", text))
        foreign += [name for line in text.splitlines() if "call" in line and "llvm.x86" in line]
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = triple, str(machine.target_data)
        sizes[f"{target} {name}"] = len(machine.emit_object(module))
print(json.dumps({"modules": sorted(modules), "sizes": sizes, "foreign": foreign}))
'''


def lowered(tmp_path: Path, steps: int) -> dict[str, object]:
    """What came of the kernels that the first ``steps`` of the warm-up compile."""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(TARGETS), str(steps)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_a_kernel_is_lowered_for_every_target(tmp_path: Path) -> None:
    """The first step alone, packing; the slow test has all."""
    found = lowered(tmp_path, 1)
    assert found["foreign"] == []
    assert len(found["sizes"]) == 3 * len(found["modules"]) and min(found["sizes"].values()) > 200  # type: ignore


@pytest.mark.slow
def test_every_kernel_is_lowered_for_every_target(tmp_path: Path) -> None:
    found = lowered(tmp_path, 10_000)
    assert found["foreign"] == []
    assert len(found["modules"]) >= 30  # type: ignore
    assert len(found["sizes"]) == 3 * len(found["modules"]) and min(found["sizes"].values()) > 200  # type: ignore
