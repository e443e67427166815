"""Run every measurement that needs no special hardware, one process each: ``python -m bench``, or ``make bench``.

Then the plots and the tables of the README and the docs are made from the records.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PLOTS = HERE.parent / "docs" / "plots"
MODELS = ("smollm2", "gpt2", "llama-1b")
RECORDS = [part for name in MODELS for part in ("--from", f"{RESULTS}/cpu-{name}.json")]

MEASUREMENTS: list[list[str]] = [
    ["-m", "veil", "bench", "--model", "smollm2", "--plaintext", "--json", f"{RESULTS}/cpu-smollm2.json"],
    ["-m", "veil", "bench", "--model", "gpt2", "--plaintext", "--peer", "concrete-ml", "--install-peer",
     "--json", f"{RESULTS}/cpu-gpt2.json"],
    ["-m", "veil", "bench", "--model", "llama-1b", "--plaintext", "--json", f"{RESULTS}/cpu-llama-1b.json"],
    ["-m", "veil", "bench", "--widths", "512,1024,2048,4096", "--plaintext", "--json", f"{RESULTS}/widths.json"],
    [f"{HERE}/quality.py"],
]  # fmt: skip
DRAWINGS: list[list[str]] = [
    *(["-m", "veil", "bench", *RECORDS, "--figure", name, "--plot", f"{PLOTS}/{name}.png"]
      for name in ("phases", "bytes", "rows", "links")),
    ["-m", "veil", "bench", "--from", f"{RESULTS}/widths.json", "--plot", f"{PLOTS}/widths.png"],
    [f"{HERE}/tables.py"],
]  # fmt: skip


def main() -> int:
    """Measure, draw, write tables; the highest exit code."""
    return max(subprocess.run([sys.executable, *rest], check=False).returncode for rest in MEASUREMENTS + DRAWINGS)


if __name__ == "__main__":
    sys.exit(main())
