"""The examples run as they stand (the one that needs SmolLM2 is slow)."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_every_example_is_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path


def test_gpt2(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "gpt2.py"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["disable", "simulate", "execute"]
    assert lines[0].split(maxsplit=1)[1] == lines[2].split(maxsplit=1)[1]


@pytest.mark.slow
def test_chat(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "chat.py"))
    assert "blue" in capsys.readouterr().out.lower()
