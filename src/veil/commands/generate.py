"""`veil generate`: a prompt in, an answer and what it cost out."""

from __future__ import annotations

import copy
import json
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from veil.client.session import Ahead
from veil.commands.costs import Costs, Meter
from veil.commands.interrupts import interrupting
from veil.commands.models import connected, opened_model
from veil.commands.stream import AnswerStreamer
from veil.commands.terminal import Reporter, error_console
from veil.errors import ModelSourceError, one_line
from veil.gateway.checkpoint import plain
from veil.kernels.backend import kernels_for
from veil.model.hybrid import HybridFHEModel
from veil.model.padding import Padding
from veil.model.quiet import quiet
from veil.model.sources import Source, load_model
from veil.model.speculation import check_draft
from veil.model.terms import STRICT, Terms
from veil.process import keep_out_of_dumps
from veil.progress import Progress

if TYPE_CHECKING:
    from veil.client.connection import Address
    from veil.model.speculation import Speculation

_TOKENS_AHEAD = 15
"""Generated tokens that rows are made for before the first is asked for; more are made as they are needed."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of one `veil generate`."""

    prompt: str
    model: str
    bits: int
    modules: str
    bundle: Path | None
    mode: str
    device: str
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    raw: bool
    server: Address | None = None
    server_bundle: str | None = None
    speculate: str = "off"
    fold_norms: str = "auto"
    terms: Terms = STRICT
    padding: Padding | None = None


@dataclass(frozen=True, kw_only=True)
class _Ready:
    model: PreTrainedModel
    hybrid: HybridFHEModel | None
    tokenizer: PreTrainedTokenizerBase
    inputs: dict[str, torch.Tensor]
    origin: str
    draft: Source | None


def run(request: Request, *, as_json: bool) -> None:
    """Load, compile, generate; print the text as it comes and a table, or one JSON object.

    Raises `ModelSourceError`, `BundleError`, `ValueError` and veil's other errors, for the command line to show.
    """
    if not request.prompt.strip():
        raise ValueError("the prompt is empty; give at least one word")
    keep_out_of_dumps()
    start = time.perf_counter()
    with Reporter() as reporter:
        draft = _draft(request, reporter.report)
        ready = _prepare(request, draft, reporter.report)
    load_s = time.perf_counter() - start
    text, costs = _generate(request, ready, load_s, write=not as_json)
    security = float(ready.hybrid.params.security_bits) if ready.hybrid and request.mode in ("execute", "remote") else 0.0
    if as_json:
        typer.echo(json.dumps({"text": text} | costs.to_json(security)))
    else:
        error_console().print(costs.table(ready.origin, request.mode, security))


def _draft(request: Request, progress: Progress) -> Source | None:
    """The small model that guesses, if one is asked for."""
    if request.speculate in ("auto", "lookup", "off"):
        return None
    try:
        return load_model(request.speculate, progress=progress)
    except ModelSourceError as error:
        raise ModelSourceError(f"--speculate is auto, lookup, off or a model, and as a model: {error}") from None


def _prepare(request: Request, draft: Source | None, progress: Progress) -> _Ready:
    if request.server is not None:
        return _connect(request, request.server, draft, progress)
    place = "cuda" if kernels_for(request.device).name == "cuda" else "cpu"  # no GPU is told of before the long work
    if request.mode == "torch" and request.bundle is not None:
        raise ValueError("a bundle has no float layers for --mode torch; use --mode disable, or --model")
    hybrid: HybridFHEModel | None = None
    if request.bundle is not None:
        hybrid = HybridFHEModel.load(request.bundle, device=request.device, progress=progress, terms=request.terms)
        hybrid.model.to(place)
        model, tokenizer, origin = hybrid.model, hybrid.tokenizer, f"bundle {request.bundle}"
        tokenizer, inputs = _encode(request, model, tokenizer, origin, draft)
    elif request.mode == "torch":
        source = load_model(request.model, progress=progress)
        source.model.to(place)
        model, origin = source.model, source.origin
        tokenizer, inputs = _encode(request, model, source.tokenizer, origin, draft)
    else:
        hybrid, origin = opened_model(
            request.model, bits=request.bits, modules=request.modules, device=request.device, progress=progress, place=place
        )
        model = hybrid.model
        tokenizer, inputs = _encode(request, model, hybrid.tokenizer, origin, draft)
    if hybrid is not None:
        hybrid.set_fhe_mode(request.mode)
    inputs = {name: tensor.to(place) for name, tensor in inputs.items()}
    return _Ready(model=model, hybrid=hybrid, tokenizer=tokenizer, inputs=inputs, origin=origin, draft=draft)


def _connect(request: Request, server: Address, draft: Source | None, progress: Progress) -> _Ready:
    hybrid, folder = connected(
        server,
        bundle=request.bundle,
        name=request.server_bundle,
        terms=request.terms,
        fold_norms=request.fold_norms,
        ahead=Ahead(tokens=0, prompt_rows=0),
        progress=progress,
    )
    origin = f"{server.target}, bundle {folder}"
    tokenizer, inputs = _encode(request, hybrid.model, hybrid.tokenizer, origin, draft)
    return _Ready(model=hybrid.model, hybrid=hybrid, tokenizer=tokenizer, inputs=inputs, origin=origin, draft=draft)


