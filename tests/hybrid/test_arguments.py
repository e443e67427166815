"""Arguments of the public API that cannot be: one line that names them, before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import veil
from veil import HybridFHEModel, OfflineRows, Padding, Params, Terms, Timeouts

HERE = "127.0.0.1:1"
TRAINABLE: dict[str, Any] = {"trainable": "yes"}
DIGEST = "digest is 5, expected 64 hexadecimal digits"


def connect(*given: Any, **options: Any) -> Any:
    return HybridFHEModel.connect(*(given or (HERE, "half")), **options)


def tiny() -> HybridFHEModel:
    hybrid = HybridFHEModel(nn.Sequential(nn.Linear(6, 5)).eval(), "0")
    hybrid.compile_model(torch.ones(2, 6), params=Params.insecure_tiny(), device="cpu")
    return hybrid


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: connect(None, "half"), TypeError, "the server is None, expected HOST:PORT"),
    (lambda: connect(8471, "half"), TypeError, "the server is 8471, expected HOST:PORT"),
    (lambda: connect(HERE, None), TypeError, "bundle is None, expected a path"),
    (lambda: connect(tls=5), TypeError, "tls is 5, expected a path"),
    (lambda: connect(token=5), TypeError, "token is 5, expected text, or None"),
    (lambda: connect(name=5), TypeError, "name is 5, expected the name of one of the server's bundles"),
    (lambda: connect(terms="reveal"), TypeError, r"terms is 'reveal', expected a veil\.Terms such as Terms\("),
    (lambda: connect(terms=None), TypeError, r"terms is None, expected a veil\.Terms"),
    (lambda: connect(offline_rows=48), TypeError, r"offline_rows is 48, expected a veil\.OfflineRows such as OfflineRows\("),
    (lambda: connect(timeouts=30), TypeError, r"timeouts is 30, expected a veil\.Timeouts"),
    (lambda: veil.connect(None), TypeError, "the server is None, expected HOST:PORT"),  # type: ignore[arg-type]
    (lambda: HybridFHEModel.load(None), TypeError, "bundle is None, expected a path"),  # type: ignore[arg-type]
    (lambda: HybridFHEModel.load("half", terms="x"), TypeError, r"terms is 'x', expected"),  # type: ignore[arg-type]
    (lambda: veil.load_model(None), TypeError, "source is None, expected a path"),  # type: ignore[arg-type]
    (lambda: veil.Server.open(None), TypeError, "bundles is None, expected a path"),  # type: ignore[arg-type]
    (lambda: veil.fidelity(None, []), TypeError, r"hybrid is a NoneType, expected a compiled veil\.HybridFHEModel"),  # type: ignore[arg-type]
    (lambda: veil.fidelity(tiny(), [torch.ones(3)]), TypeError, r"a list of tensors \[1, T\]"),
    (lambda: Terms(digest=5), TypeError, DIGEST),  # type: ignore[arg-type]
    (lambda: Terms(no_cryptography=1), TypeError, "no_cryptography is 1, expected True or False"),  # type: ignore[arg-type]
    (lambda: OfflineRows(tokens="many"), TypeError, "tokens is 'many', expected a whole number"),  # type: ignore[arg-type]
    (lambda: OfflineRows(memory_mib=-1), ValueError, "memory_mib is -1, expected 0 or more"),
    (lambda: Timeouts(reply_s=0), ValueError, "reply_s is 0, expected seconds above 0"),
    (lambda: Timeouts(connect_s="1"), TypeError, "connect_s is '1', expected a number of seconds"),  # type: ignore[arg-type]
    (lambda: Padding(step="64"), TypeError, "the step of a padding is '64', expected a whole number"),  # type: ignore[arg-type]
    (lambda: Padding(powers="yes"), TypeError, "powers is 'yes', expected True or False"),  # type: ignore[arg-type]
    (lambda: tiny().speculate(5), TypeError, "speculating is for models that generate text; a Sequential has no generate"),
    (lambda: tiny().save(None), TypeError, "path is None, expected a path"),  # type: ignore[arg-type]
    (lambda: tiny().expect("a", 1), TypeError, "prompt_rows is 'a', expected a whole number"),  # type: ignore[arg-type]
    (lambda: tiny().expect(1, -1), ValueError, "new_tokens is -1, expected 0 or more"),
    (lambda: tiny().check_answers(5), TypeError, "against is 5, expected the name of a model"),  # type: ignore[arg-type]
    (
        lambda: setattr(tiny(), "padding", 64),
        TypeError,
        r"padding is 64, expected a veil\.Padding such as Padding\(step=64\)",
    ),
    (lambda: tiny().compile_model(torch.ones(2, 6), **TRAINABLE), TypeError, "trainable is 'yes', expected True or"),
]


@pytest.mark.parametrize(
    ("use", "error", "said"), WRONG, ids=[f"{number}-{one[2][:24]}" for number, one in enumerate(WRONG)]
)
def test_what_cannot_be_is_told_in_a_line(use: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        use()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("draft", "most", "error", "said"),
    [
        (5, 16, TypeError, "draft is a int, expected 'lookup' or a small transformers model"),
        (None, 16, TypeError, "draft is a NoneType, expected"),
        ("fast", 16, ValueError, "the draft is 'fast', expected 'lookup' or a model"),
        ("lookup", 0, ValueError, "most is 0, expected 1 or more"),
        ("lookup", "16", TypeError, "most is '16', expected a whole number"),
    ],
)
def test_drafts_that_cannot_be(draft: Any, most: Any, error: type[Exception], said: str, tiny_llama: Any) -> None:
    hybrid = HybridFHEModel(tiny_llama, "lm_head")
    hybrid.compile_model(torch.tensor([[1, 7, 9]]), params=Params.insecure_tiny(), device="cpu")
    with pytest.raises(error, match=said):
        hybrid.speculate(draft, most=most)


def test_attributes_are_checked_where_they_are_used(tmp_path: Path) -> None:
    """They are plain attributes, set before the first pass."""
    for name, value, said in (
        ("offline_rows", 48, r"offline_rows is 48, expected a veil\.OfflineRows"),
        ("hints", 5, "hints is 5, expected a path"),
        ("cancel_check", 5, "cancel_check is 5, expected a function without arguments or None"),
    ):
        hybrid = tiny()
        setattr(hybrid, name, value)
        with pytest.raises(TypeError, match=said):
            hybrid(torch.ones(2, 6), fhe="execute")
    hybrid = tiny()
    hybrid.hints = str(tmp_path)  # type: ignore[assignment]
    assert hybrid(torch.ones(2, 6), fhe="execute").shape == (2, 5)
    hybrid.close()
