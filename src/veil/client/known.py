"""Servers that were met, and the digests of the client halves that they had: kept in a file, as SSH keeps hosts' keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from veil.cache import data_folder
from veil.disk import write_whole
from veil.errors import BundleError

_LINE = re.compile(r"(\S+) ([0-9a-f]{64}) (.*)")
_MOST_OF_ONE = 64


class KnownServers:
    """The file ``known_servers``: a line for each half of a server, with its address, the half's digest and its name.

    A new server is taken at its word, once; a half that a known server never had is refused. `BundleError` for a file that
    cannot be read: what is in it is not guessed.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or data_folder() / "known_servers"

    def digests(self, server: str) -> dict[str, str]:
        """Names of a server's halves by digest; empty for a server that was not met."""
        return {digest: name for address, digest, name in self._lines() if address == server.lower()}

    def check(self, server: str, digest: str, name: str, accepted: str | None) -> bool:
        """Whether a half is known of a server; False for a new server, or a half that the user ``accepted`` by its digest.

        `BundleError` with both digests and what to do for another half of a known server.
        """
        known = self.digests(server)
        if digest in known:
            return True
        if not known or accepted == digest:
            return False
        before = next((one for one, called in known.items() if called == name), next(iter(known)))
        raise BundleError(
            f"{server} had the client half {before} ({known[before]}) and now offers {digest} ({name}): its operator made "
            "another, or somebody else answers in its place; ask the operator for the digest, and if it is right use "
            f"--digest {digest}, or remove the server's lines from {self._path}"
        )

    def remember(self, server: str, halves: Iterable[tuple[str, str]]) -> None:
        """Add (digest, name) of some halves, and forget others of these names."""
        new = {digest: " ".join(name.split()) or "?" for digest, name in list(halves)[:_MOST_OF_ONE]}
        kept = [
            (address, digest, name)
            for address, digest, name in self._lines()
            if address != server.lower() or (digest not in new and name not in new.values())
        ]
        lines = kept + [(server.lower(), digest, name) for digest, name in new.items()]
        write_whole(self._path, "".join(f"{address} {digest} {name}\n" for address, digest, name in lines).encode())

    def _lines(self) -> list[tuple[str, str, str]]:
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{self._path} cannot be read ({error}); repair it, or remove it to meet every server anew"
            ) from None
        found = []
        for number, line in enumerate(lines, 1):
            match = _LINE.fullmatch(line)
            if match is None:
                raise BundleError(
                    f"line {number} of {self._path} is not a server, a digest and a name; repair it, or remove it to meet "
                    "that server anew"
                )
            found.append((match[1], match[2], match[3]))
        return found
