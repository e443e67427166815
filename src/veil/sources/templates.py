"""Chat templates with a limit of time and memory: a template is a program that comes with a model, and may never end.

Nothing in a process can end a thread that computes, so a process of its own renders them, and is killed when it is late.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from jinja2.exceptions import TemplateError

from veil.errors import ModelSourceError
from veil.random import ProcessMark

if TYPE_CHECKING:
    from veil.typing import Conversations, Tokenizer

RENDER_S = 5.0
_BEGIN_S = 60.0
_AS_IT_IS = "{{ messages[0]['content'] }}"
_OF_TOKENS = frozenset({"padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"})
THAT_PANIC = frozenset({"_encode_plus", "_decode"})
"""Where texts and tokens go through tokenizers' Rust code, whose patterns and tables come with a model."""
_NOT_HERE = frozenset({"sanitize_control_tokens", "return_assistant_tokens_mask"})


T = TypeVar("T", bound="Tokenizer | None")


class Rendered(TypedDict, total=False):
    """An answer of the other process: texts, or the kind of an error and its words."""

    texts: list[str]
    kind: str
    error: str


class Renderer:
    """The process that renders, begun when it is first needed or by `begin`. Thread safe; one text at a time."""

    def __init__(self) -> None:
        self._mark = ProcessMark()
        self._lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self._ready = False
        atexit.register(self.close)

    def begin(self) -> None:
        """Begin the process, which takes a second or two, without waiting for it."""
        if not self._mark.here:
            self.__init__()  # type: ignore[misc]  # after a fork, the pipes are the other process's
        with self._lock:
            if self.process is None:
                command = [sys.executable, str(Path(__file__).with_name("template_worker.py"))]
                pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
                self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, encoding="utf-8")
                self._ready = False

    def render(self, **request: object) -> list[str]:
        """The texts of some conversations; arguments are those of transformers' ``render_jinja_template``.

        Raises `ModelSourceError` for a template that takes too long or too much, jinja's ``TemplateError`` and
        `ValueError` for what it says itself.
        """
        line = json.dumps(request)
        self.begin()
        with self._lock:
            if not self._ready:
                self._exchange(None, _BEGIN_S)
                self._ready = True
            answer = self._exchange(line, RENDER_S)
        if "texts" in answer:
            return [str(text) for text in answer["texts"]]
        kind, words = str(answer.get("kind")), str(answer.get("error"))
        if kind == "TemplateError":
            raise TemplateError(words)
        if kind == "MemoryError":
            raise ModelSourceError("the chat template takes more memory than a text can need; use a model with another")
        raise ValueError(f"{kind}: {words}")

    def close(self) -> None:
        """End the process."""
        if self._mark.here and self.process is not None:
            self._end(self.process)

    def _exchange(self, line: str | None, within_s: float) -> Rendered:
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        timer = threading.Timer(within_s, process.kill)
        timer.daemon = True
        timer.start()
        try:
            if line is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            answer: Rendered = json.loads(process.stdout.readline())
            return answer
        except (OSError, ValueError):  # it was killed, or ended by itself
            self._end(process)
            late = f"did not end within {within_s:g} s" if not timer.is_alive() else "broke the process that renders it"
            raise ModelSourceError(f"the chat template {late}; use a model with another") from None
        finally:
            timer.cancel()

    def _end(self, process: subprocess.Popen[str]) -> None:
        self.process = None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait()


@functools.cache
def renderer() -> Renderer:
    """The one that renders for this process."""
    return Renderer()


def begin_rendering() -> None:
    """Begin the process that renders while the libraries are loaded: where a template is as good as sure to come."""
    renderer().begin()


def bounded(tokenizer: T) -> T:
    """The tokenizer, whose ``apply_chat_template`` now renders in another process, with limits; None for None.

    Where its patterns make the library panic, that is one error.
    """
    if tokenizer is None or not callable(getattr(tokenizer, "apply_chat_template", None)):
        return tokenizer
    if getattr(tokenizer, "chat_template", None):
        renderer().begin()
    tokenizer.apply_chat_template = functools.partial(_apply, tokenizer)  # type: ignore[method-assign]
    for name in THAT_PANIC & set(dir(tokenizer)):
        setattr(tokenizer, name, functools.partial(_unless_it_panics, tokenizer, name))
    return tokenizer


def _unless_it_panics(tokenizer: Tokenizer, name: str, *arguments: object, **options: object) -> Any:
    """The tokenizer's own method; a panic of the library, which is no `Exception`, as `ModelSourceError`."""
    try:
        return getattr(type(tokenizer), name)(tokenizer, *arguments, **options)
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelSourceError("the tokenizer's own code fails for this text; use a model with another") from None


def _apply(
    tokenizer: Tokenizer,
    conversation: Conversations,
    tools: Sequence[object] | None = None,
    documents: object = None,
    chat_template: str | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    tokenize: bool = True,
    **options: object,
) -> Any:
    """What the tokenizer's own method does, with transformers' arguments; `ValueError` for those that need it inside."""
    if wrong := _NOT_HERE & {name for name, value in options.items() if value}:
        raise ValueError(f"{min(wrong)} does not go with a chat template that is rendered in another process")
    if not conversation:
        raise ValueError("a chat template needs at least one message")
    if add_generation_prompt and continue_final_message:
        raise ValueError("add_generation_prompt and continue_final_message exclude each other")
    own = type(tokenizer).apply_chat_template
    several = not isinstance(conversation[0], dict)
    values = {name: value for name, value in options.items() if name not in _OF_TOKENS | _NOT_HERE}
    texts = renderer().render(
        conversations=conversation if several else [conversation],
        tools=None if tools is None else [tool if isinstance(tool, dict) else _schema(tool) for tool in tools],
        documents=documents,
        chat_template=tokenizer.get_chat_template(chat_template, tools),
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        **{**tokenizer.special_tokens_map, **values},
    )
    ready = [[{"role": "user", "content": text}] for text in texts]
    kept = {name: value for name, value in options.items() if name in _OF_TOKENS}
    return own(tokenizer, ready if several else ready[0], chat_template=_AS_IT_IS, tokenize=tokenize, **kept)


def _schema(tool: object) -> object:
    from transformers.utils import get_json_schema

    return get_json_schema(tool)
