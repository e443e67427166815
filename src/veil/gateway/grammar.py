"""Answers that follow a grammar: which tokens may come next, by llguidance, on the logits that are this machine's own.

The server is told nothing of it: it multiplies the same rows whether a grammar masks the logits or not.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from veil.gateway.failures import ApiError, bad_parameter

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from veil.typing import Tokenizer

ANY_OBJECT: dict[str, object] = {"type": "object"}
"""The schema of ``json_object``: any object."""


@dataclass(frozen=True, eq=False)
class Grammar:
    """A grammar that was understood, for any number of answers; ``param`` is the request's field that it came from."""

    start: LLMatcher
    param: str

    def matcher(self) -> _Walk:
        """The way through one answer."""
        return _Walk(self.start.deep_copy(), self.param)


class _Walk:
    def __init__(self, matcher: LLMatcher, param: str) -> None:
        self._matcher = matcher
        self._param = param

    @property
    def over(self) -> bool:
        """Whether nothing more can come."""
        return bool(self._matcher.is_stopped())

    def allowed(self, vocabulary: int) -> torch.Tensor:
        """Which tokens may come next, bool [vocabulary]. `ApiError` where the grammar is too much for the library."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.zeros(vocabulary, dtype=bool)
        found = np.unpackbits(bits, bitorder="little")[:vocabulary]
        allowed[: len(found)] = found
        return torch.from_numpy(allowed)

    def take(self, token: int) -> None:
        """Go on by a token that was allowed. `ApiError` as above."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise bad_parameter(self._param, f"the grammar cannot be followed: {_first_line(self._matcher.get_error())}")


class Grammars:
    """Makes grammars for one tokenizer. Thread safe; the library's own form of the tokenizer is made when first needed."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = ends
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None

    def schema(self, schema: object, param: str) -> Grammar:
        """JSON that a schema allows, without spaces where none are needed. `ApiError` for what it cannot express."""
        from llguidance import LLMatcher

        compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        try:
            text = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=compact)  # type: ignore[arg-type]
        except ValueError as error:
            raise bad_parameter(param, f"this is no JSON schema: {_first_line(str(error))}") from None
        return self._made_of(text, param)

    def regex(self, pattern: str, param: str) -> Grammar:
        """Text that matches a regular expression (Rust's, without look-around) from end to end. `ApiError`."""
        from llguidance import LLMatcher

        return self._made_of(LLMatcher.grammar_from_regex(pattern), param)

    def choice(self, choices: Sequence[str], param: str) -> Grammar:
        """One of several texts. `ApiError`."""
        return self.lark("start: " + " | ".join(map(quoted, choices)), param)

    def lark(self, text: str, param: str) -> Grammar:
        """Text of a grammar in Lark's form, or in GBNF's (llama.cpp), whose rules are written with ``::=``. `ApiError`."""
        from llguidance import LLMatcher

        if "::=" in text:
            from llguidance.gbnf_to_lark import any_to_lark

            try:
                text = any_to_lark(text)
            except Exception as error:  # the converter is a program of its own
                raise bad_parameter(param, f"this is no GBNF grammar: {_first_line(str(error))}") from None
        return self._made_of(LLMatcher.grammar_from_lark(text), param)

    def specials(self, param: str) -> list[tuple[str, int]]:
        """The tokens by text that no literal or expression stands for: the library knows them by their ids only."""
        made, added = self._need(param), self._tokenizer.added_tokens_decoder
        return [(str(text), token) for token, text in added.items() if made.is_special_token(token)]

    def _made_of(self, text: str, param: str) -> Grammar:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._need(param), text, log_level=0)
        if matcher.is_error():
            raise bad_parameter(param, f"this cannot be used as a grammar: {_first_line(matcher.get_error())}")
        return Grammar(matcher, param)

    def _need(self, param: str) -> LLTokenizer:
        with self._lock:
            if self._made is None:
                from llguidance.hf import from_tokenizer

                try:
                    self._made = from_tokenizer(
                        self._tokenizer, n_vocab=self._vocabulary, eos_token=sorted(self._ends) or None
                    )
                except Exception as error:
                    raise ApiError(
                        400,
                        f"this model's tokenizer is of no kind that grammars can be used with ({_first_line(str(error))})",
                        param=param,
                        code="unsupported_value",
                    ) from None
            return self._made


def quoted(text: str) -> str:
    """A text as a terminal of a Lark grammar."""
    return json.dumps(text)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason given"
