"""`/v1/responses` through OpenAI's own client: words, streams, schemas, tools, and going on from an earlier response."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from veil.gateway.incoming import Message
from veil.gateway.responses.kept import KeptResponses

CLOCK: Any = {
    "type": "function",
    "name": "clock",
    "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
    "strict": False,
}


class Pet(BaseModel):
    """A pet."""

    fed: bool


@pytest.fixture
def client(bytes_running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{bytes_running.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_words_whole_and_streamed(client: openai.OpenAI, bytes_running: Any, script: Any) -> None:
    script(bytes_running, "good day", "good day")
    reply = client.responses.create(
        model="bytes", input="hi", instructions="be kind", max_output_tokens=20, metadata={"a": "b"}
    )
    assert (reply.output_text, reply.status, reply.metadata) == ("good day", "completed", {"a": "b"})
    assert reply.usage is not None and reply.usage.output_tokens == 9 and reply.usage.input_tokens > 9
    assert client.responses.retrieve(reply.id).output_text == "good day"
    events = list(client.responses.create(model="bytes", input="hi", max_output_tokens=20, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    words = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert words == "good day" and last.type == "response.completed" and last.response.output_text == words


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="bytes", input="hi", max_output_tokens=2)
    assert reply.status == "incomplete" and reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"


def test_a_schema_is_followed(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model="bytes", input="hi", text_format=Pet, max_output_tokens=60).output_parsed
    assert isinstance(parsed, Pet)
    with client.responses.stream(model="bytes", input="hi", text_format=Pet, max_output_tokens=60) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Pet)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_goes_back(
    client: openai.OpenAI, bytes_running: Any, script: Any, stream: bool
) -> None:
    call = {"name": "clock", "arguments": {"zone": "CET"}}
    script(bytes_running, f"Let me see. <tool_call>{json.dumps(call)}</tool_call>", "noon", "noon again")
    if stream:
        with client.responses.stream(model="bytes", input="time?", tools=[CLOCK]) as events:
            reply: Any = events.get_final_response()
    else:
        reply = client.responses.create(model="bytes", input="time?", tools=[CLOCK])
    words, made = reply.output
    assert (words.type, words.content[0].text.strip()) == ("message", "Let me see.")
    assert (made.type, made.name, json.loads(made.arguments), made.status) == (
        "function_call",
        "clock",
        {"zone": "CET"},
        "completed",
    )
    result: Any = {"type": "function_call_output", "call_id": made.call_id, "output": "12"}
    after = client.responses.create(model="bytes", input=[result], previous_response_id=reply.id)
    assert after.output_text == "noon" and after.previous_response_id == reply.id
    everything = [{"role": "user", "content": "time?"}, *(item.model_dump() for item in reply.output), result]
    again = client.responses.create(model="bytes", input=everything)
    assert again.output_text == "noon again"
    assert again.usage is not None and after.usage is not None
    assert again.usage.input_tokens == after.usage.input_tokens, "what is remembered is what a client would send"


def test_what_is_not_kept_cannot_be_continued(client: openai.OpenAI) -> None:
    for store in (True, False):
        reply = client.responses.create(model="bytes", input="hi", max_output_tokens=2, store=store)
        if store:
            client.responses.delete(reply.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(reply.id)
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="bytes", input="hi", previous_response_id=reply.id)
        assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


def test_responses_are_kept_apart_and_bounded() -> None:
    kept, turn = KeptResponses(most=2, most_bytes=1000), Message(role="user", content="x")
    kept.keep("a", {}, [turn], "one")
    assert kept.find("a", "one").turns == [turn]
    with pytest.raises(Exception, match="no response"):
        kept.find("a", "two")
    for name in "bc":
        kept.keep(name, {}, [turn], "one")
    with pytest.raises(Exception, match="no response"):
        kept.find("a", "one")
    kept.keep("d", {"text": "x" * 900}, [], "one")
    with pytest.raises(Exception, match="no response"):
        kept.find("c", "one")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input"),
        ({"extra_body": {"reasoning": {"effort": "high"}}}, "reasoning"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": []}, "input"),
    ],
    ids=str,
)
def test_refusals(client: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    settings: dict[str, Any] = {"model": "bytes", "input": "hi", "max_output_tokens": 2}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**settings | options)
    assert caught.value.param == param
