"""A curious recorder and lengths: with padding it sees steps, in bytes and order; without, how many tokens there are."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, StoppingCriteria, T5Config, T5ForConditionalGeneration

from veil import HybridFHEModel, Terms, linear_modules
from veil.client.background import BackgroundMaker
from veil.client.connection import Address
from veil.client.session import OfflineRows
from veil.commands import generate
from veil.commands.prepared import GenerateRequest
from veil.errors import NotFiniteActivation
from veil.flag import Flag
from veil.gateway.account import Account, Cancelled
from veil.gateway.generation import Generator
from veil.gateway.sampling import Sampling
from veil.gateway.served import ServedModel
from veil.params import Params
from veil.runtime.padding import Padding
from veil.server.engine import Claim
from veil.server.row_io import RECEIVED
from veil.server.rows import RowAnswers
from veil.server.service import Service

STEP = Padding(step=8)
AHEAD = OfflineRows(tokens=0, prompt_rows=0)
SHORT, LONG = list(range(3, 6)), list(range(9, 17))
"""Prompts of 3 and of 8 tokens."""


def model_of(hybrid: HybridFHEModel) -> Any:
    """Its model, a class of transformers, which is untyped here."""
    return hybrid.model


class Recording:
    """All messages that a server gets and sends: rows (bytes in, bytes out), uploads, and ``order``, that of all of them."""

    def __init__(self) -> None:
        self.order: list[tuple[str, int]] = []
        self.rows: list[tuple[int, int]] = []
        self.uploads: list[int] = []
        self.announced: list[tuple[int, int]] = []


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """A server that writes down how long each message is."""
    made = Recording()
    ask, ask_usual, replied, prepare = RowAnswers.ask, RowAnswers.ask_usual, RowAnswers.replied, Service.prepare
    waiting: list[int] = []

    def asks(stream: RowAnswers, data: bytes) -> Any:
        waiting.append(len(data))
        return ask(stream, data)

    def asks_usual(stream: RowAnswers, own: Sequence[int], rows: Any) -> Any:
        found = ask_usual(stream, own, rows)
        if found is not None:  # else it is asked as any other
            waiting.append(own[RECEIVED])
        return found

    def replies(stream: RowAnswers, claim: Claim, nbytes: int) -> None:
        made.order.append(("rows", nbytes))
        made.rows.append((waiting.pop(0), nbytes))
        replied(stream, claim, nbytes)

    def prepares(service: Service, messages: Iterator[bytes], owner: str) -> Any:
        def each() -> Iterator[bytes]:
            for message in messages:
                made.order.append(("upload", len(message)))
                made.uploads.append(len(message))
                yield message

        return prepare(service, each(), owner)

    def expect(background: BackgroundMaker, prompt_rows: int, new_tokens: int) -> None:
        made.announced.append((prompt_rows, new_tokens))  # and no more: what is made for it first is a matter of moments

    monkeypatch.setattr(BackgroundMaker, "expect", expect)
    monkeypatch.setattr(RowAnswers, "ask", asks)
    monkeypatch.setattr(RowAnswers, "ask_usual", asks_usual)
    monkeypatch.setattr(RowAnswers, "replied", replies)
    monkeypatch.setattr(Service, "prepare", prepares)
    return made


class EndsAt(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Ends an answer after so many tokens."""

    def __init__(self, tokens: int, prompt: list[int]) -> None:
        self._length = tokens + len(prompt)

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= self._length)


@contextmanager
def connected(bundle: Any, serve: Callable[..., Any], padding: Padding | None) -> Iterator[Any]:
    with serve(bundle) as server:
        remote = bundle.connect(server.port, offline_rows=AHEAD)
        remote.padding = padding
        yield remote
        remote.close()


Use = Callable[[Any], object]


def view(bundle: Any, serve: Callable[..., Any], recording: Recording, padding: Padding | None, use: Use) -> Any:
    """What the server saw of one client's life, as nothing is made before it is waited for: then the order is no matter of
    moments.
    """
    recording.order.clear()
    recording.rows.clear()
    recording.uploads.clear()
    recording.announced.clear()
    with connected(bundle, serve, padding) as remote:
        use(remote)
    assert recording.rows
    return list(recording.rows), list(recording.order), list(recording.announced)


