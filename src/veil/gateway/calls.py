"""Calls in an answer's text, as it comes: words pass, a call is held back until it is whole."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from veil.gateway.tools import Use
from veil.gateway.transcript import beginning

_ARGUMENTS = ("arguments", "parameters")
"""Keys that models mix up."""


@dataclass(frozen=True)
class Call:
    """A call: its place among the answer's, the function, and its arguments as JSON."""

    index: int
    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


class CallReader:
    """Reads one answer. What cannot be read as calls of the request's functions is words after all."""

    def __init__(self, use: Use) -> None:
        self._use = use
        form = use.form
        self._opening = "[" if form.listed else "{"
        parts = {part.strip() for part in (form.before, form.between, form.after)} - {""}
        self._parts = sorted(parts, key=len, reverse=True)
        self._text = ""
        self._state = "before"
        self.calls: list[Call] = []

    def feed(self, text: str) -> tuple[str, list[Call]]:
        """Take text; the words and calls that are certain now."""
        self._text += text
        words = self._until_marker() if self._state == "before" else ""
        calls = self._whole_calls() if self._state == "calls" else []
        if self._state == "words":
            words += self._take(len(self._text))
        return words, calls

    def end(self) -> str:
        """The words that were held back; what closes a call is none."""
        text = self._take(len(self._text))
        rest = text.strip()
        closes = not rest or any(part.startswith(rest) for part in self._parts)
        return "" if self.calls and closes else text

    def _until_marker(self) -> str:
        """The words before a call."""
        marker = self._use.form.marker
        if not marker:  # a call is the whole answer, JSON from its beginning
            if self._text.strip():
                self._state = "calls" if self._text.lstrip().startswith(self._opening) else "words"
            return ""
        place = self._text.find(marker)
        if place < 0:
            kept = beginning(self._text, (marker,))
            certain = self._text[: len(self._text) - kept]
            return self._take(len(certain)) if certain.strip() else ""
        self._state = "calls"
        return self._take(place) if self._text[:place].strip() else ""

    def _whole_calls(self) -> list[Call]:
        """The calls that are complete; their text is taken."""
        found: list[Call] = []
        while self._state == "calls":
            at = self._past_parts()
            if at == len(self._text) or any(part.startswith(self._text[at:]) for part in self._parts):
                break
            values, end = self._json(at)
            if end == 0:
                break
            made = [self._call(value, len(self.calls) + len(found) + place) for place, value in enumerate(values)]
            whole = [call for call in made if call is not None]
            if not made or len(whole) < len(made):
                self._state = "words"
                self._text = self._text[at:] if self.calls or found else self._text
                break
            found += whole
            self._text = self._text[end:]
        self.calls += found
        return found

    def _past_parts(self) -> int:
        """Where the next JSON begins: after white space and what stands around calls."""
        at = 0
        while at < len(self._text):
            if self._text[at].isspace():
                at += 1
                continue
            part = next((part for part in self._parts if self._text.startswith(part, at)), None)
            if part is None:
                break
            at += len(part)
        return at

    def _json(self, at: int) -> tuple[list[Any], int]:
        """The JSON value there, as a list, and its end; 0 while it is not whole, no value where there is none."""
        if self._text[at] not in "[{":
            return [], len(self._text)
        try:
            value, end = json.JSONDecoder().raw_decode(self._text, at)
        except ValueError:
            return [], 0
        return (value if isinstance(value, list) else [value]), end

    def _call(self, value: Any, index: int) -> Call | None:
        if not isinstance(value, dict):
            return None
        name = value.get(self._use.form.name)
        arguments: Any = next((value[key] for key in (self._use.form.arguments, *_ARGUMENTS) if key in value), {})
        if not isinstance(name, str) or name not in self._use.names or not isinstance(arguments, dict):
            return None
        return Call(index, name, json.dumps(arguments, ensure_ascii=False))

    def _take(self, count: int) -> str:
        text, self._text = self._text[:count], self._text[count:]
        return text
