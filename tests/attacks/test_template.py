"""Chat templates that never end, or take all memory: one error, and the process lives; others render as they always did."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError

from remote.commands import veil
from veil import Terms
from veil.commands.ahead import begin_rendering
from veil.errors import ModelSourceError
from veil.random import ProcessMark
from veil.runtime import saved_model as bundles
from veil.sources import templates
from veil.sources.templates import Renderer, bounded

WEAK = Terms(no_cryptography=True)
TURNS = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}, {"role": "user", "content": " w4 "}]
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
)
BOMBS = {
    "a product": "{{ 'a' * 10000000000 }}",
    "a filter": "{{ 'a' | center(10000000000) }}",
    "a format": "{{ '%10000000000d' % 1 }}",
    "a list": "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
}


def with_template(text: str) -> Callable[[Path], object]:
    def change(half: Path) -> None:
        (half / "tokenizer" / "chat_template.jinja").write_text(text)
        settings = half / "tokenizer" / "tokenizer_config.json"
        fields = json.loads(settings.read_text())
        fields.pop("chat_template", None)
        settings.write_text(json.dumps(fields))

    return change


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for a text."""
    monkeypatch.setattr(templates, "RENDER_S", 0.5)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    one = Renderer()
    yield one
    one.close()


def test_a_template_that_never_ends_is_one_error_in_any_thread(llama: Any, forged: Callable[..., Any], short: None) -> None:
    tokenizer = bundles.load_client(forged(llama, with_template(ENDLESS)).path / "client", WEAK).tokenizer
    assert tokenizer is not None
    failures: list[str] = []

    def ask() -> None:
        with pytest.raises(ModelSourceError) as caught:
            tokenizer.apply_chat_template(TURNS)
        failures.append(str(caught.value))

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert failures == ["the chat template did not end within 0.5 s; use a model with another"] * 2


