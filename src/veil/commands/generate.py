"""`veil generate`: a prompt in, an answer and what it cost out."""

from __future__ import annotations

import copy
import json
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
import typer
from transformers import GenerationConfig, PreTrainedModel

from veil.checks.words import answers_words
from veil.commands import batch
from veil.commands.costs import CostMeter, Costs
from veil.commands.hidden_lengths import lengths_hidden
from veil.commands.prepared import GenerateRequest, Prepared, check_room, prepared
from veil.commands.stream import AnswerStreamer
from veil.commands.structure import SchemaMask, Until, cut_at, grammar_of
from veil.commands.terminal import Reporter, error_console
from veil.gateway.checkpoint import plain
from veil.process import keep_out_of_dumps
from veil.runtime.speculation import SpeculationOptions
from veil.sources.quiet import quiet

if TYPE_CHECKING:
    from veil.runtime.speculation import Speculation

_STRUCTURE = ("logits_processor", "stop_strings", "tokenizer")
_TOKENS_OFFLINE = 15
"""Generated tokens that rows are made for before the first is asked for; more are made as they are needed."""


def run(request: GenerateRequest, *, as_json: bool) -> None:
    """Load, compile, generate; print the text as it comes and a table, or one JSON object.

    Raises `ModelSourceError`, `BundleError`, `ValueError` and veil's other errors, for the command line to show.
    """
    entries = None if request.batch is None else batch.read(request.batch)
    if entries is None and not request.prompt.strip():
        raise ValueError("the prompt is empty; give at least one word")
    keep_out_of_dumps()
    start = time.perf_counter()
    with Reporter() as reporter:
        ready = prepared(request, reporter.report)
    if ready.hybrid is not None and request.mode in ("execute", "remote"):
        ready.hybrid.padding = request.padding  # before anything is announced
    load_s = time.perf_counter() - start
    if entries is not None:
        _answer_all(request, ready, entries)
        return
    checked = ready.hybrid.checked_against if ready.hybrid else None
    text, costs = _generate(request, ready, load_s, write=not as_json)
    security = float(ready.hybrid.params.security_bits) if ready.hybrid and request.mode in ("execute", "remote") else 0.0
    if as_json:
        typer.echo(json.dumps({"text": text} | costs.to_json(security) | {"checked": checked}))
    else:
        table = costs.table(ready.origin, request.mode, security)
        if security:
            table.add_row("answers", answers_words(request.mode, checked))
        error_console().print(table)


def _generate(request: GenerateRequest, ready: Prepared, load_s: float, *, write: bool) -> tuple[str, Costs]:
    rows = int(ready.inputs["input_ids"].shape[1])
    encrypted = ready.hybrid is not None and request.mode in ("execute", "remote")
    remote = request.server is not None
    speculation = _speculation(request, ready)
    padding = request.padding if encrypted else None
    sent = padding.rows(rows) if padding else rows
    meter = CostMeter(ready.hybrid if encrypted else None, remote=remote, draft_tokens=speculation is not None and encrypted)
    until = Until(request.stop, _write)
    streamer = AnswerStreamer(ready.tokenizer, write=until if write else None, on_token=meter.token)
    if request.seed is not None:
        torch.manual_seed(request.seed)
    meter.start()  # after the link was measured, before the first upload: it counts them all
    if ready.hybrid is not None and remote:
        ready.hybrid.expect(rows, request.max_new_tokens)
    elif ready.hybrid is not None and encrypted:
        whole = (sent - 1) // ready.hybrid.params.T * ready.hybrid.params.T  # what is left over shares a batch with tokens
        ready.hybrid.reserve(rows_body=whole)
        meter.prompt_rows_made()
        ready.hybrid.reserve(rows_full=sent - whole + min(request.max_new_tokens - 1, _TOKENS_OFFLINE))
    try:
        with quiet(), lengths_hidden(ready.hybrid, padding), speculation or nullcontext(SpeculationOptions()) as drafts:
            options = {**drafts, **_structure(request, ready)}
            config = generation_config(request, ready.model)
            for name in [name for name in options if name not in ("assistant_model", *_STRUCTURE)]:
                setattr(config, name, options.pop(name))
            output = ready.model.generate(**ready.inputs, generation_config=config, streamer=streamer, **options)
            if write:
                until.finish()
    except BaseException:
        streamer.break_off()
        raise
    finally:
        if ready.hybrid is not None and remote:
            ready.hybrid.close()
    costs = meter.costs(load_s=load_s, prompt_tokens=rows)
    answer = output[0] if ready.model.config.is_encoder_decoder else output[0, rows:]
    text = ready.tokenizer.decode(answer, skip_special_tokens=True)
    return cut_at(str(text), request.stop), costs


