"""Pictures through the gateway, by a LLaVA with random weights: data URLs go in, addresses are refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from veil.gateway.pictures import Sight
from veil.sources.processors import processor_in


def data_url(colour: str, size: tuple[int, int] = (20, 30), kind: str = "PNG") -> str:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]}


def ask(gateway: Any, *messages: dict[str, Any], **options: Any) -> Any:
    body = {"model": "llava", "messages": list(messages), "temperature": 0, "max_tokens": 6} | options
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=30).json()


def words(reply: Any) -> str:
    return str(reply["choices"][0]["message"]["content"])


@pytest.fixture
def fresh(seeing: Any) -> Any:
    seeing.gateway.generator.forget()
    return seeing


def test_a_picture_goes_into_the_model_as_its_processor_makes_it(fresh: Any) -> None:
    served = fresh.gateway.served
    red = Image.new("RGB", (20, 30), "red")
    prompt = served.sight.prompt("<|user|>What is <image>?<|end|><|reply|>", [red])
    ids = torch.tensor([list(prompt)])
    made = served.net.generate(input_ids=ids, **prompt.inputs, attention_mask=torch.ones_like(ids), max_new_tokens=6)
    wanted = served.tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True)
    reply = ask(fresh, user("What is ", picture(data_url("red")), "?"))
    assert words(reply) == wanted
    assert reply["usage"]["prompt_tokens"] == len(prompt) == len("What is ?") + 4 + 3, "four tokens of the picture"


def test_pictures_are_encrypted_like_words(fresh: Any, llava_processor: Any, serve_model: Any) -> None:
    """A pass is planned with zeros, but for the tokens in whose places pictures go: without them it fails."""
    from gateway.llava import make_llava

    clear = fresh.gateway.served
    model = make_llava(llava_processor.tokenizer.convert_tokens_to_ids("<image>"))
    served = serve_model(model, llava_processor.tokenizer, name="llava")
    try:
        prompt = clear.sight.prompt("<|user|>What is <image>?<|end|>", [Image.new("RGB", (20, 30), "red")])
        ids = torch.tensor([list(prompt)])
        with torch.no_grad():
            wanted, found = (one.net(input_ids=ids, **prompt.inputs).logits for one in (clear, served))
        assert served.hybrid.stats.rows > 0
        torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)
    finally:
        served.hybrid.close()


def test_another_picture_is_another_prompt(fresh: Any) -> None:
    red = ask(fresh, user(picture(data_url("red")), "Colour?"), logprobs=True)
    blue = ask(fresh, user(picture(data_url("blue")), "Colour?"), logprobs=True)
    assert blue["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "the tokens are the same, the state is not"
    first, second = (reply["choices"][0]["logprobs"]["content"][0]["logprob"] for reply in (red, blue))
    assert first != pytest.approx(second, abs=1e-4)


def test_a_conversation_about_a_picture_goes_on_without_sending_it_again(fresh: Any) -> None:
    first = user(picture(data_url("red")), "Colour?")
    answer = {"role": "assistant", "content": words(ask(fresh, first))}
    again = ask(fresh, first, answer, user("Sure?"))
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 10
    fresh.gateway.generator.forget()
    whole = ask(fresh, first, answer, user("Sure?"))
    assert words(again) == words(whole)


def test_texts_alone_and_several_pictures(fresh: Any) -> None:
    assert words(ask(fresh, {"role": "user", "content": "Hello \ufffc"})), "the sign for an object is no picture"
    two = user(picture(data_url("red")), " or ", picture(data_url("blue", kind="JPEG")))
    assert ask(fresh, two)["usage"]["prompt_tokens"] == len(" or ") + 2 * 4 + 3


@pytest.mark.parametrize(
    "part",
    [
        picture("https://example.org/cat.png"),
        picture("file:///etc/passwd"),
        picture("data:text/html;base64,PGI+"),
        picture(data_url("red")[:60]),
        picture("data:image/png;base64,???"),
        picture("data:image/png;base64,aGVsbG8="),
        picture(data_url("red", (8000, 5000))),
        picture(None),
        {"type": "input_audio", "input_audio": {"data": ""}},
    ],
)
def test_what_is_no_picture_is_refused(fresh: Any, part: dict[str, Any]) -> None:
    error = ask(fresh, user("What is this?", part))["error"]
    assert error["param"] == "messages"
    assert "Traceback" not in error["message"]


def test_other_apis_see_too(fresh: Any) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": data_url("red").split(",")[1]}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "Colour?"}]
    body = {"model": "llava", "max_tokens": 3, "messages": [{"role": "user", "content": content}]}
    assert httpx.post(f"{fresh.url}/v1/messages", json=body).json()["usage"]["input_tokens"] == len("Colour?") + 4 + 3
    parts = [{"type": "input_image", "image_url": data_url("red")}, {"type": "input_text", "text": "Colour?"}]
    body = {"model": "llava", "max_output_tokens": 16, "input": [{"role": "user", "content": parts}]}
    assert httpx.post(f"{fresh.url}/v1/responses", json=body).json()["usage"]["input_tokens"] == len("Colour?") + 4 + 3


def test_models_say_whether_they_see(fresh: Any, running: Any) -> None:
    (card,) = httpx.get(f"{fresh.url}/v1/models").json()["data"]
    assert card["images"] is True
    (card,) = httpx.get(f"{running.url}/v1/models").json()["data"]
    assert card["images"] is False
    reply = httpx.post(
        f"{running.url}/v1/chat/completions", json={"model": "tiny", "messages": [user(picture(data_url("red")))]}
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_value")


def test_a_bundle_carries_the_processor(seeing: Any, llava_processor: Any, tmp_path: Path) -> None:
    served = seeing.gateway.served
    llava_processor.save_pretrained(tmp_path)
    found = processor_in(tmp_path, served.net.config)
    assert found is not None
    red = Image.new("RGB", (20, 30), "red")
    text = "<|user|><image><|end|>"
    assert Sight(found, served.net.config).prompt(text, [red]) == served.sight.prompt(text, [red])


def test_a_processor_that_blows_pictures_up_is_not_used(
    seeing: Any, llava_processor: Any, tmp_path: Path, caplog: Any
) -> None:
    llava_processor.save_pretrained(tmp_path)
    settings = tmp_path / "processor_config.json"
    settings.write_text(settings.read_text().replace('"shortest_edge": 16', '"shortest_edge": 100000'))
    assert processor_in(tmp_path, seeing.gateway.served.net.config) is None
    assert "100000 pixels a side" in caplog.text
    settings.write_text("{")
    assert processor_in(tmp_path, seeing.gateway.served.net.config) is None


@pytest.mark.parametrize("kind", ["idefics", "qwen"])
def test_other_families_see_and_do_not_mix_their_callers_up(
    kind: str, serve_model: Any, listen: Any, new_byte_tokenizer: Any
) -> None:
    """Positions after a picture depend on its size, and Qwen-VL keeps that in the model: another's chat comes in between."""
    from gateway import other_sights

    tokenizer = new_byte_tokenizer()
    model, processor = getattr(other_sights, f"make_{kind}")(tokenizer)
    tokenizer.chat_template = processor.chat_template
    served = serve_model(model, tokenizer, name="llava", mode="disable")
    served.see(processor)
    options: Any = {"ignore_eos": True, "max_tokens": 12}
    red, blue = user(picture(data_url("red", (16, 16))), "What?"), user(picture(data_url("blue", (32, 16))), "And this?")
    with listen(served) as gateway:
        answers = [words(ask(gateway, one, **options)) for one in (red, blue)]
        assert answers[0] != answers[1]
        follow = [red, {"role": "assistant", "content": answers[0]}, {"role": "user", "content": "More?"}]
        going = words(ask(gateway, *follow, **options))
        gateway.gateway.generator.forget()
        assert words(ask(gateway, *follow, **options)) == going, "the same as from the beginning"
        assert words(ask(gateway, red, **options)) == answers[0]
    served.hybrid.close()


@pytest.mark.slow
def test_memory_stays_level_over_many_pictures(llava_processor: Any, serve_model: Any, listen: Any) -> None:
    """125 questions about pictures, each another one; after the first 25 nothing more is kept."""
    from gateway.llava import make_llava
    from situations.small import kept
    from situations.test_gateway_memory import ROOM, resident

    served = serve_model(
        make_llava(llava_processor.tokenizer.convert_tokens_to_ids("<image>")), llava_processor.tokenizer, name="llava"
    )
    served.see(llava_processor)
    before = (0, 0, 0)
    with listen(served) as running:
        for number in range(125):
            red, green = divmod(number, 16)
            assert words(ask(running, user(picture(data_url(f"rgb({16 * red},{16 * green},7)")), "Colour?")))
            if number == 25:
                before = (*kept(served.hybrid), resident())
        own, others = kept(served.hybrid)
        now = resident()
    served.hybrid.close()
    assert own <= before[0] + 2 and others <= before[1] + 2
    assert now <= before[2] + ROOM
