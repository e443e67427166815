"""schemathesis makes requests from the gateway's own OpenAPI document: none ends in a 500, and replies are as declared."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture
def document(running: Any) -> Any:
    return httpx.get(f"{running.url}/openapi.json").json()


def test_the_document_names_everything(document: Any) -> None:
    assert set(document["paths"]) == {
        "/v1/models",
        "/v1/models/{model}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/responses",
        "/v1/responses/{id}",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        "/health",
        "/version",
        "/metrics",
        "/veil/status",
        "/veil/expect",
        "/veil/prefill",
    }
    for methods in document["paths"].values():
        for method in methods.values():
            assert {"400", "401", "403", "429", "503"} <= set(method["responses"]) and "422" not in method["responses"]
            assert method["description"]


PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models/{model}",
    "/v1/rerank",
    "/v1/responses",
    "/v1/messages",
    "/veil/expect",
    "/tokenize",
    "/detokenize",
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", PATHS)
def test_no_request_ends_in_a_500(running: Any, document: Any, path: str, mode: Any) -> None:
    if mode is GenerationMode.NEGATIVE and path == "/v1/models/{model}":
        pytest.skip("every text is a model's name")
    schema = schemathesis.openapi.from_dict(document)
    made = list(schema.get_all_operations())
    assert all(isinstance(one, Ok) for one in made)
    (operation,) = [one.ok() for one in made if isinstance(one, Ok) and one.ok().path == path]
    statuses = set()

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            limit = {"/v1/responses": {"max_output_tokens": 2}, "/v1/rerank": {}}.get(path, {"max_tokens": 2})
            case.body |= {"model": "tiny", **limit}
        response = case.call(base_url=running.url, timeout=30)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    check()
    assert max(statuses) < 500
    if path == "/v1/completions" and mode is GenerationMode.POSITIVE:
        assert 200 in statuses, "some of the requests are answered"
