"""Types that several rooms share: parsed JSON, and what is used of the objects that transformers makes.

transformers' own declarations differ from one minor version to the next; these name the part that veil needs of them.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import GenerationConfig

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
"""What JSON can hold, parsed."""


Conversations: TypeAlias = "Sequence[Mapping[str, object]] | Sequence[Sequence[Mapping[str, object]]]"
"""A chat's turns, or several chats."""


class Config(Protocol):
    """A model's configuration."""

    architectures: list[str] | None
    dtype: torch.dtype
    hidden_size: int
    is_encoder_decoder: bool
    rope_parameters: dict[str, object]
    vocab_size: int
    _name_or_path: str

    def get_text_config(self, decoder: bool = False, encoder: bool = False) -> Config:
        """The part that describes a language model, where the model reads more than text; else itself."""

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json``."""

    def to_dict(self) -> dict[str, object]:
        """All settings by name."""


class Tokenizer(Protocol):
    """What turns text into token ids and back."""

    chat_template: str | dict[str, str] | None
    eos_token_id: int | None
    pad_token_id: int | None
    added_tokens_decoder: Mapping[int, object]
    special_tokens_map: dict[str, str]

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, Sequence[int]]:
        """``input_ids`` and ``attention_mask`` of a text."""

    def apply_chat_template(self, conversation: Conversations, **options: object) -> Any:
        """A chat's text, its token ids, or these by name, as the options ``tokenize`` and ``return_dict`` say."""

    def convert_ids_to_tokens(self, ids: int) -> str | None:
        """A piece of the vocabulary."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""

    def get_chat_template(self, chat_template: str | None, tools: Sequence[object] | None) -> str:
        """The template by name or by what a chat needs; `ValueError` without one."""

    def get_vocab(self) -> dict[str, int]:
        """The number of each piece."""

    def save_pretrained(self, folder: Path) -> object:
        """Write the tokenizer's files."""


class Processor(Protocol):
    """What turns text and pictures into a model's inputs."""

    tokenizer: Tokenizer

    def __call__(
        self, *, text: list[str], images: Sequence[object], return_tensors: str, add_special_tokens: bool
    ) -> MutableMapping[str, torch.Tensor]:
        """Inputs of the model by name."""

    def save_pretrained(self, folder: Path) -> object:
        """Write its files, and its tokenizer's."""


if TYPE_CHECKING:

    class LanguageModel(nn.Module):
        """A model of transformers that generates text. To the type checker only: no class has this one as its base."""

        base_model_prefix: str
        config: Config
        device: torch.device
        dtype: torch.dtype
        generation_config: GenerationConfig
        main_input_name: str

        @classmethod
        def _from_config(cls, config: Config) -> LanguageModel:
            """A model with random weights."""

        def save_pretrained(self, folder: str) -> None:
            """Write the model's files."""

        def can_generate(self) -> bool:
            """Whether `generate` is for this class."""

        def generate(self, *args: object, **options: object) -> Any:
            """Token ids [B, T] of prompts and answers, or with ``return_dict_in_generate`` an output that holds them."""
