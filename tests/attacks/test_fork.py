"""A process that forks after it has a generator of secrets: the two of it must not draw the same words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from veil.random import ProcessMark

SOURCE = Path(__file__).parents[2] / "src"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

PROGRAM = """
import os, sys
from veil.random import ProcessMark, SecretRng
if sys.argv[1] == "without the rule":
    ProcessMark.here = True
if sys.argv[1] == "with one process number":
    os.getpid = lambda: 7
rng = SecretRng()
rng.words64(2)
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, rng.words64(4).tobytes())
    os._exit(0)
os.wait()
print(os.read(read, 32).hex(), rng.words64(4).tobytes().hex())
"""


def words_of_both(case: str) -> tuple[str, str]:
    """What child and parent draw after a fork."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", PROGRAM, case]
    child, parent = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert len(child) == len(parent) == 64
    return child, parent


@pytest.mark.parametrize("case", ["", "with one process number"])
def test_parent_and_child_draw_different_words(case: str) -> None:
    child, parent = words_of_both(case)
    assert child != parent


def test_without_the_rule_they_draw_the_same_words() -> None:
    child, parent = words_of_both("without the rule")
    assert child == parent


def test_a_mark_knows_its_process_and_stays_in_it() -> None:
    import copy
    import pickle

    mark = ProcessMark()
    assert mark.here
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            leave(mark)
