"""Bearer tokens: the server keeps SHA-256 digests and compares them in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from veil.errors import AccessDenied

_MOST_TOKEN_BYTES = 1024


class Tokens:
    """The tokens that a server accepts; an owner is named by the digest of its token."""

    def __init__(self, digests: Iterable[str]) -> None:
        self._digests = [digest.lower().encode() for digest in digests]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._digests)

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """A file with one SHA-256 in hexadecimal a line; what follows it on the line, and lines from ``#``, are notes.

        Raises `ValueError` for another line or no line, without repeating it: it may be a token by mistake; and for a file
        that cannot be read.
        """
        digests = []
        try:
            lines = path.read_bytes().decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise ValueError(f"the tokens' file {path} cannot be read ({error.strerror}); check the path") from None
        for number, line in enumerate(lines, 1):
            text = line.split("#")[0].strip()
            if not text:
                continue
            word = text.split()[0]
            if not re.fullmatch(r"[0-9a-fA-F]{64}", word):
                raise ValueError(f"{path}, line {number} is not the SHA-256 of a token; make one with 'veil token'")
            digests.append(word)
        if not digests:
            raise ValueError(f"{path} holds no token")
        return cls(digests)

    def owner(self, token: str) -> str:
        """Who a token belongs to; `AccessDenied` for none or an unknown one. Every digest is compared."""
        if not token:
            raise AccessDenied("the server wants a token; give one with --token or VEIL_TOKEN")
        found = digest_of(token[:_MOST_TOKEN_BYTES]).encode()
        known = False
        for digest in self._digests:
            known |= hmac.compare_digest(digest, found)
        if not known:
            raise AccessDenied("the server does not accept the token; ask its operator for one")
        return found.decode()


def digest_of(token: str) -> str:
    """What the server's file holds for a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def fresh_token() -> str:
    """A new token of 256 bits."""
    return secrets.token_urlsafe(32)
