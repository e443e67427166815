"""Servers whose answers were wrong: remembered, and not asked again until the user forgives them."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from veil.cache import data_folder
from veil.disk import write_whole
from veil.errors import BundleError, WrongAnswer

_LINE = re.compile(r"(\S+) (\S+)")


class CaughtServers:
    """The file ``caught_servers``: a line for each server, with its address and the day; a damaged one is refused."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or data_folder() / "caught_servers"

    def check(self, server: str) -> None:
        """Raise `WrongAnswer` for a server that was caught."""
        day = self._lines().get(server.lower())
        if day is not None:
            raise WrongAnswer(
                f"{server} gave wrong answers on {day} and is not asked again; if you know why and trust it again: "
                f"veil check --forgive {server}"
            )

    def add(self, server: str) -> None:
        """Remember a server."""
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        self._write(self._lines() | {server.lower(): today})

    def forgive(self, server: str) -> bool:
        """Forget a server; whether it was there."""
        lines = self._lines()
        found = lines.pop(server.lower(), None) is not None
        if found:
            self._write(lines)
        return found

    def _write(self, lines: dict[str, str]) -> None:
        write_whole(self._path, "".join(f"{server} {day}\n" for server, day in lines.items()).encode())

    def _lines(self) -> dict[str, str]:
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise BundleError(f"{self._path} cannot be read ({error}); repair or remove it") from None
        found = {}
        for number, line in enumerate(lines, 1):
            match = _LINE.fullmatch(line)
            if match is None:
                raise BundleError(f"line {number} of {self._path} is not a server and a day; repair it, or remove the line")
            found[match[1]] = match[2]
        return found
