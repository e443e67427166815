"""Run every benchmark that needs no special hardware, one process each: ``python -m bench``, or ``make bench``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAMS = (["cpu.py", "smollm2"], ["cpu.py", "gpt2"], ["quality.py"])


def main() -> int:
    here = Path(__file__).parent
    codes = [subprocess.run([sys.executable, here / name, *rest], check=False).returncode for name, *rest in PROGRAMS]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
