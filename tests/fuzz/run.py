"""Long fuzzing of one decoder with atheris (``pip install "veil-llm[fuzz]"``); libFuzzer's options follow the name.

    python tests/fuzz/run.py evaluate -max_total_time=600

Without a name it lists the targets. A finding is written to ``crash-…`` in the working directory; give that file instead
of options to run it again. The compiled kernels are not instrumented.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> None:
    import atheris

    import veil.kernels.warm  # noqa: F401  the kernels come first and stay as they are: Numba compiles their bytecode

    with atheris.instrument_imports(include=["veil"]):
        from targets import TARGETS, escaped, examples  # type: ignore[import-not-found]  # beside this program

    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit("usage: python tests/fuzz/run.py TARGET [libFuzzer options]\ntargets: " + ", ".join(TARGETS))
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, example in enumerate(examples(name) + escaped(name)):
            (Path(corpus) / f"example-{number}").write_bytes(example)
        files = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        atheris.Setup(sys.argv if files else [*sys.argv, corpus], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
