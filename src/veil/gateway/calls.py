"""Calls in an answer's text, as it comes: words pass, a call's arguments too once its function is known."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, replace

from veil.gateway.tools import Use
from veil.gateway.transcript import beginning

_ARGUMENTS = ("arguments", "parameters")
"""Keys that models mix up."""


@dataclass(frozen=True)
class Call:
    """A piece of a call: its place among the answer's, more of its arguments; with the first the function and an id."""

    index: int
    arguments: str
    name: str | None = None
    id: str | None = None


class CallReader:
    """Reads one answer. What cannot be read as calls of the request's functions is words after all."""

    def __init__(self, use: Use) -> None:
        self._use = use
        form = use.form
        self._opening = "[" if form.listed else "{"
        parts = {part.strip() for part in (form.before, form.between, form.after)} - {""}
        self._parts = sorted(parts, key=len, reverse=True)
        keys = "|".join(map(re.escape, {form.arguments, *_ARGUMENTS}))
        self._head = re.compile(rf'\{{\s*"{re.escape(form.name)}"\s*:\s*"([^"\\]*)"\s*,\s*"(?:{keys})"\s*:\s*(?=\{{)')
        self._text = ""
        self._state = "before"  # then "calls", in one of them "arguments" and "rest", or at last "words"
        self._scan = _Scan()
        self.count = 0

    def feed(self, text: str) -> tuple[str, list[Call]]:
        """Take text; the words and pieces of calls that are certain now."""
        self._text += text
        words = self._until_marker() if self._state == "before" else ""
        found: list[Call] = []
        while self._step(found):
            pass
        if self._state == "words":
            words += self._take(len(self._text))
        return words, found

    def end(self) -> str:
        """The words that were held back; what closes a call is none."""
        rest = self._text[self._past_parts() :] if self.count else self._text
        closes = self._state == "rest" or any(part.startswith(rest) for part in ("", *self._parts))
        text = self._take(len(self._text))
        return "" if self.count and closes else text

    def _until_marker(self) -> str:
        """The words before a call."""
        marker = self._use.form.marker
        if not marker:  # a call is the whole answer, JSON from its beginning
            if self._text.strip():
                self._state = "calls" if self._text.lstrip().startswith(self._opening) else "words"
            return ""
        place = self._text.find(marker)
        if place < 0:
            certain = self._text[: len(self._text) - beginning(self._text, (marker,))]
            return self._take(len(certain)) if certain.strip() else ""
        self._state = "calls"
        return self._take(place) if self._text[:place].strip() else ""

    def _step(self, found: list[Call]) -> bool:
        """Go on as far as one thing allows; False where more text is needed."""
        if self._state == "calls":
            return self._call(found)
        if self._state == "arguments":
            piece = self._take(self._scan.past(self._text))
            if piece:
                found.append(Call(self.count - 1, piece))
            self._state = "rest" if self._scan.closed else "arguments"
            return self._scan.closed
        if self._state == "rest":  # the end of the call's object, and other keys before it
            self._scan = replace(self._scan, depth=1) if self._scan.closed else self._scan
            self._take(self._scan.past(self._text))
            self._state = "calls" if self._scan.closed else "rest"
            return self._scan.closed
        return False

    def _call(self, found: list[Call]) -> bool:
        """The beginning of the next call, or a whole one that is written otherwise."""
        at = self._past_parts()
        if at == len(self._text) or any(part.startswith(self._text[at:]) for part in self._parts):
            return False
        head = self._head.match(self._text, at)
        if head is not None and head[1] in self._use.names:
            found.append(self._begun(head[1], ""))
            self._text = self._text[head.end() :]
            self._scan, self._state = _Scan(), "arguments"
            return True
        try:
            value, end = json.JSONDecoder().raw_decode(self._text, at) if self._text[at] == "{" else (None, at)
        except ValueError:
            return False  # it may become one
        call: dict[str, object] = value if isinstance(value, dict) else {}
        name = call.get(self._use.form.name)
        arguments: object = next((call[key] for key in (self._use.form.arguments, *_ARGUMENTS) if key in call), {})
        if name in self._use.names and isinstance(arguments, dict):
            found.append(self._begun(str(name), json.dumps(arguments, ensure_ascii=False)))
            self._text = self._text[end:]
            return True
        self._text = self._text[at:] if self.count else self._text
        self._state = "words"
        return False

    def _begun(self, name: str, arguments: str) -> Call:
        self.count += 1
        return Call(self.count - 1, arguments, name, f"call_{secrets.token_hex(12)}")

    def _past_parts(self) -> int:
        """Where the next JSON begins: after white space and what stands around calls, a list's brackets and commas too."""
        at, listed = 0, self._use.form.listed
        while at < len(self._text):
            part = next((part for part in self._parts if self._text.startswith(part, at)), None)
            if part is not None:
                at += len(part)
            elif self._text[at].isspace() or (listed and self._text[at] in ("[,]" if self._listed(at) else "[")):
                at += 1
            else:
                break
        return at

    def _listed(self, at: int) -> bool:
        return self.count > 0 or "[" in self._text[:at]

    def _take(self, count: int) -> str:
        text, self._text = self._text[:count], self._text[count:]
        return text


@dataclass
class _Scan:
    """Where in a JSON object a text is: how deep, in a string, after a backslash."""

    depth: int = 0
    quoted: bool = False
    escaped: bool = False
    closed: bool = False

    def past(self, text: str) -> int:
        """How much of a text belongs to the object; it is ``closed`` where that is not all of it, or just so."""
        self.closed = False
        for place, character in enumerate(text):
            if self.escaped:
                self.escaped = False
            elif self.quoted:
                self.escaped, self.quoted = character == "\\", character != '"'
            elif character == '"':
                self.quoted = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth == 0:
                    self.closed = True
                    return place + 1
        return len(text)
