"""`veil finetune` and what it reads and writes: examples, checkpoints, an adapter that `veil generate` and peft use."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner, Result

from veil import HybridFHEModel, linear_modules
from veil.cli import app
from veil.params import Params
from veil.training.adapters import LoraSettings, add_lora, load_adapters
from veil.training.examples import IGNORED, Example, batches, divided, read_examples
from veil.training.loop import FineTuning, Schedule

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

PRECISE = Params.insecure_tiny(signal_db=60.0)
QUESTION, ANSWER = "w23 w6 w7", "w41 w13 w30"


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    others = [{"question": f"w{i} w{i + 1}", "answer": f"w{i + 2} w{i + 3}"} for i in range(3)]
    path.write_text("\n".join(json.dumps(line) for line in [{"question": QUESTION, "answer": ANSWER}, *others]) + "\n\n")
    return path


@pytest.fixture(scope="module")
def bundle(new_model: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama compiled for training; do not write to it."""
    model = new_model("llama")
    hybrid = HybridFHEModel(model, linear_modules(model))
    hybrid.compile_model(torch.arange(1, 25).reshape(2, 12), trainable=True, params=PRECISE, device="cpu")
    path = tmp_path_factory.mktemp("bundles") / "b"
    hybrid.save(path, tokenizer=tiny_tokenizer)
    return path


def finetune(folder: Path | None, data: Path, out: Path, *more: Any) -> Result:
    options = ("--steps", 24, "--learning-rate", 0.06, "--rank", 8, "--targets", "q_proj,v_proj,up_proj,down_proj")
    return invoke("finetune", *([folder] if folder else []), "--data", data, "--out", out, *options, *more)


