"""Whatever reaches a remote layer belongs to a pass, however it was called: used rows are forgotten, modes are a call's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import IDS, SIZES, assert_near, bert, compiled, inputs, kept, llama, model_of, t5, two_layers
from torch import nn

from veil import HybridFHEModel
from veil.runtime.modules import linear_modules

TOKENS = 24
SETTINGS = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}


def with_adapters() -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    return peft.get_peft_model(llama(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


def t5_made() -> tuple[HybridFHEModel, Callable[[], Any]]:
    """Its encoder is called by itself, outside the model's forward. vllm #31577: such models' memory grew."""
    model = t5()
    hybrid = compiled(model, linear_modules(model), {"input_ids": IDS, "decoder_input_ids": IDS})
    return hybrid, lambda: model.generate(input_ids=IDS, **SETTINGS)


def peft_made() -> tuple[HybridFHEModel, Callable[[], Any]]:
    """`generate` of a PEFT model is that of the model within. Tried by hand."""
    model = with_adapters()
    return compiled(model, linear_modules(model), IDS), lambda: model.generate(input_ids=IDS, **SETTINGS)


def inner_made() -> tuple[HybridFHEModel, Callable[[], Any]]:
    """The model within a wrapper, called without the wrapper. Tried by hand."""
    inner = llama()
    wrapper = nn.Sequential(inner)
    hybrid = compiled(wrapper, [f"0.{name}" for name in linear_modules(inner)], IDS)
    return hybrid, lambda: inner.generate(input_ids=IDS, **SETTINGS)


def blocks_made() -> tuple[HybridFHEModel, Callable[[], Any]]:
    """A program of its own that calls the body, and then the head. Tried by hand."""
    model = llama()

    def decode() -> Any:
        ids = IDS
        for _ in range(TOKENS):
            hidden = model.model(ids[:, -4:]).last_hidden_state
            ids = torch.cat([ids, model.lm_head(hidden[:, -1:]).argmax(-1)], dim=1)
        return ids

    return compiled(model, linear_modules(model), IDS), decode


def encoder_made() -> tuple[HybridFHEModel, Callable[[], Any]]:
    model = bert()
    hybrid = compiled(model, linear_modules(model), IDS)

    def encode() -> Any:
        for _ in range(TOKENS):
            result = model(IDS).last_hidden_state
        return result

    return hybrid, encode


def causal_made() -> tuple[HybridFHEModel, Callable[[], Any]]:
    model = llama()
    return compiled(model, linear_modules(model), IDS), lambda: model.generate(input_ids=IDS, **SETTINGS)


Made = Callable[[], tuple[HybridFHEModel, Callable[[], Any]]]
KINDS: list[Made] = [t5_made, peft_made, inner_made, blocks_made, encoder_made, causal_made]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__[:-5])
def test_rows_that_were_used_are_forgotten_on_both_sides(
    make: Callable[[], tuple[HybridFHEModel, Callable[[], Any]]],
) -> None:
    """After one generation and after three more the same number of batches is kept, and no more than a pass may leave."""
    hybrid, generate = make()
    first = generate()
    own, others = kept(hybrid)
    assert own <= 3
    assert others <= own + 2
    for _ in range(2):
        again = generate()
    assert kept(hybrid)[0] <= 3
    assert kept(hybrid)[1] <= kept(hybrid)[0] + 2
    assert again.shape == first.shape
    hybrid.set_fhe_mode("disable")
    clear = generate()
    if clear.is_floating_point():
        assert_near(first, clear)
    else:
        assert (clear == first).float().mean() > 0.5  # near ties apart


def test_body_then_head_is_one_pass_of_rows() -> None:
    """The model without its head, then the head: a row each, not two."""
    model = llama()
    hybrid = compiled(model, linear_modules(model), IDS)
    model.lm_head(model.model(IDS).last_hidden_state)
    used = hybrid.stats.rows
    model(IDS)
    assert used == hybrid.stats.rows - used == IDS.numel()
    assert_near(model.lm_head(model.model(IDS).last_hidden_state), hybrid(IDS, fhe="disable").logits)


def test_an_encoder_is_asked_for_the_answer_that_is_current() -> None:
    """The check of the request before does not end the next one's encoder. Tried by hand: the second answer was empty."""
    hybrid, generate = t5_made()

    class Gone(Exception):
        pass

    def gone() -> None:
        raise Gone

    hybrid.cancel_check = gone
    with pytest.raises(Gone):
        generate()
    hybrid.cancel_check = None
    assert generate().shape[1] == TOKENS + 1


def test_the_mode_is_the_call_s() -> None:
    """Two threads, two modes, one model. Tried by hand: the mode was the model's, and changed under a running call."""
    model = two_layers()
    hybrid = compiled(model, ["0", "2"], inputs(64), "disable")
    x = inputs()
    with torch.no_grad():
        right = {mode: hybrid(x, fhe=mode) for mode in ("torch", "disable")}
    wrong: list[str] = []
    begin = threading.Barrier(3)

    def ask(mode: str) -> None:
        begin.wait(timeout=60)
        for _ in range(25):
            with torch.no_grad():
                got = hybrid(x, fhe=mode)
            exact = mode != "execute"
            same = torch.equal(got, right[mode]) if exact else not torch.equal(got, right["disable"])
            if not same:
                wrong.append(mode)

    threads = [threading.Thread(target=ask, args=(mode,), daemon=True) for mode in ("torch", "disable", "execute")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert hybrid.fhe_mode == "disable"


def test_threads_take_turns_with_whole_passes() -> None:
    """Logits of the last row for one thread, of all rows for another: neither gets the zeros of the other's rows."""
    model = model_of("LlamaForCausalLM", **SIZES, tie_word_embeddings=False)
    hybrid = compiled(model, linear_modules(model), IDS, "disable")
    whole, last = hybrid(IDS).logits, hybrid(IDS, logits_to_keep=1).logits
    wrong: list[float] = []

    def ask(options: dict[str, int], right: torch.Tensor) -> None:
        for _ in range(10):
            if not torch.allclose(hybrid(IDS, **options).logits, right, atol=1e-4):
                wrong.append(0.0)

    threads = [threading.Thread(target=ask, args=part, daemon=True) for part in (({}, whole), ({"logits_to_keep": 1}, last))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []
