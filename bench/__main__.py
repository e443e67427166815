"""Run every measurement that needs no special hardware, one process each: ``python -m bench``, or ``make bench``.

Then the plots and the tables of the README and the docs are made from the records. Names choose some of them, such as
``python -m bench cpu-smollm2 widths``; ``--list`` shows all. On two cores everything takes about an hour and a half: a few
minutes each for the models and widths, more for `quality`, `families` and the four `trips`. Nothing else should run
meanwhile. ``python -m bench PROGRAM [OPTIONS]`` runs one program of this folder, such as ``python -m bench trips gpt2
--mbit 100``; `bench/gpu.py`, `bench/gpu_kernels.py` and ``veil bench --device cuda`` need a GPU.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PLOTS = HERE.parent / "docs" / "plots"
MODELS = ("smollm2", "gpt2", "llama-1b")
PROGRAMS = (
    "checks",
    "drafts",
    "families",
    "four_gpus",
    "gateway",
    "gpu",
    "gpu_kernels",
    "gradients",
    "load",
    "load_gpus",
    "messages",
    "pairs",
    "quality",
    "remote",
    "security",
    "soak",
    "tables",
    "training",
    "trips",
)
PEER = ("--peer", "concrete-ml", "--install-peer")


def veil_bench(name: str, *options: str) -> list[str]:
    """`veil bench` into the record of this name."""
    return ["-m", "veil", "bench", *options, "--json", f"{RESULTS}/{name}.json"]


def script(name: str, *arguments: str, out: str) -> list[str]:
    """A program of this folder into the record of a name."""
    return ["-m", "bench", name, *arguments, "--out", f"{RESULTS}/{out}.json"]


MEASUREMENTS: dict[str, list[str]] = {
    "cpu-smollm2": veil_bench("cpu-smollm2", "--model", "smollm2", "--plaintext", "--prompt-rows", "64,8,256,512"),
    "cpu-gpt2": veil_bench("cpu-gpt2", "--model", "gpt2", "--plaintext", "--prompt-rows", "64,8,256,512", *PEER),
    "cpu-llama-1b": veil_bench("cpu-llama-1b", "--model", "llama-1b", "--plaintext"),
    "busy-1-smollm2": veil_bench("busy-1-smollm2", "--model", "smollm2", "--plaintext", "--busy", "1"),
    "busy-2-smollm2": veil_bench("busy-2-smollm2", "--model", "smollm2", "--plaintext", "--busy", "2"),
    "signal": veil_bench("signal", "--signal"),
    "widths": veil_bench("widths", "--widths", "512,1024,2048,4096", "--plaintext"),
    "quality": script("quality", out="quality"),
    "remote-smollm2": script("remote", out="remote-smollm2"),
    "remote-smollm2-unfused": script("remote", "--fuse-norms", "off", out="remote-smollm2-unfused"),
    "gateway-smollm2": script("gateway", out="gateway-smollm2"),
    "drafts": script("drafts", out="drafts"),
    "families": script("families", out="families"),
    **{
        f"trips-{model}-{mbit}": script("trips", model, "--mbit", str(mbit), out=f"trips-{model}-{mbit}")
        for model in ("smollm2", "gpt2")
        for mbit in (1000, 100)
    },
}


def drawings() -> list[list[str]]:
    """What makes plots of the records that exist, and tables of them."""
    models = [path for name in MODELS if (path := RESULTS / f"cpu-{name}.json").exists()]
    records = [part for path in models for part in ("--from", str(path))]
    plots = [(records, name) for name in ("phases", "bytes", "rows", "links")] if models else []
    plots += [
        (["--from", str(path)], path.stem) for path in (RESULTS / "widths.json", RESULTS / "signal.json") if path.exists()
    ]
    made = [["-m", "veil", "bench", *of, "--figure", name, "--plot", f"{PLOTS}/{name}.png"] for of, name in plots]
    return [*made, ["-m", "bench", "tables"]]


def main(names: list[str]) -> int:
    """Run one program; or measure, draw and write tables, and give the highest exit code."""
    if names and names[0] in PROGRAMS and not set(names) <= set(MEASUREMENTS):
        sys.argv = [f"{HERE}/{names[0]}.py", *names[1:]]
        runpy.run_module(f"bench.{names[0]}", run_name="__main__", alter_sys=True)
        return 0
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        print("\n".join(MEASUREMENTS), file=sys.stdout if unknown == ["--list"] else sys.stderr)
        return 0 if unknown == ["--list"] else 2
    code = 0
    for arguments in [MEASUREMENTS[name] for name in names or MEASUREMENTS]:
        code = max(code, subprocess.run([sys.executable, *arguments], check=False).returncode)
    return max([code, *(subprocess.run([sys.executable, *rest], check=False).returncode for rest in drawings())])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
