"""Whatever reaches a remote layer belongs to a pass, however it was called: used rows are forgotten, modes are a call's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import StoppingCriteria

from situations.small import IDS, SIZES, assert_near, bert, compiled, inputs, kept, llama, model_of, t5, two_layers
from veil import HybridFHEModel, Padding
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

    def ask(options: dict[str, Any], right: torch.Tensor) -> None:
        for _ in range(10):
            if not torch.allclose(hybrid(IDS, **options).logits, right, atol=1e-4):
                wrong.append(0.0)

    threads = [threading.Thread(target=ask, args=part, daemon=True) for part in (({}, whole), ({"logits_to_keep": 1}, last))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []


LATENT = SIZES | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
LATENT |= {"qk_nope_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 2}
LATENT |= {"moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}


def test_keys_that_are_computed_anew_from_a_smaller_cache() -> None:
    """DeepSeek keeps latents, and asks kv_b_proj for every earlier token. `bench families`: 'depends on the text'."""
    model = model_of("DeepseekV3ForCausalLM", **LATENT)
    hybrid = compiled(model, linear_modules(model), IDS)
    rows: list[int] = []
    router = hybrid.sides.router
    group = hybrid.manifest.by_layer["model.layers.1.self_attn.kv_b_proj"][0]
    router.observer = lambda asked, x, outputs: rows.append(len(x)) if asked == group else None
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    made = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **settings)
    assert rows == [4, 5, 6, 7, 8]
    hybrid.set_fhe_mode("disable")
    assert (made == model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **settings)).float().mean() > 0.7
    hybrid.set_fhe_mode("execute")
    hybrid.padding = Padding(step=8)
    with pytest.raises(ValueError, match=r"a row for every earlier token with each new one .*leave padding out"):
        model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **settings)


def test_an_input_that_is_missing_is_said_as_torch_says_it() -> None:
    """Tried by hand: a call without its argument was refused with 'what this model asks the server cannot be told'."""
    hybrid = compiled(two_layers(), ["0", "2"], inputs())
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'input'"):
        hybrid()


class EndsAt(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation at a length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        return torch.full((len(ids),), ids.shape[1] >= self._length)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_wrapped_models_are_padded_too() -> None:
    """Answers of a PEFT model: its passes are those of the model within, and are padded like them."""
    model = with_adapters()
    hybrid = compiled(model, linear_modules(model), IDS)
    hybrid.padding = Padding(step=8)
    settings = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    sent: list[int] = []
    for tokens in (2, 4):
        ids, before = IDS[:, :tokens], hybrid.stats.rows
        stop = EndsAt(2 * tokens)
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), stopping_criteria=[stop], **settings)
        sent.append(hybrid.stats.rows - before)
    assert sent[0] == sent[1] == 8 + 7
