"""Speculation several tokens a pass: the same text, the same distribution, rows spent once, and a number that adapts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from comparing import used_rows
from veil import HybridFHEModel
from veil.params import Params
from veil.runtime.modules import select_modules
from veil.runtime.pace import Pace

TINY = Params.insecure_tiny(signal_db=60.0)
REPEATING = torch.tensor([[5, 9, 33, 17, 21, 40, 5, 9, 33, 17, 21, 40, 5, 9, 33]])
PROMPTS = [torch.randint(3, 60, (1, 4 + n), generator=torch.Generator().manual_seed(n)) for n in range(9)] + [REPEATING]


class Eager(Pace):
    """Draft tokens as many as it may, whatever happens."""

    def draft_tokens(self, ready: int, prepare_s: float) -> int:
        return self.most


@pytest.fixture(scope="module")
def hybrid(new_model: Callable[[str], Any]) -> HybridFHEModel:
    return compiled(new_model, "cpu")


def compiled(new_model: Callable[[str], Any], device: str) -> HybridFHEModel:
    model = new_model("llama").to(device)
    made = HybridFHEModel(model, select_modules(model, "linear"))
    made.compile_model(torch.arange(1, 25, device=device).unsqueeze(0), params=TINY, device=device, fuse_norms="on")
    return made


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.hybrid.generation.Pace", Eager)


def generated(hybrid: HybridFHEModel, prompt: torch.Tensor, count: int = 8, **options: Any) -> list[int]:
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": 2, "max_new_tokens": count} | options
    model: Any = hybrid.model
    prompt = prompt.to(model.device)
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    return [int(token) for token in output[0, prompt.shape[1] :]]


def draft_of(hybrid: HybridFHEModel, new_model: Callable[[str], Any], noise: float) -> Any:
    """The float model with noise on its weights: right sometimes."""
    draft = new_model("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for tensor in draft.parameters():
            tensor.data += noise * tensor.std() * torch.randn_like(tensor)
    return draft


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", ["lookup", "draft"])
def test_greedy_text_is_the_same(kind: str, hybrid: HybridFHEModel, new_model: Callable[[str], Any]) -> None:
    hybrid.set_fhe_mode("disable")
    hybrid.stats.reset()
    draft = "lookup" if kind == "lookup" else draft_of(hybrid, new_model, 0.2)
    for prompt in PROMPTS if kind == "lookup" else PROMPTS[-4:]:
        plain = generated(hybrid, prompt)
        with hybrid.speculate(draft, most=5) as options:  # ten prompts for the lookup, four for the draft
            assert generated(hybrid, prompt, **options) == plain
    assert 0 < hybrid.stats.accepted < hybrid.stats.drafted


@pytest.mark.usefixtures("eager")
def test_encrypted_draft_tokens_spend_each_row_once(new_model: Callable[[str], Any], device: str, calls: list[Any]) -> None:
    hybrid = compiled(new_model, device)
    hybrid.set_fhe_mode("disable")
    plain = generated(hybrid, REPEATING, 12)
    hybrid.set_fhe_mode("execute")
    hybrid.stats.reset()
    calls.clear()
    with hybrid.speculate(most=4) as options:
        assert generated(hybrid, REPEATING, 12, **options) == plain
    stats = hybrid.stats
    evaluated = [call for call in calls if call.method == "evaluate"]
    used = used_rows(calls)
    assert len(set(used)) == len(used)
    assert stats.trips == len(evaluated)
    passes = stats.trips // len(hybrid.manifest.groups)
    assert passes < 12
    assert stats.accepted == 12 - passes
    assert stats.rows == REPEATING.shape[1] + passes - 1 + stats.drafted
    assert generated(hybrid, REPEATING, 4) == plain[:4], "what follows is not disturbed"


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", ["lookup", "draft"])
def test_the_rows_of_a_pass_do_not_show_what_was_found(
    kind: str, hybrid: HybridFHEModel, new_model: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the words stood before or not, and however sure a draft is: always as many rows, but for the end."""
    hybrid.set_fhe_mode("disable")
    draft = "lookup" if kind == "lookup" else draft_of(hybrid, new_model, 2.0)
    router, rows = hybrid.sides.router, []
    monkeypatch.setattr(router, "observer", lambda group, x, outputs: rows.append(len(x)) if group == 0 else None)
    for prompt in PROMPTS[-3:]:
        rows.clear()
        with hybrid.speculate(draft, most=3) as options:
            generated(hybrid, prompt, 12, eos_token_id=None, **options)
        assert rows[0] == prompt.shape[1] + 3
        assert set(rows[1:-3]) <= {4}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", ["lookup", "draft"])