def _encode(
    request: Request,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    origin: str,
    draft: Source | None,
) -> tuple[PreTrainedTokenizerBase, dict[str, torch.Tensor]]:
    if tokenizer is None:
        raise ModelSourceError(f"{origin} has no tokenizer; add tokenizer.json to it")
    if not model.can_generate():
        raise ModelSourceError(f"{origin} is an encoder ({type(model).__name__}): it has vectors for an answer, not text")
    if draft is not None:
        check_draft(model, draft.model, tokenizer, draft.tokenizer)
    if request.raw or not tokenizer.chat_template:
        encoded = tokenizer(request.prompt, return_tensors="pt")
    else:
        turns = [{"role": "user", "content": request.prompt}]
        try:
            encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        except Exception as error:  # a template is the model's, a program of its own
            raise ModelSourceError(f"the chat template of {origin} fails ({one_line(error)}); use --raw") from None
    inputs = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    rows = int(inputs["input_ids"].shape[1])
    if rows == 0:
        raise ValueError("the prompt is empty; give at least one word")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and rows + request.max_new_tokens > limit:
        raise ValueError(
            f"the prompt's {rows} tokens and {request.max_new_tokens} new ones exceed the model's {limit}; "
            "shorten the prompt or lower --max-new-tokens"
        )
    return tokenizer, inputs


def _generate(request: Request, ready: _Ready, load_s: float, *, write: bool) -> tuple[str, Costs]:
    rows = int(ready.inputs["input_ids"].shape[1])
    encrypted = ready.hybrid is not None and request.mode in ("execute", "remote")
    remote = request.server is not None
    speculation = _speculation(request, ready)
    sent = request.padding.rows(rows) if request.padding and encrypted else rows
    gone = threading.Event()
    if ready.hybrid is not None and encrypted:
        ready.hybrid.padding = request.padding
        ready.hybrid.checkpoint = partial(_stop_if, gone)
    meter = Meter(ready.hybrid if encrypted else None, remote=remote, guesses=speculation is not None and encrypted)
    streamer = AnswerStreamer(ready.tokenizer, write=_write if write else None, on_token=meter.token)
    if request.seed is not None:
        torch.manual_seed(request.seed)
    meter.start()  # after the link was measured, before the first upload: it counts them all
    if ready.hybrid is not None and remote:
        ready.hybrid.expect(rows, request.max_new_tokens)
    elif ready.hybrid is not None and encrypted:
        whole = (sent - 1) // ready.hybrid.params.T * ready.hybrid.params.T  # what is left over shares a batch with tokens
        ready.hybrid.reserve(rows_body=whole)
        meter.prompt_rows_made()
        ready.hybrid.reserve(rows_full=sent - whole + min(request.max_new_tokens - 1, _TOKENS_AHEAD))
    try:
        hidden = request.padding is not None and encrypted
        with quiet(), interrupting(gone, hidden=hidden), speculation or nullcontext({}) as options:
            config = _generation_config(request, ready.model)
            for name in [name for name in options if name != "assistant_model"]:
                setattr(config, name, options.pop(name))
            output = ready.model.generate(**ready.inputs, generation_config=config, streamer=streamer, **options)
    except BaseException as error:
        streamer.break_off()
        if isinstance(error, _Interrupted):
            raise KeyboardInterrupt from None
        raise
    finally:
        if ready.hybrid is not None and remote:
            ready.hybrid.close()
    costs = meter.costs(load_s=load_s, prompt_tokens=rows)
    answer = output[0] if ready.model.config.is_encoder_decoder else output[0, rows:]
    text = ready.tokenizer.decode(answer, skip_special_tokens=True)
    return str(text), costs


def _speculation(request: Request, ready: _Ready) -> Speculation | None:
    """Guessing as the user asked; ``auto`` looks up in the text when a server answers, as the pace allows."""
    wanted = request.speculate
    if wanted == "auto":
        wanted = "lookup" if request.server is not None else "off"
    if wanted == "off" or ready.hybrid is None:
        return None
    if wanted == "lookup":
        return ready.hybrid.speculate("lookup")
    assert ready.draft is not None
    return ready.hybrid.speculate(ready.draft.model)


def _generation_config(request: Request, model: PreTrainedModel) -> GenerationConfig:
    model.generation_config = plain(model.generation_config)  # what a checkpoint says besides is not what was asked for
    config = copy.deepcopy(model.generation_config)
    changes: dict[str, Any] = {"max_new_tokens": request.max_new_tokens, "max_length": None, "min_length": None}
    changes |= {"num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False}
    if request.temperature > 0:
        changes |= {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
    else:
        changes |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if config.pad_token_id is None:
        end = config.eos_token_id
        changes["pad_token_id"] = end[0] if isinstance(end, list) else end
    if model.device.type == "cuda" and getattr(model, "_can_compile_fullgraph", False):
        changes |= {"cache_implementation": "static", "disable_compile": True}  # one graph a token
    for name, value in changes.items():
        setattr(config, name, value)
    return config


class _Interrupted(Exception):
    """Ctrl-C, where the pass is to go on to its end."""


def _stop_if(gone: threading.Event) -> None:
    if gone.is_set():
        raise _Interrupted


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
