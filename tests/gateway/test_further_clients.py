"""instructor, litellm and llama-index as they are, in an environment of their own: they hold back versions of others.

`make test` makes that environment, ``.venv-clients``; VEIL_CLIENTS_PYTHON names another's Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PYTHON = Path(os.environ.get("VEIL_CLIENTS_PYTHON") or HERE.parents[1] / ".venv-clients" / "bin" / "python")
PET = json.dumps({"kind": "cat", "fed": True})
CALL = "<tool_call>" + json.dumps({"name": "clock", "arguments": {"zone": "CET"}}) + "</tool_call>"


@pytest.mark.parametrize(
    ("name", "answers"),
    [("instructor", [PET, f"```json\n{PET}\n```"]), ("litellm", ["good day", CALL, "good day"]), ("llama_index", [])],
)
def test_a_client(bytes_running: Any, script: Any, tmp_path: Path, name: str, answers: list[str]) -> None:
    if not PYTHON.exists():
        reason = f"there is no {PYTHON}; make test makes it"
        pytest.fail(reason) if os.environ.get("CI") and sys.platform == "linux" else pytest.skip(reason)
    script(bytes_running, *answers)
    command = [str(PYTHON), str(HERE / "further_clients.py"), name, f"{bytes_running.url}/v1"]
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CI")}
    kept |= {"HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
