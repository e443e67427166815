"""Redirected text on a system whose default encoding is not UTF-8, as on Windows."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from veil.cli import streams

TEXT = "Zürich, 東京 🙂"


def redirected(monkeypatch: pytest.MonkeyPatch, name: str, data: bytes = b"") -> io.BytesIO:
    raw = io.BytesIO(data)
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding="cp1252", newline=""))
    return raw


def test_pipes_carry_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    out = redirected(monkeypatch, "stdout")
    redirected(monkeypatch, "stdin", TEXT.encode())
    with pytest.raises(UnicodeEncodeError):
        print(TEXT, flush=True)
    streams.use_utf8()
    assert streams.read_input() == TEXT
    print(TEXT, flush=True)
    assert out.getvalue().decode() == TEXT + "\n"


def test_an_encoding_that_the_user_chose_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    out = redirected(monkeypatch, "stdout")
    streams.use_utf8()
    print(TEXT, flush=True)
    assert out.getvalue().decode("cp1252") == "Zürich, \\u6771\\u4eac \\U0001f642\n"


def test_input_that_is_not_text_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    redirected(monkeypatch, "stdin", b"a\xff")
    streams.use_utf8()
    with pytest.raises(ValueError, match=r"not utf-8 text \(byte 1\)"):
        streams.read_input()


def test_help_in_cp1252_is_no_traceback() -> None:
    command = [sys.executable, "-m", "veil", "generate", "--help"]
    done = subprocess.run(command, env={"PYTHONIOENCODING": "cp1252", "PATH": ""}, capture_output=True, timeout=60)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
