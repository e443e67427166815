"""More of an assistant's turn: `continue_final_message`, in vLLM's name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

TEMPLATE = (
    "{% for m in messages %}{{ '<reply>' if m.role == 'assistant' else '<user>' }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)


@pytest.fixture(scope="module")
def gateway(new_model: Any, tiny_tokenizer: Any, serve_model: Any, listen: Any) -> Iterator[Any]:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    served = serve_model(new_model("llama"), tokenizer, mode="disable")
    with listen(served) as made:
        yield made
    served.hybrid.close()


def ask(gateway: Any, *messages: tuple[str, str], **options: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": role, "content": text} for role, text in messages], "temperature": 0}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body | options)


def answer(gateway: Any, *messages: tuple[str, str], **options: Any) -> str:
    return str(ask(gateway, *messages, **options).json()["choices"][0]["message"]["content"])


GOING = {"continue_final_message": True, "add_generation_prompt": False}


def test_the_rest_of_an_answer_follows_its_beginning(gateway: Any) -> None:
    whole = answer(gateway, ("user", "w23 w6"), max_tokens=8)
    begun = answer(gateway, ("user", "w23 w6"), max_tokens=3)
    assert whole.startswith(begun) and len(whole) > len(begun)
    rest = answer(gateway, ("user", "w23 w6"), ("assistant", begun), max_tokens=5, **GOING)
    assert begun + rest == whole, "the space between two words is part of the rest"


@pytest.mark.parametrize(
    ("messages", "options", "param"),
    [
        ([("user", "w1")], GOING, "continue_final_message"),
        ([("assistant", "w1")], {"continue_final_message": True}, "continue_final_message"),
        ([("user", "w1")], {"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(gateway: Any, messages: Any, options: Any, param: str) -> None:
    reply = ask(gateway, *messages, **options)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