def generating(prompt: list[int], tokens: int, **options: Any) -> Use:
    def use(remote: Any) -> None:
        ids = torch.tensor([prompt])
        settings: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
        mask = torch.ones_like(ids)
        out = remote.model.generate(
            ids, attention_mask=mask, stopping_criteria=[EndsAt(tokens, prompt)], **(settings | options)
        )
        assert out.shape[1] == len(prompt) + tokens

    return use


@pytest.mark.parametrize("padding", [STEP, Padding(step=8, powers=True), Padding(step=8, whole_answers=True)])
def test_prompts_and_answers_of_one_step_look_the_same(
    padding: Padding, llama: Any, serve: Any, recording: Recording
) -> None:
    views = [view(llama, serve, recording, padding, use) for use in (generating(SHORT, 1), generating(LONG, 7))]
    assert views[0] == views[1]
    passes = 16 if padding.whole_answers else 8
    assert len(views[0][0]) == _calls(llama, passes)
    if padding is STEP:
        other = view(llama, serve, recording, padding, generating([*LONG, 3], 7))
        assert other != views[0], "another step"
        assert view(llama, serve, recording, None, generating(SHORT, 1)) != view(
            llama, serve, recording, None, generating(LONG, 7)
        ), "without padding they differ"


def _calls(bundle: Any, passes: int) -> int:
    """Messages of a prompt's pass, in which some layers are asked for earlier rows too, and of one-row passes."""
    groups = bundle.local.manifest.groups
    twice = sum(1 for group in groups if group.layers[-1].last_row and group.prompt_rows)
    return passes * len(groups) + twice


def test_the_answer_is_the_same_as_without(llama: Any, serve: Any, generated: Any, expected: list[int]) -> None:
    with connected(llama, serve, STEP) as remote:
        assert generated(remote) == expected
        assert generated(remote) == expected


def test_an_error_in_mid_answer_does_not_show(llama: Any, serve: Any, recording: Recording) -> None:
    """Also one in the middle of a pass."""

    def failing(remote: Any) -> None:
        layer = remote.model.model.layers[1].mlp
        calls = []

        def poison(module: Any, args: Any) -> Any:
            calls.append(1)
            return (args[0] * (torch.nan if len(calls) > rehearsals + 2 else 1),)

        rehearsals = 2
        handle = layer.register_forward_pre_hook(poison)
        with pytest.raises(NotFiniteActivation):
            generating(LONG, 7)(remote)
        handle.remove()

    assert view(llama, serve, recording, STEP, failing) == view(llama, serve, recording, STEP, generating(SHORT, 5))


def test_draft_tokens_and_answers_without_a_cache_are_refused(llama: Any, serve: Any, recording: Recording) -> None:
    with connected(llama, serve, STEP) as remote:
        with pytest.raises(ValueError, match="draft tokens show"):
            remote.speculate()
        for option in ({"prompt_lookup_num_tokens": 3}, {"use_cache": False}):
            with pytest.raises(ValueError, match="leave out"):
                generating(SHORT, 3, **option)(remote)
        with pytest.raises(ValueError, match="needs max_new_tokens"):
            remote.padding = Padding(whole_answers=True)
            generating(SHORT, 3, max_new_tokens=None, max_length=20)(remote)
        assert not recording.rows


def test_an_announced_prompt_shows_its_step_only(llama: Any, serve: Any) -> None:
    with connected(llama, serve, STEP) as remote:
        told: list[tuple[int, int]] = []
        remote.sides.remote.expect = lambda prompt_rows, new_tokens: told.append((prompt_rows, new_tokens))
        for rows in range(1, 17):
            remote.expect(rows, rows)
    assert told == [(8, 8)] * 8 + [(16, 16)] * 8


# Other models ---------------------------------------------------------------------------------------------------------


def in_process(model: Any, padding: Padding | None, **options: Any) -> HybridFHEModel:
    hybrid = HybridFHEModel(model, linear_modules(model))
    sample: dict[str, Any] = {"input_ids": torch.arange(1, 9).unsqueeze(0)}
    if model.config.is_encoder_decoder:
        sample["decoder_input_ids"] = sample["input_ids"]
    hybrid.compile_model(sample, params=Params.insecure_tiny(signal_db=60.0), device="cpu", **options)
    hybrid.set_fhe_mode("execute")
    hybrid.padding = padding
    return hybrid


