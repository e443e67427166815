"""Files of a malicious half that are read and not run: they reach nobody, end, and fail in one line."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veil.bundle.terms import Terms
from veil.errors import BundleError, ModelSourceError
from veil.runtime import few_modules as module_limit
from veil.runtime import saved_model
from veil.runtime.saved_model import load_client
from veil.sources import templates

WEAK = Terms(no_cryptography=True)


def with_settings(name: str, **fields: object) -> Callable[[Path], None]:
    """A change of a half: fields of one of its files."""

    def change(half: Path) -> None:
        path = half / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


# Settings that name a repository --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [True, False])
def test_a_half_does_not_have_its_user_seen_by_a_repository(
    rule: bool, llama: Any, forged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns it would see who opens the half and when, and could give each another configuration."""
    bad = forged(llama, with_settings("config.json", model_type="detr", backbone="evil/tracker", use_timm_backbone=False))
    asked: list[object] = []

    def nobody(host: object, *rest: object, **options: object) -> None:
        asked.append(host)
        raise OSError("there is no network in a test")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    if not rule:
        monkeypatch.setattr(saved_model, "without_hub", contextlib.nullcontext)
    with pytest.raises(BundleError):
        load_client(bad.path / "client", WEAK)
    assert bool(asked) is not rule


def test_the_hub_can_be_asked_again_afterwards(llama: Any) -> None:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    load_client(llama.path / "client", WEAK)
    assert constants.HF_HUB_OFFLINE is before


# Layers without end ---------------------------------------------------------------------------------------------------


def test_layers_without_end_are_one_error(llama: Any, forged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    bad = forged(llama, with_settings("config.json", num_hidden_layers=10**9, layer_types=None))
    monkeypatch.setattr(module_limit, "_MOST_WITHOUT", 500)
    with pytest.raises(BundleError, match="many more layers than the half has"):
        load_client(bad.path / "client", WEAK)


def test_without_the_rule_they_are_made(llama: Any, forged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit into this test; the half has one for each of its tensors."""
    bad = forged(llama, with_settings("config.json", num_hidden_layers=200, layer_types=None))
    monkeypatch.setattr(saved_model, "few_modules", lambda *_: contextlib.nullcontext())
    with pytest.raises(BundleError, match=r"layers\.\d+\.\S+ is missing|without weights|cannot be read"):
        load_client(bad.path / "client", WEAK)


# A tokenizer that panics ----------------------------------------------------------------------------------------------

SPLIT = {"type": "Split", "pattern": {"Regex": r"(?:\w|\w)*\W?[!]x"}, "behavior": "Isolated", "invert": False}
"""Tries 2^n ways to read a word of n letters; the library gives up by a panic, which is no `Exception`."""
WORD = "w" * 32 + " !y"


def test_a_pattern_that_never_ends_is_one_error(
    llama: Any, forged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = forged(llama, with_settings("tokenizer/tokenizer.json", pre_tokenizer=SPLIT))
    tokenizer = load_client(bad.path / "client", WEAK).tokenizer
    assert tokenizer is not None
    turns = [{"role": "user", "content": WORD}]
    for attempt in (lambda: tokenizer(WORD), lambda: tokenizer.apply_chat_template(turns)):
        with pytest.raises(ModelSourceError, match="tokenizer's own code fails for this text; use a model with another"):
            attempt()
    monkeypatch.setattr(templates, "THAT_PANIC", frozenset())
    unruled = load_client(bad.path / "client", WEAK).tokenizer
    assert unruled is not None
    with pytest.raises(BaseException, match="retry-limit") as caught:
        unruled(WORD)
    assert not isinstance(caught.value, Exception), "no handler of errors would see it"