def _structure(request: GenerateRequest, ready: Prepared, answers: int = 1) -> dict[str, object]:
    """What ``generate`` is told of a schema and of texts that end an answer."""
    options: dict[str, object] = {}
    if request.json_schema is not None:
        grammar, ends = grammar_of(request.json_schema, ready.model, ready.tokenizer)
        options["logits_processor"] = [SchemaMask(grammar, ends, answers)]
    if request.stop:
        options |= {"stop_strings": list(request.stop), "tokenizer": ready.tokenizer}
    return options


def _answer_all(request: GenerateRequest, ready: Prepared, entries: list[batch.Entry]) -> None:
    """Answer the prompts of a file, `batch.AT_ONCE` together, and print one object a line as they are done."""
    start, tokens = time.perf_counter(), 0
    if request.seed is not None:
        torch.manual_seed(request.seed)
    try:
        for first in range(0, len(entries), batch.AT_ONCE):
            part = entries[first : first + batch.AT_ONCE]
            inputs = batch.encoded(part, ready.tokenizer, request.raw)
            length = int(inputs["input_ids"].shape[1])
            rows = len(part) * (request.padding.rows(length) if request.padding else length)
            check_room(request, ready.model, length)
            if ready.hybrid is not None and request.mode in ("execute", "remote"):
                ready.hybrid.expect(rows, len(part) * request.max_new_tokens)
            inputs = {name: tensor.to(ready.model.device) for name, tensor in inputs.items()}
            encrypted = ready.hybrid is not None and request.mode in ("execute", "remote")
            with quiet(), lengths_hidden(ready.hybrid, request.padding if encrypted else None):
                config = generation_config(request, ready.model)
                output = ready.model.generate(**inputs, generation_config=config, **_structure(request, ready, len(part)))
            begun = 0 if ready.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
            for entry, answer in zip(part, output, strict=True):
                tokens += int((answer[begun:] != config.pad_token_id).sum())
                text = cut_at(str(ready.tokenizer.decode(answer[begun:], skip_special_tokens=True)), request.stop)
                typer.echo(json.dumps({"id": entry.id, "text": text}, ensure_ascii=False))
    finally:
        if ready.hybrid is not None and request.server is not None:
            ready.hybrid.close()
    seconds = time.perf_counter() - start
    error_console().print(f"veil: {len(entries)} answers, {tokens} tokens in {seconds:.1f} s", highlight=False)


def _speculation(request: GenerateRequest, ready: Prepared) -> Speculation | None:
    """Speculation as the user asked; ``auto`` looks up in the text when a server answers, as the pace allows."""
    wanted = request.speculate
    if wanted == "auto":
        wanted = "lookup" if request.server is not None and request.padding is None else "off"
    if wanted == "off" or ready.hybrid is None:
        return None
    if wanted == "lookup":
        return ready.hybrid.speculate("lookup")
    assert ready.draft is not None
    return ready.hybrid.speculate(ready.draft.model)


def generation_config(request: GenerateRequest, model: PreTrainedModel) -> GenerationConfig:
    """What a request asks ``generate`` for, and of the model's own settings what says which tokens there are."""
    model.generation_config = plain(model.generation_config)  # what a checkpoint says besides is not what was asked for
    config = copy.deepcopy(model.generation_config)
    changes: dict[str, object] = {"max_new_tokens": request.max_new_tokens, "max_length": None, "min_length": None}
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


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
