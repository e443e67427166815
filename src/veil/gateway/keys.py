"""API keys: one in clear, and a file of several that holds their digests only, as the server's tokens."""

from __future__ import annotations

import hmac
from pathlib import Path

from veil.errors import AccessDenied
from veil.network.tokens import Tokens, digest_of


class Keys:
    """The keys that a gateway accepts; whoever holds one is known by its digest. Without any, everybody is accepted.

    `ValueError` for a key that cannot be sent in a header.
    """

    def __init__(self, key: str | None = None, several: Tokens | None = None, count: int = 0) -> None:
        if key is not None and not (key.isascii() and key.isprintable() and key):
            raise ValueError("an API key is printable ASCII, at least one character")
        self._one = None if key is None else key.encode()
        self._several = several
        self.count = count + (key is not None)

    @classmethod
    def read(cls, key: str | None, path: Path | None) -> Keys:
        """One key, and a file with one SHA-256 in hexadecimal a line (`veil token` makes both). `ValueError`."""
        if path is None:
            return cls(key)
        several = Tokens.read(path)
        return cls(key, several, several.count)

    def __bool__(self) -> bool:
        return self.count > 0

    def owner(self, key: str) -> str | None:
        """Whose key it is, by its digest; empty where none is asked for, None for a wrong one. Constant time."""
        if not self:
            return ""
        sent = key.strip()
        if self._one is not None and hmac.compare_digest(sent.encode(), self._one):
            return digest_of(sent)
        if self._several is not None:
            try:
                return self._several.owner(sent)
            except AccessDenied:
                return None
        return None
