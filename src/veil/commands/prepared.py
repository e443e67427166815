"""What `veil generate` was asked for, and the model, the session and the encoded prompt that answer it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from veil.bundle.terms import STRICT, Terms
from veil.client.session import OfflineRows
from veil.commands.models import connected, opened_model
from veil.errors import ModelSourceError, one_line
from veil.hybrid.model import HybridFHEModel
from veil.kernels.backend import kernels_for
from veil.progress import Progress
from veil.runtime.padding import Padding
from veil.runtime.speculation import check_draft
from veil.sources.models import Source, load_model

if TYPE_CHECKING:
    from veil.client.connection import Address


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
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
    fuse_norms: str = "auto"
    terms: Terms = STRICT
    adapter: str | None = None
    json_schema: Path | None = None
    stop: tuple[str, ...] = ()
    batch: Path | None = None
    checked: str = "auto"
    padding: Padding | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model that can answer, its session if it is encrypted, and the prompt as tokens."""

    model: PreTrainedModel
    hybrid: HybridFHEModel | None
    tokenizer: PreTrainedTokenizerBase
    inputs: dict[str, torch.Tensor]
    origin: str
    draft: Source | None


def prepared(request: GenerateRequest, progress: Progress) -> Prepared:
    """Load, connect or compile what a request asks for. `ModelSourceError`, `BundleError`, `ValueError`, and others."""
    ready = _opened(request, _draft(request, progress), progress)
    _adapt(request, ready)
    return ready


def _adapt(request: GenerateRequest, ready: Prepared) -> None:
    """Put the adapter that was asked for around the model's layers, remote or not."""
    if request.adapter is None:
        return
    from veil.training.adapters import load_adapters

    adapters = load_adapters(ready.model, [request.adapter])
    adapters.use(adapters.names[0])


def _draft(request: GenerateRequest, progress: Progress) -> Source | None:
    """The small model that drafts, if one is asked for."""
    if request.speculate in ("auto", "lookup", "off"):
        return None
    try:
        return load_model(request.speculate, progress=progress)
    except ModelSourceError as error:
        raise ModelSourceError(f"--speculate is auto, lookup, off or a model, and as a model: {error}") from None


def _opened(request: GenerateRequest, draft: Source | None, progress: Progress) -> Prepared:
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
    if hybrid is not None and request.checked == "require":
        hybrid.check_answers(origin)
    if hybrid is not None:
        hybrid.set_fhe_mode(request.mode)
    inputs = {name: tensor.to(place) for name, tensor in inputs.items()}
    return Prepared(model=model, hybrid=hybrid, tokenizer=tokenizer, inputs=inputs, origin=origin, draft=draft)


def _connect(request: GenerateRequest, server: Address, draft: Source | None, progress: Progress) -> Prepared:
    hybrid, folder = connected(
        server,
        bundle=request.bundle,
        name=request.server_bundle,
        terms=request.terms,
        fuse_norms=request.fuse_norms,
        offline_rows=OfflineRows(tokens=0, prompt_rows=0),
        progress=progress,
        checked=request.checked,
    )
    origin = f"{server.target}, bundle {folder}"
    tokenizer, inputs = _encode(request, hybrid.model, hybrid.tokenizer, origin, draft)
    return Prepared(model=hybrid.model, hybrid=hybrid, tokenizer=tokenizer, inputs=inputs, origin=origin, draft=draft)


def _encode(
    request: GenerateRequest,
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
    check_room(request, model, rows)
    return tokenizer, inputs


def check_room(request: GenerateRequest, model: PreTrainedModel, rows: int) -> None:
    """`ValueError` for a prompt that leaves no room for the answer."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and rows + request.max_new_tokens > limit:
        raise ValueError(
            f"the prompt's {rows} tokens and {request.max_new_tokens} new ones exceed the model's {limit}; "
            "shorten the prompt or lower --max-new-tokens"
        )
