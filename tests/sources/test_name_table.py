"""transformers' table of names: the one that is kept is the one that it would make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import builtins, sys
from pathlib import Path
from veil.sources.name_table import kept_names
opened, own_open = [], builtins.open
def counting(file, *rest, **named):
    opened.append(str(file))
    return own_open(file, *rest, **named)
builtins.open = counting
with kept_names(Path(sys.argv[1])):
    import transformers
    transformers.models
builtins.open = own_open
models = Path(transformers.__file__).parent / "models"
read = sum(path.startswith(str(models)) for path in opened)
own = transformers.utils.import_utils
plain = own.spread_import_structure(own.create_import_structure_from_path(str(models)))
print(read, own.define_import_structure(str(models / "__init__.py")) == plain, "LlamaForCausalLM" in dir(transformers))
"""


def imported(folder: Path) -> list[str]:
    """Files read, whether the table is right, whether a model's class is there: of an import with this folder."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
        timeout=120,
    )
    return done.stdout.split()


def test_the_table_is_made_once(tmp_path: Path) -> None:
    read, right, there = imported(tmp_path)
    assert int(read) > 500 and (right, there) == ("True", "True")
    assert imported(tmp_path) == ["0", "True", "True"]
    (kept,) = tmp_path.iterdir()
    of_another = json.loads(kept.read_text()) | {"changed": ["/elsewhere", 0, 0]}
    for damaged in ("{", json.dumps(of_another), "[]"):
        kept.write_text(damaged)
        assert imported(tmp_path)[1:] == ["True", "True"]
        assert json.loads(kept.read_text())["changed"] != of_another["changed"]
