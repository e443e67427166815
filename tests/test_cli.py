"""The command line: results, the shape of ``--json``, exit codes, one-line errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase
from typer.testing import CliRunner, Result

import veil
from veil import HybridFHEModel, linear_modules
from veil.cli import app
from veil.commands import prepared
from veil.commands.stream import AnswerStreamer, printable
from veil.errors import ModelSourceError
from veil.params import Params, packed_bytes

PROMPT = "w23 w6 w7"  # no greedy choice is close: the least gap is 0.95, while 8-bit weights move logits by 0.1
MODES = ["torch", "disable", "simulate", "execute"]


def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def generate(folder: Path, *arguments: str | Path, stdin: str | None = None) -> Result:
    return invoke("generate", PROMPT, "--model", folder, "--max-new-tokens", "4", *arguments, stdin=stdin)


def assert_one_line_error(result: Result, *words: str) -> None:
    """Exit code 2, nothing on standard output, and a last line of standard error with these words and a remedy."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert all(line.startswith("veil: ") for line in before), result.stderr
    assert last.startswith("veil: ") and ";" in last
    for word in words:
        assert word in last
    assert "Traceback" not in result.stderr


def greedy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
    turns = [{"role": "user", "content": PROMPT}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("mode", MODES)
def test_json_has_exactly_this_shape(
    mode: str, llama_folder: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    result = generate(llama_folder, "--mode", mode, "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("}\n") and result.stdout.count("\n") == 1
    answer = json.loads(result.stdout)
    fields = ["text", "prompt_tokens", "new_tokens", "security_bits", "seconds", "bytes_per_token", "trips_per_token"]
    fields.append("checked")
    assert list(answer) == fields
    assert list(answer["seconds"]) == ["load", "prompt", "per_token", "prepare", "online", "client"]
    assert list(answer["bytes_per_token"]) == ["up_offline", "down_offline", "up_online", "down_online"]
    assert answer["text"] == greedy(tiny_llama, tiny_tokenizer, 4)
    assert (answer["prompt_tokens"], answer["new_tokens"]) == (6, 4)
    seconds, sizes = answer["seconds"], answer["bytes_per_token"]
    assert min(seconds["load"], seconds["prompt"], seconds["per_token"]) > 0
    if mode == "execute":
        assert answer["security_bits"] == Params.default().security_bits
        assert min(seconds["prepare"], seconds["online"], seconds["client"]) > 0
        shares = seconds["prepare"] + seconds["online"] + seconds["client"]
        assert shares <= seconds["per_token"] + 0.001
        assert sizes == expected_bytes(tiny_llama)
        assert answer["trips_per_token"] == 4 * tiny_llama.config.num_hidden_layers + 1
    else:
        assert answer["security_bits"] == 0
        assert set(sizes.values()) == {0}


def expected_bytes(model: LlamaForCausalLM) -> dict[str, Any]:
    """Bytes of one generated token: each group's own bits, chosen by width and norm, and a row's part of a batch."""
    hybrid = HybridFHEModel(model, linear_modules(model))
    hybrid.compile_model(torch.arange(1, 9).unsqueeze(0))
    groups = hybrid.manifest.groups
    params = Params.default()
    return {
        "up_offline": pytest.approx(params.batch_bytes / params.T, rel=0.02),
        "down_offline": 0,
        "up_online": sum(packed_bytes(group.width, group.input_bits) for group in groups),
        "down_online": sum(packed_bytes(group.rows, group.result_bits) for group in groups),
    }


def test_text_goes_to_stdout_and_the_table_to_stderr(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.loads(generate(llama_folder, "--mode", "disable", "--json").stdout)["text"]
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path))  # where nothing is kept, so that the model is loaded again
    result = generate(llama_folder, "--mode", "disable")
    assert result.exit_code == 0
    assert result.stdout == text + "\n"
    for part in ("6 in the prompt, 4 generated", "prepare, offline", "bytes a token, online", "nothing was encrypted"):
        assert part in result.stderr
    assert "loading tiny-llama" in result.stderr


def test_the_table_names_the_security_of_an_encrypted_run(llama_folder: Path) -> None:
    result = generate(llama_folder, "--max-new-tokens", "1")
    assert result.exit_code == 0
    assert f"{Params.default().security_bits:.1f} bits" in result.stderr


def test_a_chat_template_that_fails_is_one_line(llama_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    for template in ("{{ 1 // 0 }}", "{% for", "{{ raise_exception('no') }}"):
        (folder / "chat_template.jinja").write_text(template)
        assert_one_line_error(generate(folder, "--mode", "torch"), "the chat template of", "use --raw")
    assert generate(folder, "--mode", "torch", "--raw").exit_code == 0


def test_raw_skips_the_chat_template_and_a_dash_reads_stdin(llama_folder: Path) -> None:
    raw = json.loads(generate(llama_folder, "--mode", "torch", "--json", "--raw").stdout)
    assert raw["prompt_tokens"] == 3
    arguments = (
        "generate",
        "-",
        "--model",
        llama_folder,
        "--max-new-tokens",
        "4",
        "--mode",
        "torch",
        "--json",
        "--raw",
    )
    assert json.loads(invoke(*arguments, stdin=PROMPT).stdout)["text"] == raw["text"]


def test_a_seed_makes_sampling_repeatable(llama_folder: Path) -> None:
    def sample(seed: int) -> str:
        options = ("--temperature", "3", "--top-p", "0.95", "--max-new-tokens", "12", "--seed", str(seed))
        answer: dict[str, Any] = json.loads(generate(llama_folder, "--mode", "torch", "--json", *options).stdout)
        return str(answer["text"])

    texts = [sample(seed) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_modules_and_bits_are_used(llama_folder: Path) -> None:
    options = ("--modules", r"model\.layers\.0\.mlp\..*|model\.embed_tokens", "--bits", "4")
    result = generate(llama_folder, "--mode", "disable", "--json", *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["new_tokens"] >= 1


def test_compile_then_generate_from_the_bundle(llama_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    made = invoke("compile", llama_folder, out, "--json")
    assert made.exit_code == 0, made.output
    summary = json.loads(made.stdout)
    assert (summary["model"], summary["path"], summary["remote_modules"]) == ("tiny-llama", str(out), 15)
    assert min(summary["client_bytes"], summary["server_bytes"]) > 0
    direct = json.loads(generate(llama_folder, "--mode", "disable", "--json").stdout)
    for mode in ("disable", "execute"):
        options = ("--max-new-tokens", "4", "--mode", mode, "--json")
        result = invoke("generate", PROMPT, "--bundle", out, *options)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["text"] == direct["text"]
    assert_one_line_error(invoke("compile", llama_folder, out), "exists already")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "./no-such-folder"), ("./no-such-folder", "check the path")),
        (("--model", "no-such.gguf"), ("no-such.gguf", "check the path")),
        (("--bundle", "b", "--bits", "4"), ("--bundle", "leave out")),
        (("--bundle", "b", "--mode", "torch"), ("float layers", "--mode disable")),
        (("--top-p", "0"), ("--top-p", "above 0")),
        (("--speculate", "./lokup"), ("auto, lookup, off or a model", "./lokup")),
    ],
)
def test_errors_before_any_work(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = invoke("generate", PROMPT, *arguments)
    assert_one_line_error(result, *words)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--modules", "lmhead"), ("no module's name matches", "lm_head")),
        (("--modules", "(", "--json"), ("not a regular expression",)),
        (("--max-new-tokens", "1000"), ("exceed the model's 128", "--max-new-tokens")),
    ],
)
def test_errors_of_options_that_need_the_model(
    arguments: tuple[str, ...], words: tuple[str, ...], llama_folder: Path
) -> None:
    assert_one_line_error(generate(llama_folder, "--mode", "disable", *arguments), *words)