def seen_of(hybrid: HybridFHEModel, asked: list[Any], prompts: list[Any], **options: Any) -> list[list[Any]]:
    views = []
    for prompt, tokens in zip(prompts, (1, 7), strict=True):
        ids = torch.tensor([prompt])
        asked.clear()
        if options:
            settings = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False}
            model_of(hybrid).generate(ids, attention_mask=torch.ones_like(ids), **(options | settings))
        else:
            hybrid.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        views.append(list(asked))
    return views


def encoder() -> Any:
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    return BertModel(config).eval()


def two_sided() -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=64, decoder_start_token_id=0, **sizes)).eval()


def test_an_encoders_texts_look_the_same(asked: list[Any]) -> None:
    hybrid = in_process(encoder(), STEP)
    views = seen_of(hybrid, asked, [[5], LONG])
    assert views[0] == views[1] and {rows for _, rows in views[0]} == {8, 1}
    vectors = [hybrid(input_ids=torch.tensor([LONG])).last_hidden_state]
    hybrid.padding = None
    vectors.append(hybrid(input_ids=torch.tensor([LONG])).last_hidden_state)
    assert torch.allclose(vectors[0], vectors[1], atol=0.05)
    views = seen_of(hybrid, asked, [[5], LONG])
    assert views[0] != views[1]


def test_a_model_with_an_encoder_and_a_decoder(asked: list[Any]) -> None:
    hybrid = in_process(two_sided(), STEP)
    views = seen_of(hybrid, asked, [SHORT, LONG], eos_token_id=None)
    assert views[0] == views[1][: len(views[0])] and len(views[0]) > 0
    hybrid.padding = Padding(step=8)
    with_limit = []
    for prompt, tokens in ((SHORT, 2), (LONG, 7)):
        ids = torch.tensor([prompt])
        asked.clear()
        ends = EndsAt(tokens + 1, [])  # the decoder begins with a token of its own
        model_of(hybrid).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, stopping_criteria=[ends])
        with_limit.append(list(asked))
    assert with_limit[0] == with_limit[1]


def test_fused_norms_and_a_first_prompt_of_one_token(asked: list[Any], new_model: Callable[[str], Any]) -> None:
    hybrid = in_process(new_model("llama"), Padding(step=8, whole_answers=True), fuse_norms="on")
    assert hybrid.is_fused
    views = []
    for prompt, tokens in (([5], 2), (LONG, 5)):
        ids = torch.tensor([prompt])
        asked.clear()
        model_of(hybrid).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            stopping_criteria=[EndsAt(tokens, prompt)],
        )
        views.append(list(asked))
    assert views[0] == views[1]


def test_revealed_experts_cannot_be_padded(mixtral: Any, forged: Callable[..., Any]) -> None:
    def reveal(fields: dict[str, Any]) -> None:
        fields["experts"] = dict.fromkeys(fields["experts"], "reveal")

    terms = Terms(no_cryptography=True, expert_leak="reveal")
    hybrid = HybridFHEModel.load(forged(mixtral, header=reveal).path, terms=terms)
    hybrid.set_fhe_mode("execute")
    hybrid.padding = STEP
    with pytest.raises(ValueError, match="padding hides nothing where experts are revealed"):
        model_of(hybrid).generate(torch.tensor([SHORT]), max_new_tokens=2)


# The gateway ----------------------------------------------------------------------------------------------------------


def answering(tokenizer: Any, prompt: list[int], tokens: int, cancel_at: int = 0, **options: Any) -> Use:
    """One answer of a gateway's generator, stopped by a bias for the end after so many tokens; it may be cancelled."""

    def use(remote: Any) -> None:
        served = ServedModel("tiny", remote, tokenizer)
        generator, account, gone = Generator(served), Account(), Flag()
        pieces: list[Any] = []
        ends: list[Any] = []

        def emit(piece: Any) -> None:
            pieces.append(piece)
            if len(pieces) == cancel_at:
                gone.set()

        sampling = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True, **options)
        try:
            generator.answer(prompt, sampling, 0, account, gone, emit, over=ends.append)
        except Cancelled:
            assert cancel_at
        assert bool(ends) != bool(cancel_at)
        assert account.new_tokens <= 16

    return use


def test_a_gateways_answers_look_the_same_also_when_nobody_waits(
    llama: Any, serve: Any, recording: Recording, tiny_tokenizer: Any
) -> None:
    whole = Padding(step=8, whole_answers=True)
    uses = [
        answering(tiny_tokenizer, SHORT, 16),
        answering(tiny_tokenizer, LONG, 16, cancel_at=2),
        answering(tiny_tokenizer, LONG, 16, stop=("w",)),
    ]
    views = [view(llama, serve, recording, whole, use) for use in uses]
    assert views[0] == views[1] == views[2]
    shown = [view(llama, serve, recording, None, use) for use in uses]
    assert shown[0] != shown[1] != shown[2]


