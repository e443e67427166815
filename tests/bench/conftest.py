"""What `veil bench` finds on a tiny model, shared by its tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from veil.bench import machine, run
from veil.bench.record import Record
from veil.bench.subjects import Loaded
from veil.params import Params

PROMPTS, NEW_TOKENS = (5, 20), 3


@pytest.fixture(scope="session")
def tiny_record(new_model: Callable[[str], Any]) -> Record:
    """The tiny Llama with tiny parameters, in one process, with plaintext."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "READ_BYTES", 1 << 20)
        request = run.RunRequest(
            prompts=PROMPTS, new_tokens=NEW_TOKENS, repeats=2, plaintext=True, params=Params.insecure_tiny()
        )
        return run.measure(request, lambda stage, done, total: None, Loaded("tiny", "a test", new_model("llama")))
