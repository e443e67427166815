"""The model that the gateway serves: names, limits, prompts to token ids, and what is known of its rows and traffic."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, cast

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from veil.errors import ModelSourceError
from veil.gateway.checkpoint import ends_of, plain, preferences_of
from veil.gateway.failures import ApiError, bad_parameter, server_lost, too_long
from veil.gateway.grammar import Grammars
from veil.gateway.health import GIVE_UP_S, ServerHealth
from veil.gateway.kept import KeptStates
from veil.gateway.pictures import Sight, in_parts
from veil.gateway.tokens import TokenBytes
from veil.gateway.tools import OURS, ChatTurn, Form, ShownTool, form_of
from veil.hybrid.model import HybridFHEModel

if TYPE_CHECKING:
    from PIL.Image import Image

    from veil.training.adapters import Adapters
    from veil.typing import LanguageModel, Processor

SAMPLE_BYTES = 96
"""Bytes of the last packed rows that are shown to those who ask what the server saw."""

_CHARACTERS_A_TOKEN = 3.5
_TEMPLATE_TOKENS = 12
_PIECE_CHARACTERS = 1 << 14
_TEMPLATE_PARAMETERS = frozenset(
    {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"} - {"documents"}
)


class ServedModel:
    """A hybrid model and its tokenizer under a name. Raises `ModelSourceError` without a tokenizer."""

    def __init__(
        self, name: str, hybrid: HybridFHEModel, tokenizer: PreTrainedTokenizerBase | None, server: str | None = None
    ) -> None:
        if tokenizer is None:
            raise ModelSourceError(f"{name} has no tokenizer; add tokenizer.json to it and compile it again")
        self.name = name
        self.hybrid = hybrid
        self.net = cast("LanguageModel", hybrid.model)
        self.tokenizer = tokenizer
        self.server = server
        self.adapters: Adapters | None = None
        self.health: ServerHealth | None = None
        """Whether the server answers, where somebody watches it."""
        self.sight: Sight | None = None
        """What makes inputs of pictures, for a model that sees."""
        self.kept: KeptStates | None = None
        """Where conversations' states are kept for longer, if anywhere."""
        self.kind: Literal["text", "encoder"] = "text" if self.net.can_generate() else "encoder"
        if getattr(self.net, "main_input_name", "input_ids") != "input_ids":
            raise ModelSourceError(f"{name} takes {self.net.main_input_name}, not text; use it from Python")
        self.two_sided = bool(getattr(self.net.config, "is_encoder_decoder", False)) and self.kind == "text"
        self.sent_whole = self.two_sided or any(hasattr(part, "rope_deltas") for part in self.net.modules())
        """Whether no prompt goes on from a kept state: Qwen-VL and its kin note how far the last prompt's pictures shifted
        positions in the model itself, where another prompt finds it."""
        config = self.net.config.get_text_config(encoder=True) if self.two_sided else self.net.config.get_text_config()
        decoder = self.net.config.get_text_config(decoder=True) if self.two_sided else config
        self.context_length = _limit(config, "max_encoder_position_embeddings")
        self._answer_length = _limit(decoder, "max_decoder_position_embeddings")
        self.width = int(getattr(config, "hidden_size", 0))
        self.vocabulary = int(decoder.vocab_size)
        said = getattr(self.net, "generation_config", None)
        self.preferences = preferences_of(said)
        self.ends = ends_of(said, tokenizer)
        if said is not None:
            self.net.generation_config = plain(said)
        self.token_bytes = TokenBytes(tokenizer)
        self.grammars = Grammars(tokenizer, self.vocabulary, self.ends)

    @property
    def names(self) -> list[str]:
        """What requests may call it: its name, and that with each adapter's behind a colon."""
        return [self.name, *(f"{self.name}:{adapter}" for adapter in self._adapters())]

    def _adapters(self) -> list[str]:
        return self.adapters.names if self.adapters is not None and self.kind == "text" else []

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter in a name of `names`; None for the model as it is, and for its aliases."""
        return name[len(self.name) + 1 :] if name in self.names and name != self.name else None

    def adapt(self, adapter: str | None) -> None:
        """Put an adapter in force, or none, for the passes that come."""
        if self.adapters is not None:
            self.adapters.use(adapter)

    def see(self, processor: Processor | None) -> None:
        """Take pictures in messages from now on, by a processor of transformers; nothing for None."""
        if processor is None or self.kind != "text" or self.two_sided:
            return
        if not self.tokenizer.chat_template:
            self.tokenizer.chat_template = getattr(processor, "chat_template", None)
        self.sight = Sight(processor, self.net.config)

    @property
    def mode(self) -> str:
        """The mode of the hybrid model."""
        return self.hybrid.fhe_mode

    @property
    def lost_s(self) -> float | None:
        """For how many seconds the server has not answered; None while it does, or nobody looks."""
        return None if self.health is None else self.health.lost_s

    def in_vain(self) -> ApiError | None:
        """Why nobody should wait for an answer: a server that has been lost for a while (503)."""
        lost_s = self.lost_s
        return None if lost_s is None or lost_s < GIVE_UP_S else server_lost(self.server or "the server", lost_s)

    @property
    def security_bits(self) -> float:
        """Bits of security; 0 when nothing is encrypted."""
        return float(self.hybrid.params.security_bits) if self.mode in ("execute", "remote") else 0.0

    @property
    def checked(self) -> str | None:
        """The model against whose weights every answer is checked, or None."""
        return self.hybrid.checked_against

    @property
    def sent_sample(self) -> bytes:
        """The first bytes of the last packed rows that left for the server."""
        return self.hybrid.last_sent[:SAMPLE_BYTES]

    def chat_ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The token ids of a chat (role, text) by the model's template, ready for the answer."""
        return self.template_ids([{"role": role, "content": text} for role, text in messages])

    def template_ids(
        self,
        turns: Sequence[ChatTurn],
        tools: Sequence[ShownTool] | None = None,
        variables: Mapping[str, object] | None = None,
        *,
        going: bool = False,
        pictures: Sequence[Image] = (),
    ) -> list[int]:
        """The token ids of a chat by the model's template, with tools and a template's own variables. `ApiError`.

        With ``going`` the last turn is not closed: what comes is more of it. With ``pictures``, whose places are marked in
        the turns, it is a `PicturePrompt`.
        """
        if not self.tokenizer.chat_template:
            raise bad_parameter("messages", f"{self.name} has no chat template; use /v1/completions")
        taken = sorted(_TEMPLATE_PARAMETERS & set(variables or {}))
        if taken:
            raise bad_parameter("chat_template_kwargs", f"{taken[0]} is no variable of a template: the gateway sets it")
        options: dict[str, object] = {"tools": tools, "add_generation_prompt": not going, "return_dict": not pictures}
        options |= {"continue_final_message": going, "tokenize": not pictures}
        shown: Sequence[Mapping[str, object]] = turns if self.sight is None else in_parts(turns)
        try:
            encoded = self.tokenizer.apply_chat_template(shown, **options, **(variables or {}))
        except TemplateError as error:
            said = f" ({' '.join(str(error).split())[:200]})" if type(error) is TemplateError else ""
            raise bad_parameter(
                "messages", f"the chat template of {self.name} does not allow this order of roles{said}"
            ) from None
        except Exception as error:  # a template is the bundle's, a program of its own
            raise bad_parameter("messages", f"the chat template of {self.name} fails ({type(error).__name__})") from None
        if self.sight is not None and pictures:
            prompt = self.sight.prompt(encoded, pictures)
            self._checked(prompt, "messages", room=1)
            return prompt
        return self._checked(encoded["input_ids"], "messages", room=1)

    @functools.cached_property
    def call_form(self) -> Form:
        """How this model writes calls of tools."""

        def render(turns: Sequence[ChatTurn], tools: Sequence[ShownTool] | None, begun: bool) -> str:
            text: str = self.tokenizer.apply_chat_template(turns, tools=tools, add_generation_prompt=begun, tokenize=False)
            return text

        if not self.tokenizer.chat_template:
            return OURS
        return form_of(render, [name for name, _ in self.special_tokens])

    @property
    def special_tokens(self) -> list[tuple[str, int]]:
        """The special tokens by their texts."""
        return [(self.token_bytes.text(token), token) for token in sorted(self.token_bytes.hidden)]

    def text_ids(self, text: str | Sequence[int], param: str) -> list[int]:
        """The token ids of a text, or ids that a client made itself."""
        if isinstance(text, str):
            self.refuse_huge([text], param)
        ids = self.tokenizer(text)["input_ids"] if isinstance(text, str) else list(text)
        return self._checked(ids, param, room=1 if self.kind == "text" else 0)

    def refuse_huge(self, texts: Sequence[str], param: str) -> None:
        """`ApiError` for a prompt that is much too long, by its first pieces: tokenizing megabytes takes many seconds.

        Pieces are cut at spaces; where a cut splits a word there may be a token more, so only twice the context is too much.
        """
        if sum(map(len, texts)) <= _PIECE_CHARACTERS:
            return
        tokens = 0
        for text in texts:
            start = 0
            while start < len(text):
                end = _cut(text, start + _PIECE_CHARACTERS)
                tokens += len(self.tokenizer(text[start:end], add_special_tokens=False)["input_ids"])
                if tokens > 2 * self.context_length:
                    raise too_long(tokens, self.context_length, param, at_least=True)
                start = end

    def known_tokens(self, ids: Sequence[int], param: str) -> Sequence[int]:
        """The ids, if the model has them."""
        if ids and max(ids) >= self.vocabulary:
            raise bad_parameter(param, f"token ids are below {self.vocabulary}")
        return ids

    def biases(self, given: dict[str, float]) -> dict[int, float]:
        """Biases by token id."""
        ids = {}
        for name, bias in given.items():
            if not (name.isascii() and name.isdecimal() and len(name) <= 12 and int(name) < self.vocabulary):
                raise bad_parameter("logit_bias", f"its keys are token ids below {self.vocabulary}")
            ids[int(name)] = bias
        return ids

    def room(self, prompt_tokens: int) -> int:
        """The most tokens that an answer to such a prompt may have; with padding the same for all prompts of a step."""
        padding = self.hybrid.padding
        if padding is not None:
            prompt_tokens = min(padding.rows(prompt_tokens), self.context_length - padding.step)
        return self._answer_length - 1 if self.two_sided else self.context_length - prompt_tokens

    def need(self, kind: str, param: str = "model") -> None:
        """`ApiError` unless the model is of this kind."""
        if kind != self.kind:
            able = "makes text" if self.kind == "text" else "is an encoder: it makes embeddings"
            raise ApiError(400, f"{self.name} {able}; it cannot serve this", param=param, code="model_not_supported")

    def expect(self, characters: int, new_tokens: int) -> None:
        """Have rows made for a prompt of about so many characters and its answer."""
        rows = min(self.context_length, round(characters / _CHARACTERS_A_TOKEN) + _TEMPLATE_TOKENS)
        self.hybrid.expect(prompt_rows=rows, new_tokens=min(new_tokens, self.context_length))

    def _checked(self, ids: Iterable[int], param: str, room: int) -> list[int]:
        ids = [int(token) for token in ids]
        if not ids:
            raise bad_parameter(param, "it has no tokens; write at least one word")
        self.known_tokens(ids, param)
        if room and self.hybrid.padding is not None:
            room = self.hybrid.padding.step
        room = 0 if self.two_sided else room
        if len(ids) + room > self.context_length:
            raise too_long(len(ids), self.context_length, param)
        return ids


def _cut(text: str, end: int) -> int:
    """A place before ``end`` that splits no word, if there is one nearby."""
    if end >= len(text):
        return len(text)
    space = text.rfind(" ", end - 256, end)
    return space if space > 0 else end


def _limit(config: object, name: str) -> int:
    """The most positions of a model, or so many that nothing comes near."""
    return int(getattr(config, name, None) or getattr(config, "max_position_embeddings", None) or 1 << 20)
