"""Adapters at the gateway: a name each, several at once, and none knows another's answers."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from veil.errors import ModelSourceError
from veil.training.adapters import Adapters, load_adapters
from waiting import until

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def folders(new_model: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of the tiny Llama that change what it says."""
    made = []
    for number, name in enumerate(("terse", "kind")):
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            model = peft.get_peft_model(new_model("llama"), config)
        folder = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(folder)
        made.append(folder)
    return made


@pytest.fixture(scope="module")
def adapted(serve_model: Any, listen: Any, new_model: Any, tiny_tokenizer: Any, folders: list[Path]) -> Iterator[Any]:
    served = serve_model(new_model("llama"), tiny_tokenizer, mode="disable")
    served.adapters = load_adapters(served.net, [str(folders[0]), f"warm={folders[1]}"])
    with listen(served) as running:
        yield running
    served.hybrid.close()


def ask(running: Any, model: str, words: str = "w5 w6 w7") -> str:
    body = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 6, "temperature": 0}
    request = urllib.request.Request(
        f"{running.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        answer = json.load(reply)
    assert answer["model"] == model
    return str(answer["choices"][0]["message"]["content"])


def test_each_adapter_is_a_model_by_name(adapted: Any) -> None:
    with urllib.request.urlopen(f"{adapted.url}/v1/models", timeout=10) as reply:
        names = [card["id"] for card in json.load(reply)["data"]]
    assert names == ["tiny", "tiny:terse", "tiny:warm"]
    answers = [ask(adapted, name) for name in names]
    assert len(set(answers)) == 3
    assert [ask(adapted, name) for name in reversed(names)] == answers[::-1], "attention states are kept apart"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(adapted, "tiny:other")


def test_several_at_once_do_not_mix(adapted: Any) -> None:
    names = ["tiny", "tiny:terse", "tiny:warm"] * 2
    alone = {name: ask(adapted, name, "w9 w8 w7 w6") for name in names[:3]}
    adapted.gateway.generator.forget()
    together: list[tuple[str, str]] = []
    with adapted.held() as go_on:
        threads = [
            threading.Thread(target=lambda name=name: together.append((name, ask(adapted, name, "w9 w8 w7 w6"))))
            for name in names
        ]
        for thread in threads:
            thread.start()
        queue = adapted.gateway.queue
        until(lambda: queue.running + queue.waiting == 6, what="all six in the line", state=adapted.state)
        go_on.set()
        for thread in threads:
            thread.join(60)
    assert len(together) == 6 and all(alone[name] == answer for name, answer in together)


def test_what_cannot_be_loaded_is_said(new_model: Any, folders: list[Path], tmp_path: Path) -> None:
    adapters = Adapters(new_model("llama"))
    adapters.load(folders[0])
    with pytest.raises(ModelSourceError, match="two adapters are called 'terse'; rename a folder"):
        adapters.load(folders[0])
    with pytest.raises(ModelSourceError, match="is no adapter"):
        adapters.load(tmp_path)
    with pytest.raises(ModelSourceError, match="does not fit the model"):
        Adapters(new_model("gpt2")).load(folders[0])
    prompts = peft.get_peft_model(new_model("llama"), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    prompts.save_pretrained(tmp_path / "p")
    with pytest.raises(ModelSourceError, match="is an adapter of prompts"):
        adapters.load(tmp_path / "p")
