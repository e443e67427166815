"""A thousand requests by schemathesis and two hundred by a generator that knows the API, other ones in every run.

``make fuzz-gateway`` runs this; `make test` has shorter and fixed ones. ``VEIL_SEED=7 make fuzz-gateway`` makes a run again.
Every answer is JSON in OpenAI's shape, and no status is 500 or above but 503.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from transformers import BertConfig, BertModel

from gateway.test_random_requests import Maker, check, strict

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("VEIL_SEED") or secrets.randbelow(2**31))
REQUESTS = 1_000
PLANNED = 1_200  # some paths have fewer different requests than they are asked for
KNOWING = 200
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NEEDED = {"model", "messages", "prompt", "input", "tokens"}
SHARES = {
    "/v1/chat/completions": 6,
    "/v1/completions": 4,
    "/v1/embeddings": 3,
    "/tokenize": 3,
    "/detokenize": 2,
    "/veil/expect": 1,
    "/v1/models/{model}": 1,
}
"""How the requests are shared out among the paths."""


@pytest.fixture(scope="module")
def encoder_running(serve_model: Callable[..., Any], listen: Callable[..., Any], byte_tokenizer: Any) -> Iterator[Any]:
    """A gateway with a small encoder over bytes, the model ``bytes`` too."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=264, max_position_embeddings=64, **sizes), add_pooling_layer=False).eval()
    served = serve_model(model, byte_tokenizer, name="bytes", mode="disable")
    with listen(served) as made:
        yield made
    served.hybrid.close()


def test_a_thousand_requests_of_the_schema(bytes_running: Any, encoder_running: Any) -> None:
    """Right and wrong ones of each path by turns; most right ones name the model, so that they get further."""
    statuses: Counter[tuple[str, int]] = Counter()
    for path, share in SHARES.items():
        running = encoder_running if path == "/v1/embeddings" else bytes_running
        document = httpx.get(f"{running.url}/openapi.json", timeout=60).json()
        known: Any = GenerationMode  # iterable by a metaclass that declares no types
        modes = [mode for mode in known if (path, mode.value) != ("/v1/models/{model}", "negative")]
        for mode in modes:
            count = -(-PLANNED * share // sum(SHARES.values()) // len(modes))
            statuses.update((path, status) for status in ask(running, document, path, mode, count))
    print(f"seed {SEED}: {sum(statuses.values())} requests, {dict(statuses)}")
    assert sum(statuses.values()) >= REQUESTS
    for path in SHARES:
        assert statuses[path, 200] + statuses[path, 202] > 0 or path == "/v1/models/{model}", f"{path} was never answered"
    assert bytes_running.idle() and encoder_running.idle()


def ask(running: Any, document: Any, path: str, mode: Any, count: int) -> list[int]:
    """Make ``count`` requests of a path, check every answer, and give their statuses."""
    schema = schemathesis.openapi.from_dict(document)
    made = list(schema.get_all_operations())
    assert all(isinstance(one, Ok) for one in made)
    (operation,) = [one.ok() for one in made if isinstance(one, Ok) and one.ok().path == path]
    statuses: list[int] = []

    @seed(SEED)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body and len(case.body) % 4:
            few = sorted(set(case.body) - NEEDED)[: len(statuses) % 4]  # with many fields, two always contradict each other
            case.body = {name: case.body[name] for name in case.body if name in NEEDED or name in few} | {"model": "bytes"}
            case.body |= {"max_tokens": 2} if path.endswith("completions") else {}
        response = case.call(base_url=running.url, timeout=60)
        statuses.append(response.status_code)
        case.validate_response(response, checks=CHECKS)
        assert response.status_code < 500 or response.status_code == 503, response.text
        if response.headers["content-type"][0].startswith("text/event-stream"):
            events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
            assert events.pop() == "[DONE]"
            assert not [event for event in map(strict, events) if "error" in event]
        else:
            body = strict(response.text)
            assert response.status_code < 400 or (body["error"]["message"] and body["error"]["type"]), body

    one()
    return statuses


def test_two_hundred_requests_that_know_the_api(bytes_running: Any) -> None:
    maker, statuses = Maker(SEED), Counter[int]()
    with httpx.Client(base_url=bytes_running.url, timeout=120) as http:
        for place in range(KNOWING):
            path, body = maker.request()
            reply = http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
            try:
                check(path, body, reply)
            except BaseException as error:
                told = f"VEIL_SEED={SEED}, request {place}, {path}: {json.dumps(body)[:2000]}\n{reply.text[:2000]}"
                raise AssertionError(told) from error
            statuses[reply.status_code] += 1
    print(f"seed {SEED}: {dict(statuses)}")
    assert statuses[200] > KNOWING // 4, statuses
    assert bytes_running.idle()
