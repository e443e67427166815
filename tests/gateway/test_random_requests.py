"""Two hundred requests by a generator that knows the API, right and wrong ones: every answer is JSON in OpenAI's shape."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

TEXTS = [
    "hi",
    "",
    " ",
    "é😀",
    "a" * 3000,
    "<|mark|>",
    "<|end|>",
    "\x00\x1b[31m",
    "\ufffd",
    "\u2028",
    '{"a": 1}',
    "\ud800",
    "ab\r\n",
]
NUMBERS = [0, 1, -1, 0.5, 2, 1e-38, 5e-324, 1e308, -0.0, 10**30, True, "1", float("nan"), float("inf"), None, [], {}]
SCHEMAS = [
    {},
    True,
    {"type": "object"},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
    {"enum": ["a", 1, None]},
    {"type": "string", "pattern": "^a+$"},
    {"anyOf": [{"type": "null"}, {"const": "é"}]},
    {"type": "string", "format": "date"},
    {"not": {}},
    {"type": 7},
    {"$ref": "#/$defs/x"},
    {"$ref": "#"},
]


class Maker:
    """Makes requests; mostly right ones, some with a value from the edge or beyond it."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def one(self, right: list[Any], wrong: list[Any] | None = None) -> Any:
        """Mostly a right value."""
        return self.draw.choice(wrong if wrong and self.draw.random() < 0.08 else right)

    def text(self) -> Any:
        return self.one(TEXTS, ["\ud800", 5, None])

    def content(self) -> Any:
        part = {"type": self.one(["text"], ["image_url", "refusal"]), "text": self.text()}
        return self.one([self.text(), self.text(), [part], [part, part]])

    def tool(self) -> Any:
        function = {"name": self.one(["f", "g"], ["a b", ""]), "strict": self.one([True, None])}
        function["parameters"] = self.one([{}, {"type": "object"}, None], SCHEMAS)
        return {"type": self.one(["function"], ["web_search"]), "function": function}

    def message(self) -> Any:
        call = {
            "id": "1",
            "type": "function",
            "function": {"name": "f", "arguments": self.one(["{}", '{"a": "é"}'], ["[]", "{"])},
        }
        role = self.one(["user", "assistant", "system", "tool", "developer"], ["nobody"])
        made = {"role": role, "content": self.content()}
        if role == "assistant" and self.draw.random() < 0.5:
            made |= {"tool_calls": [call], "content": self.one([None, "", "a"])}
        return made | self.one([{}, {}, {"name": "x"}, {"tool_call_id": "1"}, {"audio": None}], [{"audio": 1}])

    def sampling(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "temperature": self.one([0, 0.7, 2, 1e-38, 5e-324, -0.0, None, True, "1"], NUMBERS),
            "top_p": self.one([0, 0.5, 1, 1e-300, None], NUMBERS),
            "top_k": self.one([-1, 0, 5, 1000, 10**30], NUMBERS),
            "min_p": self.one([0, 0.1, 1, None], NUMBERS),
            "typical_p": self.one([0.5, 1, 1e-300], NUMBERS),
            "repetition_penalty": self.one([1.1, 0.01, 100], NUMBERS),
            "frequency_penalty": self.one([-2, 2, 0.1], NUMBERS),
            "presence_penalty": self.one([-2, 2, 0.1], NUMBERS),
            "n": self.one([1, 2, 3], [0, 17, "x"]),
            "stop": self.one(["a", ["a", "<|mark|>"], []], ["", ["a"] * 5, 5, "\ud800"]),
            "stop_token_ids": self.one([[], [1, 256]], [[264], [-1], 5]),
            "ignore_eos": self.one([True, False, None], [3]),
            "min_tokens": self.one([0, 2], [100, -1]),
            "seed": self.one([7, -7, 0, 2**63 - 1], NUMBERS),
            "logit_bias": self.one([{}, {"1": 5}, {"256": -100}], [{"x": 1}, {"1": 1e9}, {"999": 1}]),
            "stream": self.one([True, False, None], [5]),
            "user": self.one(["me", "", None], [5]),
            "veil": self.one([{"trace": True}, None], [{"x": 1}]),
            self.one(["guided_json", "json_schema"]): self.one(SCHEMAS[:2] * 2 + SCHEMAS, ["{", "{}"]),
            "guided_regex": self.one(["a+", "[é😀]{2}", ".*"], ["(", "", "a(?=b)"]),
            "guided_choice": self.one([["a", "b"], ["é"]], [[], [""]]),
            "grammar": self.one(['start: "a"', "root ::= [a-z]+"], ["start: x", ""]),
            "response_format": self.one([{"type": "text"}, {"type": "json_object"}, None], [{"type": "yaml"}, 5]),
            "metadata": self.one([{"a": "b"}], [{"a": 1}]),
            "store": self.one([False], [True]),
            "unknown": self.one([None], [1]),
        }
        return {name: fields[name] for name in self.draw.sample(list(fields), self.draw.randint(0, 4))}

    def request(self) -> tuple[str, Any]:
        chat = "/v1/chat/completions"
        path = self.one([chat, chat, "/v1/completions"], ["/v1/embeddings"])
        body: dict[str, Any] = {"model": self.one(["bytes"], ["other"])} | self.sampling()
        body |= {"max_tokens": self.one([3, 9, 10**30 if "guided_choice" in body else 3], [0])}
        if body.get("stream") is True:
            body |= {"stream_options": self.one([{"include_usage": True}, {}, None], [{"x": 1}])}
        if path == chat:
            body["messages"] = [self.message() for _ in range(self.draw.randint(1, 3))]
            body |= self.one([{}, {"logprobs": True, "top_logprobs": self.one([0, 20], [21])}], [{"top_logprobs": 1}])
            if self.draw.random() < 0.3:
                body |= {"tools": [self.tool()], "tool_choice": self.one(["auto", "required", "none", None], ["x", 5])}
            body |= self.one([{}, {"chat_template_kwargs": {"x": 1}}], [{"chat_template_kwargs": {"tokenize": 1}}])
        else:
            ids = self.one([[1, 2], [[1], [2]], ["a", "b"]], [[], [[]], [264], [1.5], ["a", 1], None])
            body["input" if path == "/v1/embeddings" else "prompt"] = self.one([self.text(), ids])
            body |= self.one([{}, {"logprobs": self.one([0, 5, 20], [21])}])
        return path, body


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def check(path: str, body: Any, reply: httpx.Response) -> None:
    if reply.status_code != 200:
        error = strict(reply.text)["error"]
        assert reply.status_code in (400, 404), (reply.status_code, error)
        assert error["message"] and error["type"] == "invalid_request_error", error
        return
    chat = path == "/v1/chat/completions"
    if reply.headers["content-type"].startswith("text/event-stream"):
        *events, done, rest = reply.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        found = [strict(event.removeprefix("data: ")) for event in events]
        assert not [event["error"] for event in found if "error" in event]
        model: Any = ChatCompletionChunk if chat else Completion
        ended = [choice["index"] for event in found for choice in event["choices"] if choice["finish_reason"]]
        for event in found:
            for choice in [] if chat else event["choices"]:
                choice["finish_reason"] = choice["finish_reason"] or "stop"  # OpenAI's own type has no null, its streams do
            model.model_validate(event)
    else:
        model = ChatCompletion if chat else CreateEmbeddingResponse if path == "/v1/embeddings" else Completion
        whole = model.model_validate(strict(reply.text))
        ended = [choice.index for choice in whole.choices]
    prompts = body.get("prompt")
    several = len(prompts) if isinstance(prompts, list) and not isinstance(prompts[0], int) else 1
    assert sorted(ended) == list(range(several * (body.get("n") or 1))), "every answer is there once, and ends"


def test_two_hundred_requests(bytes_running: Any) -> None:
    maker = Maker(5)
    statuses: dict[int, int] = {}
    with httpx.Client(base_url=bytes_running.url, timeout=60) as http:
        for place in range(200):
            path, body = maker.request()
            reply = http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
            try:
                check(path, body, reply)
            except BaseException as error:
                raise AssertionError(f"request {place}, {path}: {json.dumps(body)[:2000]}\n{reply.text[:2000]}") from error
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
    assert statuses[200] > 50, statuses
    assert bytes_running.idle()