def test_a_draft_with_another_tokenizer_is_refused_before_compiling(
    llama_folder: Path, tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    assert generate(llama_folder, "--speculate", llama_folder).exit_code == 0
    tiny_llama.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"w5"', '"w"').replace('"w6"', '"w5"').replace('"w"', '"w6"'))
    result = generate(llama_folder, "--speculate", tmp_path)
    assert_one_line_error(result, "62 of 64 tokens", "same tokenizer")
    assert "quantizing" not in result.stderr


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    assert_one_line_error(invoke("generate", PROMPT, "--bundle", tmp_path / "none"), "none")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_gpu_is_told_of_before_loading(llama_folder: Path) -> None:
    result = generate(llama_folder, "--device", "cuda")
    assert_one_line_error(result, "CUDA", "cpu")
    assert "loading" not in result.stderr


def test_a_model_without_tokenizer_is_one_line(tmp_path: Path, tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.save_pretrained(tmp_path / "bare")
    assert_one_line_error(generate(tmp_path / "bare"), "no tokenizer", "tokenizer.json")


def test_no_prompt_is_one_line() -> None:
    assert_one_line_error(invoke("generate"), "one prompt", "--batch")


@pytest.mark.parametrize("prompt", ["", " \n", "-"])
@pytest.mark.parametrize("options", [(), ("--raw",)], ids=str)
def test_an_empty_prompt_is_one_line(prompt: str, options: tuple[str, ...], llama_folder: Path) -> None:
    result = invoke("generate", prompt, "--model", llama_folder, *options, stdin="\n")
    assert_one_line_error(result, "prompt is empty")
    assert "loading" not in result.stderr


def test_a_file_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_one_line_error(invoke("compile", "smollm2", tmp_path / "file" / "out"), "file", "Not a directory")


@pytest.mark.parametrize(
    "arguments",
    [("--mode", "remotely"), ("--bits", "9"), ("--temperature", "-1"), ("--max-new-tokens", "0"), ("--what",)],
)
def test_wrong_options_exit_with_2(arguments: tuple[str, ...]) -> None:
    result = invoke("generate", PROMPT, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage" in result.stderr


def test_a_message_of_several_lines_is_printed_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ModelSourceError("first\n  second; third")

    monkeypatch.setattr(prepared, "opened_model", fail)
    result = invoke("generate", PROMPT)
    assert (result.exit_code, result.stderr) == (2, "veil: first second; third\n")


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "opened_model", interrupt)
    result = invoke("generate", PROMPT)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "veil: interrupted\n")


def test_an_error_that_came_of_ctrl_c_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            threading.Lock().release()

    monkeypatch.setattr(prepared, "opened_model", interrupt)
    result = invoke("generate", PROMPT)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "veil: interrupted\n")


