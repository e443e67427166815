"""The snippet of the README, with the real parameters, on a GPT-2 with random weights."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from veil import HybridFHEModel, Params
from veil.params import packed_bytes


def small_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=200,
        n_embd=64,
        n_layer=1,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def hybrid() -> HybridFHEModel:
    model = small_gpt2()
    remote_names = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    input_tensor = torch.arange(1, 9)[None]

    hybrid = HybridFHEModel(model, module_names=remote_names)
    hybrid.compile_model(input_tensor, n_bits=8, use_dynamic_quantization=True)
    return hybrid


PROMPT = {"input_ids": torch.tensor([[57, 14, 134, 138]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def test_the_snippet(hybrid: HybridFHEModel) -> None:
    """The best two logits of this prompt's tokens are 0.25 apart at least, 13 deviations of the noise: no tie decides."""
    model: Any = hybrid.model
    hybrid.set_fhe_mode("execute")
    out = model.generate(**PROMPT, **GREEDY)
    assert out.shape == (1, 12)
    assert hybrid.stats.rows >= 11
    hybrid.set_fhe_mode("disable")
    clear = model.generate(**PROMPT, **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert out.tolist() == clear.sequences.tolist()
    best = torch.stack(clear.logits).topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 0.25
    y = hybrid(PROMPT["input_ids"], fhe="disable")
    assert y.logits.shape == (1, 4, 200)


def test_it_ran_with_the_real_parameters(hybrid: HybridFHEModel) -> None:
    assert hybrid.params == Params.default()
    assert hybrid.params.security_bits >= 128


def test_every_mode_is_near_the_float_model(hybrid: HybridFHEModel) -> None:
    """Signal to noise of the logits: 8-bit weights against float 30 dB at least, the noise against clear 34 dB at least."""
    modes = ("torch", "disable", "simulate", "execute")
    with torch.no_grad():
        logits = {mode: hybrid(PROMPT["input_ids"], fhe=mode).logits for mode in modes}
        untouched = small_gpt2()(PROMPT["input_ids"]).logits
    assert torch.equal(logits["torch"], untouched)
    assert decibels(untouched, logits["disable"]) > 30
    assert decibels(logits["disable"], logits["simulate"]) > 34
    assert decibels(logits["disable"], logits["execute"]) > 34
    assert not torch.equal(logits["disable"], logits["simulate"])
    assert not torch.equal(logits["disable"], logits["execute"])


def decibels(signal: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(signal.var() / (signal - other).var()))


def test_bytes_online_are_those_of_the_protocol(hybrid: HybridFHEModel, calls: list[Any]) -> None:
    """For a row with logits each group's inputs and results by its own bits, counted at the byte boundary."""
    hybrid.set_fhe_mode("execute")
    hybrid.stats.reset()
    for token in range(8):
        hybrid(torch.tensor([[token]]))
    up = sum(call.args[3].size for call in calls if call.method == "evaluate")
    down = sum(call.reply.size for call in calls if call.method == "evaluate")
    manifest = hybrid.manifest
    assert (manifest.total_inputs, manifest.total_slots) == (64 + 64 + 64 + 256 + 64, 192 + 64 + 256 + 64 + 200)
    assert up == 8 * sum(packed_bytes(group.width, group.input_bits) for group in manifest.groups)
    assert down == 8 * sum(packed_bytes(group.rows, group.result_bits) for group in manifest.groups)
    assert 4 * (manifest.total_inputs + manifest.total_slots) > 1.7 * (up + down) / 8, "well under clear float32"
    assert (hybrid.stats.bytes_up_online, hybrid.stats.bytes_down_online) == (up, down)
    assert hybrid.stats.rows == 8


def test_bytes_offline_are_those_of_the_protocol(hybrid: HybridFHEModel, calls: list[Any]) -> None:
    """24 polynomials of two residues of 23 bits a batch of 64 rows, nothing down."""
    hybrid.set_fhe_mode("execute")
    hybrid.reserve(rows_full=64)
    hybrid.stats.reset()
    del calls[:]
    hybrid.reserve(rows_full=hybrid.rows_ready.tokens + 128)
    batches = [batch.data for call in calls if call.method == "prepare" for batch in call.args[1]]
    assert (len(batches), hybrid.stats.rows_made) == (2, 128)
    assert {data.size for data in batches} == {24 * 2 * 2048 * 23 // 8}
    assert hybrid.stats.bytes_up_offline / 128 == pytest.approx(24 * 2 * 2048 * 23 / 8 / 64, rel=0.001)
    assert hybrid.stats.bytes_down_offline == 0
    assert all(call.reply is None for call in calls)


def test_a_saved_bundle_answers_alike(hybrid: HybridFHEModel, tmp_path: Path) -> None:
    hybrid.save(tmp_path / "bundle")
    opened = HybridFHEModel.load(tmp_path / "bundle")
    assert opened.params == Params.default()
    assert opened.fhe_mode == "disable"
    hybrid.set_fhe_mode("disable")
    assert torch.equal(opened(PROMPT["input_ids"]).logits, hybrid(PROMPT["input_ids"]).logits)


WORDS = ["<|endoftext|>", "Privacy", "is", "a", "right", *(f"w{index}" for index in range(60))]


def test_the_readme_s_snippet_on_a_saved_gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The code of README.md, word for word, where the hub's id is a folder that `save_pretrained` made."""
    folder = tmp_path / "openai-community" / "gpt2"
    config = GPT2Config(vocab_size=len(WORDS), n_embd=48, n_layer=1, n_head=4, n_positions=64, initializer_range=0.2)
    config.bos_token_id = config.eos_token_id = 0
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = next(part for part in re.findall(r"```python\n(.*?)```", readme, flags=re.S) if "Conv1D" in part)
    assert 'from_pretrained("openai-community/gpt2")' in code
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "README.md", "exec"), names)
    hybrid = names["hybrid"]
    assert hybrid.fhe_mode == "execute"
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert hybrid.stats.bytes_up_online > 0
    assert capsys.readouterr().out.startswith("Privacy is")
