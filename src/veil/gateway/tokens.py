"""The bytes that a token stands for, which need not be whole characters."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veil.typing import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """Tokens as bytes, exactly where the tokenizer says what they are: byte-level ones and those that fall back to bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {token: str(added) for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self.hidden = frozenset(
            token for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items() if added.special
        )
        """Special tokens, which an answer's text leaves out."""
        kinds = _decoders(tokenizer)
        self._by_character = _byte_level() if "ByteLevel" in kinds else None
        self._falls_back = "ByteFallback" in kinds

    def of(self, token: int) -> bytes | None:
        """A token's bytes; None where they depend on what stands before it."""
        if token in self._added:
            return self._added[token].encode()
        if self._by_character is None and not self._falls_back:
            return None
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a row of the head that has no token
            return b""
        if self._by_character is not None:
            known = self._by_character
            return bytes(known[c] for c in piece) if all(c in known for c in piece) else str(piece).encode()
        return self.single(piece)

    def named(self, token: int) -> bytes:
        """A token's bytes, or what the tokenizer calls it where they depend on what stands before it."""
        exact = self.of(token)
        return exact if exact is not None else str(self._tokenizer.convert_ids_to_tokens(token)).encode()

    def single(self, piece: str) -> bytes | None:
        """The byte that a piece like ``<0xE2>`` stands for."""
        found = _BYTE.fullmatch(piece)
        return bytes([int(found[1], 16)]) if found else None

    def is_byte(self, token: int) -> bool:
        """Whether a token is one byte of a character."""
        return self._falls_back and self.single(self._tokenizer.convert_ids_to_tokens(token) or "") is not None

    def text(self, token: int) -> str:
        """A special token as it is written; empty for others."""
        return self._added.get(token, "") if token in self.hidden else ""


def shown(data: bytes) -> str:
    r"""Bytes as text; those of a part of a character as ``\xe2\x80``, the way OpenAI writes them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)


def _decoders(tokenizer: object) -> set[str]:
    """The kinds of a fast tokenizer's decoders."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.decoder.__getstate__() if backend is not None and backend.decoder is not None else b"{}"
    try:
        said = json.loads(state)
    except ValueError:  # one that was written in Python
        return set()
    return {said.get("type", ""), *(part["type"] for part in said.get("decoders", []))}


def _byte_level() -> dict[str, int]:
    """The byte of each character of a byte-level vocabulary: printable Latin-1 is itself, the rest are U+0100 and on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