def test_samples_are_of_the_same_distribution(kind: str, hybrid: HybridFHEModel, new_model: Callable[[str], Any]) -> None:
    """The second token of 100 samples against its exact distribution: total variation below 0.2, expected 0.08."""
    hybrid.set_fhe_mode("torch")
    hybrid.stats.reset()
    draft = "lookup" if kind == "lookup" else draft_of(hybrid, new_model, 0.2)
    model: Any = hybrid.model
    heat, words = 0.3, int(model.config.vocab_size)
    with torch.no_grad():
        first = torch.softmax(hybrid(REPEATING).logits[0, -1] / heat, dim=-1)
        longer = torch.cat([REPEATING.repeat(words, 1), torch.arange(words)[:, None]], dim=1)
        second = first @ torch.softmax(hybrid(longer).logits[:, -1] / heat, dim=-1)
    torch.manual_seed(11)
    seen = torch.zeros(words)
    for _ in range(100):
        with hybrid.speculate(draft, most=3) as options:
            made = generated(hybrid, REPEATING, 2, do_sample=True, temperature=heat, top_k=0, eos_token_id=None, **options)
        seen[made[1]] += 1
    assert (seen / 100 - second).abs().sum() / 2 < 0.2
    assert hybrid.stats.drafted > 0
    assert hybrid.stats.accepted > 0 or kind == "lookup", "random weights do not repeat what stood before"


def test_a_draft_that_does_not_fit_is_refused(hybrid: HybridFHEModel, new_model: Callable[[str], Any]) -> None:
    hybrid.set_fhe_mode("disable")
    with pytest.raises(ValueError, match="expected 'lookup' or a model"):
        hybrid.speculate("ngram")
    other = new_model("gpt2")
    other.config.vocab_size += 1
    with pytest.raises(ValueError, match="needs the same tokenizer"):
        hybrid.speculate(other)


def test_the_model_is_as_before_afterwards(hybrid: HybridFHEModel) -> None:
    with pytest.raises(RuntimeError, match="stop"), hybrid.speculate():
        assert "_get_candidate_generator" in vars(hybrid.model)
        raise RuntimeError("stop")
    assert "_get_candidate_generator" not in vars(hybrid.model)


# The number of draft tokens
# --------------------------------------------------------------------------------------------------


def pace(fixed_s: float, row_s: float) -> Pace:
    return Pace(fixed_s=fixed_s, row_s=row_s, most=12)


def test_far_away_many_are_guessed_and_nearby_none() -> None:
    assert pace(2.0, 0.01).draft_tokens(99, 0.0) >= 3
    assert pace(0.0, 0.05).draft_tokens(99, 0.0) == 0


def test_acceptance_moves_the_number() -> None:
    right, wrong = pace(1.0, 0.05), pace(1.0, 0.05)
    for _ in range(20):
        right.saw_drafts(5, 5)
        wrong.saw_drafts(5, 0)
    assert right.acceptance > 0.9
    assert wrong.acceptance < 0.1
    assert right.draft_tokens(99, 0.0) > 8
    assert wrong.draft_tokens(99, 0.0) <= 1


def test_what_comes_after_a_wrong_guess_was_not_tried() -> None:
    seen = pace(1.0, 0.05)
    for _ in range(60):
        seen.saw_drafts(8, 1)
    assert seen.acceptance == pytest.approx(0.5, abs=0.02)


def test_rows_that_are_not_ready_hold_draft_tokens_back() -> None:
    seen = pace(1.0, 0.01)
    for _ in range(30):
        seen.saw_drafts(6, 6)
    assert seen.draft_tokens(99, 0.5) == 12
    assert seen.draft_tokens(4, 5.0) == 3


def test_the_cost_of_a_row_is_learnt() -> None:
    """Believed far and cheap; in truth near and dear."""
    seen = pace(1.0, 0.001)
    seen.saw_prompt(100, 1.0 + 100 * 0.2)
    for rows in (1, 3, 5, 1, 2) * 8:
        seen.saw_pass(rows, 0.01 + 0.2 * rows)
    assert seen.draft_tokens(99, 0.0) == 0


def test_guessing_is_tried_again_now_and_then() -> None:
    seen = pace(1.0, 0.3)
    for _ in range(80):
        seen.saw_drafts(3, 0)
    assert [seen.draft_tokens(99, 0.0) for _ in range(20)].count(1) == 2
