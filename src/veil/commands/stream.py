"""Tokens to text, as they come."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer


class AnswerStreamer(TextStreamer):
    """Writes whole words of the answer as they are decoded, and tells ``on_token`` of every generated token.

    The text is cleaned of control characters: it follows from bytes that an untrusted server sent, and a terminal would
    obey them.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, write: Callable[[str], None] | None, on_token: Callable[[], None]
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write
        self._on_token = on_token
        self._prompt_seen = False
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt's int64 ids [1, tokens] first, then generated ones [tokens], one or several."""
        for _ in range(value.numel() if self._prompt_seen else 0):
            self._on_token()
        self._prompt_seen = True
        super().put(value)

    def break_off(self) -> None:
        """End the line of an answer that goes no further."""
        if self._write is not None and self._begun:
            self._write("\n")

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write text that later tokens cannot change."""
        if self._write is not None:
            self._begun = not stream_end and bool(text or self._begun)
            self._write(printable(text) + ("\n" if stream_end else ""))


def printable(text: str) -> str:
    """The text without control characters, except newline and tab."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf") or c == "\u200d")
