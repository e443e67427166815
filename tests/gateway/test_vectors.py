"""Vectors of a text model, and documents in the order of their nearness."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
import torch


@pytest.fixture
def http(running: Any) -> Any:
    with httpx.Client(base_url=running.url, timeout=20) as made:
        yield made


def mean_state(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        state = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].mean(0)
    return torch.nn.functional.normalize(state, dim=0)


def test_a_text_models_vectors_are_the_mean_of_its_last_states(http: Any, new_model: Any, tiny_tokenizer: Any) -> None:
    texts = ["w1 w2 w3", "w9"]
    reply = http.post("/v1/embeddings", json={"model": "tiny", "input": texts}).json()
    model = new_model("llama")
    for text, item in zip(texts, reply["data"], strict=True):
        expected = mean_state(model, tiny_tokenizer(text)["input_ids"])
        assert torch.nn.functional.cosine_similarity(torch.tensor(item["embedding"]), expected, dim=0) > 0.99
    assert reply["usage"]["veil"]["rows"] == 4, "one row for each token"


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_are_ordered_by_their_cosine(http: Any, path: str) -> None:
    documents: list[Any] = ["w9 w30", {"text": "w1 w2 w3"}, "w40"]
    body = {"model": "tiny", "query": "w1 w2 w3", "documents": documents, "top_n": 2, "return_documents": True}
    reply = http.post(path, json=body).json()
    assert reply["results"][0]["index"] == 1 and len(reply["results"]) == 2
    assert reply["results"][0]["document"] == {"text": "w1 w2 w3"}
    vectors = http.post("/v1/embeddings", json={"model": "tiny", "input": ["w1 w2 w3", "w9 w30", "w40"]}).json()["data"]
    query, *others = (np.asarray(item["embedding"]) for item in vectors)
    assert reply["results"][0]["relevance_score"] > 0.95
    assert abs(reply["results"][1]["relevance_score"] - max(query @ other for other in others)) < 0.05
    plain = http.post(path, json={"model": "tiny", "query": "w1", "documents": ["w1"]}).json()
    assert list(plain["results"][0]) == ["index", "relevance_score"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": ""}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["w1", ""]}, "documents"),
        ({"documents": [5]}, "documents"),
        ({"rank_fields": ["a"]}, "rank_fields"),
    ],
    ids=str,
)
def test_refusals(http: Any, change: dict[str, Any], param: str) -> None:
    reply = http.post("/v1/rerank", json={"model": "tiny", "query": "w1", "documents": ["w1"]} | change)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
