"""Tests wait for states, in one place; none sleeps for a while and hopes."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import pytest

from waiting import until

ROOT = Path(__file__).parents[1]
ALLOWED = ROOT / "tests" / "waiting.py"


def sleeps(text: str) -> list[int]:
    """Lines that sleep: any ``sleep`` (of `time`, of `asyncio`), and waiting for an event that nobody else knows."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.Attribute, ast.alias)):
            continue
        named = isinstance(node, ast.Attribute) and node.attr == "sleep"
        imported = isinstance(node, ast.alias) and node.name == "sleep"
        fresh = (
            isinstance(node, ast.Attribute)
            and node.attr == "wait"
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Attribute)
            and ast.unparse(node.value.func) == "threading.Event"
        )
        if named or imported or fresh:
            lines.append(node.lineno)
    return sorted(lines)


def test_no_test_sleeps() -> None:
    files = sorted({*(ROOT / "tests").rglob("*.py"), ROOT / "conftest.py"} - {ALLOWED})
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        if path.exists()
        for line in sleeps(path.read_text(encoding="utf-8"))
    ]
    assert found == [], "wait for a state with waiting.until, or inject a clock:\n" + "\n".join(found)
    assert len(sleeps(ALLOWED.read_text(encoding="utf-8"))) == 1


@pytest.mark.parametrize(
    "text", ["time.sleep(1)", "await_ = asyncio.sleep", "from time import sleep", "threading.Event().wait(0.1)"]
)
def test_a_sleep_is_found(text: str) -> None:
    assert sleeps(f"x = 1\n{text}\n") == [2]
    assert sleeps("over.wait(60)\n'time.sleep(1)'\n") == []


def test_what_does_not_come_about_is_named() -> None:
    seen: list[int] = []
    until(lambda: seen.append(1) or len(seen) > 2)  # type: ignore[func-returns-value]
    assert len(seen) == 3
    with pytest.raises(AssertionError, match="the answer did not come about in 0 s"):
        until(lambda: False, 0, what="the answer")


def test_what_has_no_name_is_said_in_its_own_words_with_what_there_is() -> None:
    over, begun = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        over.wait(60)

    thread = threading.Thread(target=hang, name="a thread that hangs")
    thread.start()
    assert begun.wait(60)
    try:
        with pytest.raises(AssertionError) as caught:
            until(lambda: len("seven") == 7, 0, state=lambda: f"running {len('x')}")
    finally:
        over.set()
        thread.join()
    first, state, *others = str(caught.value).splitlines()
    assert 'len("seven") == 7' in first and f"({Path(__file__).name}:" in first
    assert state == "running 1"
    assert [line for line in others if "a thread that hangs: test_waiting.py" in line and line.endswith("over.wait(60)")]
    with pytest.raises(AssertionError, match="hang did not come about"):
        until(hang, 0)