def test_a_conversation_sends_its_beginning_again(llama: Any, serve: Any, recording: Recording, tiny_tokenizer: Any) -> None:
    """How far a prompt repeats an earlier one does not show in a gateway."""

    def twice(second: list[int]) -> Use:
        def use(remote: Any) -> None:
            generator = Generator(ServedModel("tiny", remote, tiny_tokenizer))
            for prompt in (list(range(3, 27)), second):
                sampling = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
                generator.answer(prompt, sampling, 0, Account(), Flag(), lambda piece: None)

        return use

    same, other = list(range(3, 27)), list(range(27, 51))
    views = [view(llama, serve, recording, STEP, twice(prompt)) for prompt in (same, other)]
    assert views[0] == views[1]
    shown = [view(llama, serve, recording, None, twice(prompt)) for prompt in (same, other)]
    assert shown[0] != shown[1]


def test_nobody_waits_for_a_vector_any_more(asked: list[Any], tiny_tokenizer: Any) -> None:
    """A client that goes away in the middle of a pass does not end it where texts are padded."""
    hybrid = in_process(encoder(), STEP)
    generator = Generator(ServedModel("bert", hybrid, tiny_tokenizer))
    gone, views = Flag(), []
    for leaves in (False, True):
        asked.clear()
        gone.clear()
        layer = model_of(hybrid).encoder.layer[0].intermediate
        handle = layer.register_forward_pre_hook(lambda *_, leaves=leaves: gone.set() if leaves else None)
        if leaves:
            with pytest.raises(Cancelled):
                generator.embed(LONG, Account(), gone)
        else:
            generator.embed(SHORT, Account(), gone)
        handle.remove()
        views.append(list(asked))
    assert views[0] == views[1]


def test_a_command_announces_steps_only(
    llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is sent, and for several prompts at once by the longest one's step."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(BackgroundMaker, "expect", lambda self, *counts: told.append(counts))
    request = GenerateRequest(
        prompt="x", model="", bits=8, modules="linear", bundle=llama.path, mode="remote", device="cpu", max_new_tokens=2,
        temperature=0.0, top_p=1.0, seed=None, raw=True, terms=Terms(no_cryptography=True), padding=STEP,
    )  # fmt: skip
    for name, words in (("short", 2), ("long", 7)):
        lines = [json.dumps({"prompt": " ".join(["w1"] * count)}) for count in (1, words, 1)]
        (tmp_path / name).write_text("\n".join(lines))
    with serve(llama) as server:
        address = Address(target=f"127.0.0.1:{server.port}")
        for padding in (STEP, None):
            told.clear()
            for words in (2, 7):
                asked = replace(request, prompt=" ".join(["w1"] * words), server=address, padding=padding)
                generate.run(asked, as_json=True)
                generate.run(replace(asked, batch=tmp_path / ("short" if words == 2 else "long")), as_json=True)
            assert (told[:2] == told[2:]) == (padding is not None), told


# Templates ------------------------------------------------------------------------------------------------------------

SPELLING = "{% for m in messages %}{{ 'w1 ' * (m['content'][1:2] | int) }}{% endfor %}"
"""A malicious template: as many words as the prompt's secret says."""


def test_a_template_that_writes_the_prompt_into_the_number_of_rows(
    llama: Any, serve: Any, recording: Recording, tiny_tokenizer: Any
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = SPELLING

    def chatting(secret: str) -> Use:
        def use(remote: Any) -> None:
            served = ServedModel("tiny", remote, tokenizer)
            sampling = Sampling(max_tokens=2, temperature=0.0, ignore_eos=True)
            ids = served.chat_ids([("user", secret)])
            Generator(served).answer(ids, sampling, 0, Account(), Flag(), lambda piece: None)

        return use

    secrets = ("w3 w5", "w7 w2")
    views = [view(llama, serve, recording, STEP, chatting(secret)) for secret in secrets]
    assert views[0] == views[1]
    shown = [view(llama, serve, recording, None, chatting(secret)) for secret in secrets]
    assert shown[0] != shown[1], "the attack does not work without the rule either"