def test_an_error_that_is_not_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "opened_model", lambda *_, **__: json.loads("{"))
    result = invoke("generate", PROMPT)
    assert result.exit_code == 1
    assert isinstance(result.exception, json.JSONDecodeError)


def test_params() -> None:
    table = invoke("params")
    assert table.exit_code == 0
    params = Params.default()
    assert f"{params.security_bits:.0f} bits (MATZOV)" in table.stdout and "core-SVP" in table.stdout
    values = json.loads(invoke("params", "--json").stdout)
    assert (values["security_bits"], values["core_svp_bits"]) == (params.security_bits, params.core_svp_bits)
    assert min(values["security_bits"], values["core_svp_bits"]) > 128
    assert (values["spec"]["inner_rank"], values["spec"]["inner_degree"]) == (3, 512)
    assert (values["batch_rows"], values["batch_bytes"]) == (64, 24 * 2 * 2048 * 23 // 8)


def test_version_and_help() -> None:
    assert invoke("--version").stdout == f"veil {veil.__version__}\n"
    text = invoke("--help").stdout
    assert all(command in text for command in ("generate", "compile", "params"))
    assert "--bundle" in invoke("generate", "--help").stdout


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from veil.cli import app;"
        "r = CliRunner().invoke(app, ['generate', '--help']); assert r.exit_code == 0;"
        "print([m for m in ('torch', 'transformers', 'numba', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_process_prints_the_json_and_nothing_else(llama_folder: Path) -> None:
    options = ["--model", str(llama_folder), "--mode", "disable", "--max-new-tokens", "4", "--json"]
    script = "from veil.cli import main; main()"
    command = [sys.executable, "-c", script, "generate", PROMPT, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["new_tokens"] == 4
    assert all(line.startswith("veil: ") for line in done.stderr.splitlines())


def test_the_streamer_writes_words_and_counts_tokens(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    written: list[str] = []
    counted: list[None] = []
    streamer = AnswerStreamer(tiny_tokenizer, write=written.append, on_token=lambda: counted.append(None))
    streamer.put(torch.tensor([[5, 6, 7]]))
    for token in (8, 9, 10, 2):
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(written) == "w3 w4 w5\n"
    assert len(written) > 1
    assert len(counted) == 4


def test_a_broken_answer_ends_its_line(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    written: list[str] = []
    streamer = AnswerStreamer(tiny_tokenizer, write=written.append, on_token=lambda: None)
    streamer.break_off()
    streamer.put(torch.tensor([[5, 6, 7]]))
    assert "".join(written) == ""
    for token in (8, 9, 10):
        streamer.put(torch.tensor([token]))
    streamer.break_off()
    assert "".join(written) == "w3 w4 w5\n"


def test_an_answer_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\u202ec\n\td\x9b é 👩\u200d👧") == "a[2Jbc\n\td é 👩\u200d👧"
