"""Every architecture of the installed transformers, tried: ``python -m bench families``.

Small random models with every linear layer remote, in processes of their own with a limit of time and memory. The record
has a row for each; `bench/tables.py` makes the table of docs/families.md of it. ``--only gpt2,bert`` tries some and prints
what went wrong with its traceback; ``--again`` tries those again that did not work and keeps the rest of the record.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from bench.family_record import Family, FamilyRecord
from bench.small_models import architectures

HERE = Path(__file__).parent
OUT = HERE / "results" / "families.json"
LIMIT_S = 900.0
_MEMORY = 8 << 30
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
_PER_PROCESS = 40


class Worker:
    """A process that tries architectures one by one; it is ended when one takes too long."""

    def __init__(self, *, loud: bool) -> None:
        self._loud = loud
        self._folder = tempfile.TemporaryDirectory(prefix="families")
        self._process: subprocess.Popen[str] | None = None
        self._tried = 0

    def examine(self, kind: str) -> Family:
        """The row of an architecture."""
        if self._process is None:
            self._begin()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        too_late = threading.Event()

        def end() -> None:
            too_late.set()
            process.kill()

        late = threading.Timer(LIMIT_S, end)
        late.start()
        try:
            process.stdin.write(kind + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        finally:
            late.cancel()
        self._tried += 1
        if not answer or self._tried >= _PER_PROCESS:
            self.close()
        if not answer:
            if too_late.is_set():
                return Family(kind=kind, reason=f"too large to be tried by the script: {LIMIT_S:.0f} s", seconds=LIMIT_S)
            return Family(kind=kind, verdict="fails", reason="its process ended", seconds=LIMIT_S)
        return Family(**json.loads(answer))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process, self._tried = None, 0

    def _begin(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.family_check"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if self._loud else subprocess.DEVNULL,
            text=True,
            preexec_fn=_limit_memory,
            env=os.environ
            | _ONE_THREAD
            | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])},
            cwd=self._folder.name,  # an empty one: modules beside it would come before installed ones
        )


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def in_order() -> list[str]:
    """Every model type, those that generate text first."""
    from transformers.models.auto import modeling_auto

    names = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MULTIMODAL_LM", "MASKED_LM", "SPEECH_SEQ_2_SEQ")
    first = [kind for name in names for kind in getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES")]
    return list(dict.fromkeys([*first, *architectures()]))


def main() -> int:
    """Try them; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="model types, with commas between")
    parser.add_argument("--again", action="store_true", help="only those that did not work in the record")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    kinds = options.only.split(",") if options.only else in_order()
    kept: dict[str, Family] = {}
    if options.again or options.only:
        before = FamilyRecord.read(options.out).families if options.out.exists() else []
        kept = {family.kind: family for family in before}
    if options.again:
        kinds = [kind for kind in kinds if kind not in kept or kept[kind].verdict in ("fails", "not built", "refused")]
    worker, record = Worker(loud=bool(options.only)), FamilyRecord()
    for kind in kinds:
        family = kept[kind] = worker.examine(kind)
        record.families = [kept[kind] for kind in sorted(kept)]
        record.write(options.out)
        print(f"{kind:28} {family.model:40} {family.verdict:10} {family.seconds:5.1f} s  {family.reason}", flush=True)
    worker.close()
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(record.counts().items())))
    return 1 if any(kept[kind].verdict == "fails" for kind in kinds) else 0


if __name__ == "__main__":
    sys.exit(main())