def test_without_the_rule_it_never_ends(llama: Any, forged: Callable[..., Any]) -> None:
    half = forged(llama, with_template(ENDLESS)).path / "client" / "tokenizer"
    program = (
        "import sys\nfrom transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)\nprint('begun', flush=True)\n"
        "tokenizer.apply_chat_template([{'role': 'user', 'content': 'x'}])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(half)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(3)
        finally:
            process.kill()


def test_the_command_says_so_in_a_line(llama: Any, forged: Callable[..., Any]) -> None:
    bad = forged(llama, with_template(ENDLESS))
    result = veil("generate", "w1", "--bundle", bad.path, "--allow-no-cryptography")
    assert result.returncode == 2
    assert "did not end within 5 s" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_takes_all_memory_is_one_error(name: str, renderer: Renderer) -> None:
    with pytest.raises(
        (ModelSourceError, ValueError), match=r"memory|longer than|broke the process|too large|OverflowError"
    ):
        renderer.render(conversations=[TURNS], chat_template=BOMBS[name])
    assert renderer.render(conversations=[TURNS], chat_template="{{ messages[0].content }}") == ["w1 w2"]


def test_it_is_rendered_by_another_when_the_process_was_killed(renderer: Renderer) -> None:
    assert renderer.render(conversations=[TURNS], chat_template="one") == ["one"]
    assert renderer.process is not None
    renderer.process.kill()
    with pytest.raises(ModelSourceError, match="broke the process that renders it"):
        renderer.render(conversations=[TURNS], chat_template="two")
    assert renderer.render(conversations=[TURNS], chat_template="three") == ["three"]


def test_a_fork_begins_a_process_of_its_own(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer.begin()
    first = renderer.process
    with monkeypatch.context() as patch:
        patch.setattr(ProcessMark, "here", False)
        renderer.begin()
    assert first is not None and renderer.process is not first and first.poll() is None
    first.kill()
    first.communicate()


def test_the_process_writes_no_file_and_reads_no_model(renderer: Renderer) -> None:
    renderer.render(conversations=[TURNS], chat_template="x")
    assert renderer.process is not None
    limits = Path(f"/proc/{renderer.process.pid}/limits")
    if not limits.exists():
        pytest.skip("no /proc here")
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits.read_text().splitlines()[1:]}
    assert found["Max file size"] == ["0", "0"]
    assert found["Max core file size"][0] == "0"
    assert int(found["Max address space"][0]) < 4 << 30


# The same texts -------------------------------------------------------------------------------------------------------

TEMPLATES = {
    "plain": "{% for m in messages %}<user> {{ m['content'] }} </s>\n{% endfor %}",
    "everything": (
        "{{- bos_token }}{%- set ns = namespace(n=0) %}\n"
        "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}{{ ns.n }}\n"
        "{% if tools %}{{ tools | tojson(indent=1) }}{% endif %}{{ extra | default('none') }}{{ strftime_now('%Y') }}"
        "{% if add_generation_prompt %}<reply>{% endif %}\n\n"
    ),
    "what is said": "{{ raise_exception('only one turn') }}",
}
WAYS: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": True, "return_dict": True},
    {"tokenize": False, "add_generation_prompt": True, "extra": "w5"},
    {"return_tensors": "pt", "return_dict": True},
    {"tokenize": False, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    {"tokenize": False, "chat_template": "{% for m in messages %}{{ m.content | trim }};{% endfor %}"},
]


@pytest.mark.parametrize("name", ["plain", "everything"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_texts_are_those_of_transformers(name: str, way: dict[str, Any], tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATES[name]
    own = tokenizer.apply_chat_template(TURNS, **way)
    found = bounded(tokenizer).apply_chat_template(TURNS, **way)
    assert json.dumps(found, default=lambda part: part.tolist() if hasattr(part, "tolist") else dict(part)) == json.dumps(
        own, default=lambda part: part.tolist() if hasattr(part, "tolist") else dict(part)
    )


def test_an_answer_that_was_begun_goes_on(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    turns = [*TURNS, {"role": "assistant", "content": "w9 and"}]
    own = tokenizer.apply_chat_template(turns, continue_final_message=True, tokenize=False)
    assert bounded(tokenizer).apply_chat_template(turns, continue_final_message=True, tokenize=False) == own
    both = bounded(tokenizer).apply_chat_template([TURNS, turns], tokenize=False)
    assert both == [type(tokenizer).apply_chat_template(tokenizer, one, tokenize=False) for one in (TURNS, turns)]


def test_what_a_template_refuses_is_its_own_error(tiny_tokenizer: Any) -> None:
    tokenizer = bounded(copy.deepcopy(tiny_tokenizer))
    tokenizer.chat_template = TEMPLATES["what is said"]
    with pytest.raises(TemplateError, match="only one turn"):
        tokenizer.apply_chat_template(TURNS)
    with pytest.raises(TemplateError):
        tokenizer.apply_chat_template(TURNS, chat_template="{% for %}")
    with pytest.raises(ValueError, match="return_assistant_tokens_mask does not go with"):
        tokenizer.apply_chat_template(TURNS, return_assistant_tokens_mask=True, return_dict=True)
    with pytest.raises(ValueError, match="at least one message"):
        tokenizer.apply_chat_template([])


def test_a_bounded_tokenizer_is_copied_pickled_and_saved(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = bounded(copy.deepcopy(tiny_tokenizer))
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.apply_chat_template(TURNS, tokenize=False) == expected
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").exists()


def test_a_text_takes_moments(renderer: Renderer) -> None:
    renderer.render(conversations=[TURNS], chat_template="{{ messages[0].content }}")
    start = time.perf_counter()
    for _ in range(20):
        renderer.render(conversations=[TURNS], chat_template="{{ messages[0].content }}")
    assert time.perf_counter() - start < 4


def test_the_process_is_begun_before_the_libraries(monkeypatch: pytest.MonkeyPatch, renderer: Renderer) -> None:
    """`veil generate` begins it first, and it is the one that renders."""
    monkeypatch.setattr(templates, "renderer", lambda: renderer)
    begin_rendering()
    begun = renderer.process
    assert begun is not None
    wanted = {"conversations": [[{"role": "user", "content": "hi"}]], "chat_template": "{{ messages[0].content }}"}
    assert renderer.render(**wanted) == ["hi"] and renderer.process is begun
