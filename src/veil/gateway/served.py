"""The model that the gateway serves: names, limits, prompts to token ids, and what is known of its rows and traffic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from veil.errors import ModelSourceError
from veil.gateway.failures import ApiError, bad_parameter, too_long
from veil.model.hybrid import HybridFHEModel

SAMPLE_BYTES = 96
"""Bytes of the last packed rows that are shown to those who ask what the server saw."""

_CHARACTERS_A_TOKEN = 3.5
_TEMPLATE_TOKENS = 12


class ServedModel:
    """A hybrid model and its tokenizer under a name. Raises `ModelSourceError` without a tokenizer."""

    def __init__(
        self, name: str, hybrid: HybridFHEModel, tokenizer: PreTrainedTokenizerBase | None, server: str | None = None
    ) -> None:
        if tokenizer is None:
            raise ModelSourceError(f"{name} has no tokenizer; add tokenizer.json to it and compile it again")
        self.name = name
        self.hybrid = hybrid
        self.net = cast(Any, hybrid.model)
        self.tokenizer = tokenizer
        self.server = server
        config = self.net.config.get_text_config()
        self.context_length = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
        self.width = int(getattr(config, "hidden_size", 0))
        self.vocabulary = int(config.vocab_size)
        self.kind: Literal["text", "encoder"] = "text" if self.net.can_generate() else "encoder"

    @property
    def mode(self) -> str:
        """The mode of the hybrid model."""
        return self.hybrid.fhe_mode

    @property
    def security_bits(self) -> float:
        """Bits of security; 0 when nothing is encrypted."""
        return float(self.hybrid.params.security_bits) if self.mode in ("execute", "remote") else 0.0

    @property
    def sent_sample(self) -> bytes:
        """The first bytes of the last packed rows that left for the server."""
        return self.hybrid.last_sent[:SAMPLE_BYTES]

    def chat_ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The token ids of a chat (role, text) by the model's template, ready for the answer."""
        if not self.tokenizer.chat_template:
            raise bad_parameter("messages", f"{self.name} has no chat template; use /v1/completions")
        turns = [{"role": "system" if role == "developer" else role, "content": text} for role, text in messages]
        try:
            encoded = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        except TemplateError:
            raise bad_parameter("messages", f"the chat template of {self.name} does not allow this order of roles") from None
        except Exception as error:  # a template is the bundle's, a program of its own
            raise bad_parameter("messages", f"the chat template of {self.name} fails ({type(error).__name__})") from None
        return self._checked(encoded["input_ids"], "messages", room=1)

    def text_ids(self, text: str | Sequence[int], param: str) -> list[int]:
        """The token ids of a text, or ids that a client made itself."""
        ids = self.tokenizer(text)["input_ids"] if isinstance(text, str) else list(text)
        return self._checked(ids, param, room=1 if self.kind == "text" else 0)

    def biases(self, given: dict[str, float]) -> dict[int, float]:
        """Biases by token id."""
        ids = {}
        for name, bias in given.items():
            if not (name.isascii() and name.isdecimal() and int(name[:12]) < self.vocabulary):
                raise bad_parameter("logit_bias", f"its keys are token ids below {self.vocabulary}")
            ids[int(name)] = bias
        return ids

    def need(self, kind: str, param: str = "model") -> None:
        """`ApiError` unless the model is of this kind."""
        if kind != self.kind:
            able = "makes text" if self.kind == "text" else "is an encoder: it makes embeddings"
            raise ApiError(400, f"{self.name} {able}; it cannot serve this", param=param, code="model_not_supported")

    def expect(self, characters: int, new_tokens: int) -> None:
        """Have rows made for a prompt of about so many characters and its answer."""
        rows = min(self.context_length, round(characters / _CHARACTERS_A_TOKEN) + _TEMPLATE_TOKENS)
        self.hybrid.expect(prompt_rows=rows, new_tokens=min(new_tokens, self.context_length))

    def _checked(self, ids: Any, param: str, room: int) -> list[int]:
        ids = [int(token) for token in ids]
        if not ids:
            raise bad_parameter(param, "it has no tokens; write at least one word")
        if max(ids) >= self.vocabulary:
            raise bad_parameter(param, f"token ids are below {self.vocabulary}")
        if len(ids) + room > self.context_length:
            raise too_long(len(ids), self.context_length, param)
        return ids
