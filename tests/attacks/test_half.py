"""A malicious client half: it decides nothing that the server would see. Each attack works without its rule."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from remote.commands import veil
from veil import HybridFHEModel, Terms
from veil.client.connection import Address
from veil.commands import pull
from veil.errors import BundleError, InsecureParameters, UnevenTraffic
from veil.runtime import saved_model as bundles
from veil.runtime.traffic import Traffic
from veil.sources.generation_settings import FIELDS, harmless

WEAK = Terms(no_cryptography=True)
PROMPTS = [torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[40, 33, 21, 60, 12, 50]])]


def traffic(served: Any, server: Any, asked: list[tuple[int, int]], prompt: torch.Tensor, **options: Any) -> list[Any]:
    """What the server wrote down of one generation."""
    remote = served.connect(server.port, **options)
    asked.clear()
    remote.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, min_new_tokens=4)
    remote.close()
    return list(asked)


# What may leak --------------------------------------------------------------------------------------------------------


def reveal(fields: dict[str, Any]) -> None:
    """One word of a half: every expert is no longer asked."""
    fields["experts"] = dict.fromkeys(fields["experts"], "reveal")


def test_a_half_that_reveals_experts_is_refused_wherever_it_is_read(
    mixtral: Any, forged: Callable[..., Any], serve: Any, tmp_path: Path
) -> None:
    bad = forged(mixtral, header=reveal)
    with serve(bad, offer=True) as server:
        address = Address(target=f"127.0.0.1:{server.port}")
        for attempt in (
            lambda: bad.connect(server.port),
            lambda: pull.run(address, tmp_path / "half", terms=WEAK, name=None, as_json=False),
            lambda: pull.cached(address, terms=WEAK, name=None),
            lambda: HybridFHEModel.load(bad.path, terms=WEAK),
        ):
            with pytest.raises(BundleError, match=r"would show the server which experts .* --expert-leak reveal"):
                attempt()
        assert not (tmp_path / "half").exists() and not list((tmp_path / "cache").rglob("*.json"))


def test_a_half_with_each_expert_by_itself_is_refused(llama: Any, forged: Callable[..., Any]) -> None:
    """No word about experts, but layers that a model calls only for the rows that it routes to them."""

    def by_itself(fields: dict[str, Any]) -> None:
        text = json.dumps(fields["manifest"])
        fields["manifest"] = json.loads(text.replace("model.layers.1.mlp", "model.layers.1.mlp.experts.0"))

    bad = forged(llama, header=by_itself)
    with pytest.raises(BundleError, match="would show the server which experts"):
        HybridFHEModel.load(bad.path, terms=WEAK)


def test_without_the_rule_the_server_sees_where_tokens_go(
    mixtral: Any, forged: Callable[..., Any], serve: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(mixtral) as server:
        honest = [traffic(mixtral, server, asked, prompt) for prompt in PROMPTS]
        assert honest[0] == honest[1]
    bad = forged(mixtral, header=reveal)
    monkeypatch.setattr(Terms, "check_leaks", lambda *_: None)
    with serve(bad) as server:
        seen = []
        for prompt in PROMPTS:
            with pytest.raises(UnevenTraffic, match="depends on the text"):  # a second rule, in the runtime
                traffic(bad, server, asked, prompt)
            seen.append(list(asked))
        assert seen[0] == seen[1] != [], "what deviates was not sent"
        monkeypatch.setattr(Traffic, "run", lambda self, entry, forward, args, kwargs, training: forward(*args, **kwargs))
        shown = [traffic(bad, server, asked, prompt) for prompt in PROMPTS]
    assert shown[0] != shown[1]


def test_the_user_may_ask_for_it_by_name(mixtral: Any, forged: Callable[..., Any], serve: Any, asked: list[Any]) -> None:
    bad = forged(mixtral, header=reveal)
    with serve(bad) as server:
        terms = Terms(no_cryptography=True, expert_leak="reveal")
        assert traffic(bad, server, asked, PROMPTS[0], terms=terms)


def test_to_allow_it_does_not_make_an_honest_half_reveal(mixtral: Any, serve: Any, asked: list[Any]) -> None:
    with serve(mixtral) as server:
        terms = Terms(no_cryptography=True, expert_leak="reveal")
        seen = [traffic(mixtral, server, asked, prompt, terms=terms) for prompt in PROMPTS]
    assert seen[0] == seen[1]


# Generation settings --------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "guesses": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
    "beams": {"num_beams": 3},
    "several answers": {"num_return_sequences": 2, "do_sample": True},
    "no cache": {"use_cache": False},
    "pieces of the prompt": {"prefill_chunk_size": 2},
}


def settings(changes: dict[str, Any], *, place: str = "generation_config.json") -> Callable[[Path], object]:
    def change(half: Path) -> None:
        file = half / place
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


REPEATED = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6, 7, 5]])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_halfs_settings_do_not_change_the_traffic(
    name: str, llama: Any, forged: Callable[..., Any], serve: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = forged(llama, settings(SETTINGS[name]))
    with serve(llama) as server:
        honest = traffic(llama, server, asked, REPEATED)
    with serve(bad) as server:
        assert traffic(bad, server, asked, REPEATED) == honest

        def obeyed(half: Path, model: Any) -> GenerationConfig:
            return GenerationConfig(**json.loads((half / "generation_config.json").read_text()))

        monkeypatch.setattr(bundles, "generation_settings", obeyed)
        assert traffic(bad, server, asked, REPEATED) != honest, "the attack does not work without the rule either"


def test_settings_in_the_models_configuration_are_not_obeyed(llama: Any, forged: Callable[..., Any]) -> None:
    def change(half: Path) -> None:
        (half / "generation_config.json").unlink()
        settings({"num_beams": 3, "prompt_lookup_num_tokens": 3, "temperature": 0.5}, place="config.json")(half)

    opened = HybridFHEModel.load(forged(llama, change).path, terms=WEAK)
    config: Any = opened.model.generation_config
    assert config.num_beams is None and config.prompt_lookup_num_tokens is None


def test_what_is_harmless_is_taken(llama: Any, forged: Callable[..., Any]) -> None:
    kept = {"eos_token_id": [2, 3], "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "max_length": 40}
    opened = HybridFHEModel.load(forged(llama, settings(kept | {"do_sample": True})).path, terms=WEAK)
    config: Any = opened.model.generation_config
    assert {name: getattr(config, name) for name in kept} == kept
    assert config.do_sample is True


def test_every_other_setting_of_transformers_is_left_out() -> None:
    known = GenerationConfig().to_dict()
    assert set(known) >= FIELDS
    assert set(harmless(dict.fromkeys(known, 1) | {"do_sample": True})) == FIELDS
    dangerous = {"num_beams", "num_return_sequences", "prompt_lookup_num_tokens", "assistant_early_exit", "use_cache"}
    dangerous |= {"cache_implementation", "stop_strings", "guidance_scale", "max_time", "custom_generate", "compile_config"}
    assert not FIELDS & dangerous


@pytest.mark.parametrize(
    "field",
    [
        {"eos_token_id": "2"},
        {"eos_token_id": [2, "3"]},
        {"eos_token_id": -2},
        {"eos_token_id": list(range(5000))},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"top_p": -0.5},
        {"max_length": 1 << 40},
        {"max_length": 2.5},
        {"top_k": True},
        {"do_sample": 1},
    ],
)
def test_a_setting_of_the_wrong_kind_is_one_error(field: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=f"have a {next(iter(field))} that is none"):
        harmless(field)


# Parameters without security ------------------------------------------------------------------------------------------


def test_parameters_that_protect_nothing_are_refused_wherever_a_half_is_read(
    llama: Any, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generated: Any, expected: list[int]
) -> None:
    half = llama.path / "client"
    with serve(llama, offer=True) as server:
        target = f"127.0.0.1:{server.port}"
        address = Address(target=target)
        for attempt in (
            lambda: llama.connect(server.port, terms=Terms()),
            lambda: HybridFHEModel.connect(target, half),
            lambda: pull.run(address, tmp_path / "half", terms=Terms(), name=None, as_json=False),
            lambda: pull.cached(address, terms=Terms(), name=None),
            lambda: HybridFHEModel.load(llama.path),
        ):
            with pytest.raises(InsecureParameters, match=r"protect nothing.*--allow-no-cryptography"):
                attempt()
        assert not (tmp_path / "half").exists()
        monkeypatch.setattr(Terms, "check_params", lambda *_: None)
        remote = HybridFHEModel.connect(target, half)
        assert generated(remote) == expected, "without the rule the server gets rows that protect nothing"
        remote.close()


def test_the_commands_refuse_them_and_no_other_option_allows_them(llama: Any, tmp_path: Path) -> None:
    half = llama.path / "client"
    with socket.create_server(("127.0.0.1", 0)) as there:  # somebody is: the half is refused before anything is said
        server = f"127.0.0.1:{there.getsockname()[1]}"
        for arguments in (
            ("generate", "w1 w2", "--bundle", llama.path),
            ("generate", "w1 w2", "--bundle", half, "--server", server, "--allow-no-tls"),
            ("chat", "--bundle", llama.path),
            ("gateway", "--bundle", llama.path, "--port", "0"),
        ):
            result = veil(*arguments, VEIL_CACHE_DIR=str(tmp_path))
            assert result.returncode == 2, arguments
            assert "protect nothing" in result.stderr.splitlines()[-1], arguments
