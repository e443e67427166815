"""PEFT adapters around remote layers: made for training, loaded and switched at inference. They stay with the client."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from torch import nn

from veil.errors import ModelSourceError, one_line
from veil.given import named_given

if TYPE_CHECKING:
    from veil.typing import LanguageModel

_INSTALL = "adapters need the peft package; pip install 'veil-llm[train]'"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """A LoRA adapter: ``rank``, ``alpha``, ``dropout``, and the last parts of the names of the layers that get one.

    Without ``targets`` those that peft knows for the model's architecture, else its attention's projections.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()


def require_peft() -> ModuleType:
    """The peft package; `ModelSourceError` says how to install it."""
    try:
        import peft
    except ImportError:
        raise ModelSourceError(_INSTALL) from None
    return peft


@contextmanager
def _as_it_is() -> Iterator[None]:
    """Without the warning that peft asks for a name that transformers will drop: no user can do anything about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def add_lora(model: nn.Module, settings: LoraSettings, name: str = "default", base: str | None = None) -> LanguageModel:
    """The model with a fresh LoRA adapter, as a PeftModel; ``base`` is the name of the model that its file will mention.

    Raises `ValueError` for targets that the model does not have.
    """
    peft = require_peft()
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) or None,
        task_type="SEQ_2_SEQ_LM" if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else "CAUSAL_LM",
    )
    try:
        with _as_it_is():
            adapted = peft.get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        raise ValueError(f"the adapter does not fit the model: {one_line(error)}") from None
    if base is not None:
        adapted.peft_config[name].base_model_name_or_path = base
    whole: LanguageModel = adapted
    return whole


class AdapterLayers(Protocol):
    """The layers of adapters in a model, as peft has them."""

    def enable_adapter_layers(self) -> None:
        """Let them answer."""

    def disable_adapter_layers(self) -> None:
        """Let the model answer without them."""


class Adapted(Protocol):
    """A model with adapters around its layers: what is used of a PeftModel."""

    base_model: AdapterLayers

    def load_adapter(self, folder: str, adapter_name: str) -> object:
        """Add an adapter of a folder."""

    def set_adapter(self, name: str, inference_mode: bool) -> None:
        """Choose the one that answers."""


@dataclass(eq=False)
class Adapters:
    """Adapters that were loaded around the layers of a model, by name; one at a time is in force, or none.

    Those of another kind than LoRA, DoRA, IA³ and their like, which change what layers compute, are refused.
    """

    model: nn.Module
    names: list[str] = field(default_factory=list)
    _around: Adapted | None = None
    _active: str | None = None

    def load(self, folder: Path, name: str | None = None) -> str:
        """Load an adapter in PEFT's format from a folder, under ``name`` or the folder's; its name. Not yet in force.

        Raises `ModelSourceError` for what is none, does not fit the model, or is of a kind that cannot be served.
        """
        peft = require_peft()
        name = name or folder.resolve().name.replace(".", "_")
        if name in self.names:
            raise ModelSourceError(f"two adapters are called {name!r}; rename a folder, or write NAME=FOLDER")
        if not (folder / "adapter_config.json").is_file():
            raise ModelSourceError(f"{folder} is no adapter (adapter_config.json is missing); make one with 'veil finetune'")
        try:
            config = peft.PeftConfig.from_pretrained(str(folder))
            if config.is_prompt_learning:
                raise ModelSourceError(f"{folder} is an adapter of prompts ({config.peft_type.value}); use it from Python")
            with _as_it_is():
                if self._around is None:
                    self._around = peft.PeftModel.from_pretrained(self.model, str(folder), adapter_name=name)
                else:
                    self._around.load_adapter(str(folder), adapter_name=name)
        except ModelSourceError:
            raise
        except Exception as error:  # a folder that somebody else made surfaces as errors of every kind
            raise ModelSourceError(f"the adapter in {folder} does not fit the model ({one_line(error)})") from None
        self.model.eval()
        self.names.append(name)
        self._active = name
        self.use(None)
        return name

    def use(self, name: str | None) -> None:
        """Put an adapter in force, or none: cheap, between two passes."""
        if name == self._active or self._around is None:
            return
        if name is None:
            self._around.base_model.disable_adapter_layers()
        else:
            self._around.base_model.enable_adapter_layers()
            self._around.set_adapter(name, inference_mode=True)
        self._active = name


def load_adapters(model: nn.Module, given: Sequence[str]) -> Adapters:
    """Load adapters that were given as ``FOLDER`` or ``NAME=FOLDER``; none is in force yet. Raises as `load` does."""
    adapters = Adapters(model)
    for text in given:
        name, folder = named_given(text, "NAME=FOLDER")
        adapters.load(Path(folder), name)
    return adapters