def test_an_answer_is_learned_and_given(bundle: Path, llama_folder: Path, pairs: Path, tmp_path: Path) -> None:
    here = ("--bundle", bundle, "--mode", "disable", "--allow-no-cryptography")

    def answer(*more: Any) -> str:
        result = invoke("generate", QUESTION, "--max-new-tokens", "4", "--json", *here, *more)
        assert result.exit_code == 0, result.stderr
        return str(json.loads(result.stdout)["text"])

    assert ANSWER not in answer()
    result = finetune(None, pairs, tmp_path / "a", *here, "--validation", 0, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    fields = ["adapter", "steps", "loss", "validation_before", "validation_after"]
    assert list(told) == [*fields, "seconds_per_step", "bytes_per_step", "trainable_parameters"]
    assert told["steps"] == 24 and told["loss"] < 0.5
    lines = [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 24 and all(part in lines[-1] for part in ("loss", " s", "bytes"))
    assert answer("--adapter", tmp_path / "a") == ANSWER
    model = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(llama_folder), str(tmp_path / "a"))
    assert model.peft_config["default"].r == 8, "others read it"
    written = (tmp_path / "a" / "adapter_config.json").read_text()
    assert json.loads(written)["base_model_name_or_path"] == "b"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_trains_through_encryption_with_validation(llama_folder: Path, pairs: Path, tmp_path: Path, cache: Path) -> None:
    more = ("--steps", 2, "--validation", 0.25, "--validate-every", 1, "--json")
    result = finetune(llama_folder, pairs, tmp_path / "a", *more)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["bytes_per_step"] > 10_000 and told["validation_after"] != told["validation_before"] is not None
    assert sum("validation" in line for line in result.stderr.splitlines() if line.startswith("step ")) == 2


def test_a_server_elsewhere_trains_it_and_answers_with_it(
    bundle: Path, pairs: Path, tmp_path: Path, train_server: Any
) -> None:
    with train_server(bundle) as server:
        there = ("--server", server(address=True), "--bundle", bundle / "client", "--allow-no-cryptography")
        options = ("--data", pairs, "--out", tmp_path / "a", "--steps", 16, "--learning-rate", 0.06, "--validation", 0)
        targets = ("--targets", "q_proj,v_proj,up_proj,down_proj", "--json")
        result = invoke("finetune", *options, *targets, *there)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["loss"] < 2.5, "it began above 8"
        command = ("generate", QUESTION, "--max-new-tokens", "3", "--json", *there)
        answers = [json.loads(invoke(*command, *more).stdout)["text"] for more in ((), ("--adapter", tmp_path / "a"))]
        assert ANSWER.split()[0] not in answers[0] and answers[1].startswith(ANSWER.split()[0])


def test_what_cannot_be_trained_is_refused_in_one_line(llama_folder: Path, pairs: Path, tmp_path: Path, cache: Path) -> None:
    def fails(*arguments: Any) -> str:
        result = invoke("finetune", *arguments)
        assert result.exit_code == 2 and "Traceback" not in result.stderr
        return result.stderr.splitlines()[-1]

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    out = ("--out", tmp_path / "a")
    assert "is not empty; go on with --resume" in fails("--data", pairs, "--out", tmp_path / "full")
    assert "check the path" in fails("--data", tmp_path / "absent.jsonl", *out)
    assert "leave out MODEL" in fails(llama_folder, "--data", pairs, *out, "--bundle", tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "w1"}\n')
    assert "line 1 has none of messages, text" in fails(llama_folder, "--data", bad, *out, "--mode", "disable")
    targets = ("--targets", "nowhere")
    assert "does not fit the model" in fails(llama_folder, "--data", pairs, *out, "--mode", "disable", *targets)
    plain = HybridFHEModel(LlamaForCausalLM.from_pretrained(llama_folder), "lm_head")
    plain.compile_model(torch.arange(1, 9).unsqueeze(0), device="cpu")
    plain.save(tmp_path / "plain")
    line = fails("--bundle", tmp_path / "plain", "--data", pairs, *out)
    assert "was not compiled for training; make one with 'veil compile --trainable'" in line


def test_a_run_goes_on_where_it_was(new_model: Any, tmp_path: Path) -> None:
    examples = [Example((1, 5 + i, 9 + i, 3 + i), (1, 5 + i, 9 + i, 3 + i)) for i in range(5)]
    data = divided(examples, 0.2, seed=0)
    schedule = Schedule(steps=6, batch=2, accumulate=2, learning_rate=1e-2, save_every=3)
    settings = LoraSettings(rank=2, targets=("q_proj",), dropout=0.2)

    def tuning() -> FineTuning:
        torch.manual_seed(0)
        return FineTuning(add_lora(new_model("llama"), settings), data, schedule)

    whole = tuning()
    outcome = whole.run(folder=tmp_path / "whole")
    first = tuning()
    steps = first.steps()
    for _ in range(3):
        next(steps)
    first.save(tmp_path / "part", before=1.5)
    again = tuning()
    assert again.resume(tmp_path / "part") == 1.5
    torch.manual_seed(99)
    rest = again.run(before=1.5)
    assert [step.number for step in rest.steps] == [4, 5, 6]
    assert [step.loss for step in rest.steps] == [step.loss for step in outcome.steps[3:]]
    assert rest.validation_after == outcome.validation_after
    with pytest.raises(ValueError, match="no checkpoint to go on from"):
        tuning().resume(tmp_path / "nothing")
    other = FineTuning(again.model, data, Schedule(batch=3, accumulate=2))
    with pytest.raises(ValueError, match="of a run with another batch"):
        other.resume(tmp_path / "part")
    (tmp_path / "part" / "checkpoint" / "optimizer.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match="is damaged"):
        tuning().resume(tmp_path / "part")


def test_of_chats_the_answers_are_learned(tmp_path: Path, tiny_tokenizer: Any) -> None:
    chat = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2 w3"},
        {"role": "user", "content": "w4"},
        {"role": "assistant", "content": "w5"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": chat[:2]}) + "\n" + json.dumps({"text": "w7 w8"}) + "\n")
    template = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} </s> {% endfor %}"
    tiny_tokenizer = type(tiny_tokenizer)(
        tokenizer_object=tiny_tokenizer.backend_tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template + "{% if add_generation_prompt %}<assistant> {% endif %}",
    )
    first, second = read_examples(path, tiny_tokenizer, 64)
    words = [tiny_tokenizer.decode([label]) for label in first.labels if label != IGNORED]
    assert words == ["w2", "w3", "</s>"] and len(first.ids) == len(first.labels)
    assert [tiny_tokenizer.decode([token]) for token in second.ids] == ["w7", "w8", "</s>"] and second.labels == second.ids
    path.write_text(json.dumps({"messages": chat}) + "\n")
    (both,) = read_examples(path, tiny_tokenizer, 64)
    learned = [tiny_tokenizer.decode([label]) for label in both.labels if label != IGNORED]
    assert learned == ["w2", "w3", "</s>", "w5", "</s>"]
    tiny_tokenizer.chat_template = None
    (both,) = read_examples(path, tiny_tokenizer, 64)
    assert [label for label in both.labels if label != IGNORED] and both.labels[0] == IGNORED


def test_a_text_is_cut_into_pieces(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "x.txt"
    path.write_text(" ".join(f"w{i % 50}" for i in range(21)))
    assert [len(example.ids) for example in read_examples(path, tiny_tokenizer, 5)] == [5, 5, 5, 5], (
        "one token teaches nothing"
    )


def test_batches_are_the_same_each_time_and_each_example_comes_once_a_round() -> None:
    examples = [Example((i,), (i,)) for i in range(6)]
    first, again = (list(itertools.islice(batches(examples, 4, seed=7), 6)) for _ in range(2))
    assert first == again and first != list(itertools.islice(batches(examples, 4, seed=8), 6))
    order = [example.ids[0] for batch in first for example in batch]
    assert all(sorted(order[i : i + 6]) == list(range(6)) for i in range(0, 24, 6)) and order[:6] != order[6:12]
    data = divided(examples, 0.3, seed=1)
    assert len(data.validation) == 2 and {*data.training, *data.validation} == {*examples}
    assert divided(examples, 0, seed=1).validation == ()


def test_an_adapter_is_made_and_loaded_without_a_warning(new_model: Any, tmp_path: Path) -> None:
    """peft 0.19 asks a name of transformers 5 that is deprecated; users of the command line saw it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made: Any = add_lora(new_model("llama"), LoraSettings(rank=2, targets=("q_proj",)), base="tiny")
        made.save_pretrained(tmp_path / "mine", save_embedding_layers=False)
        adapters = load_adapters(new_model("llama"), [str(tmp_path / "mine")])
    assert adapters.names == ["mine"]
