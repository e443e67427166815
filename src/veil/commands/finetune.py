"""`veil finetune`: data in, an adapter out."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import typer

from veil.bundle.terms import STRICT, Terms
from veil.client.session import OfflineRows
from veil.commands.models import connected, opened_model
from veil.commands.terminal import Reporter, error_console
from veil.errors import BundleError, ModelSourceError
from veil.hybrid.model import HybridFHEModel
from veil.kernels.backend import kernels_for
from veil.process import keep_out_of_dumps
from veil.progress import Progress
from veil.sources.quiet import quiet
from veil.training.adapters import LoraSettings, add_lora, require_peft
from veil.training.examples import divided, read_examples
from veil.training.loop import FineTuning, Outcome, Schedule, TrainingStep

if TYPE_CHECKING:
    from veil.client.connection import Address
    from veil.typing import LanguageModel, Tokenizer

_REMEDY = "make one with 'veil compile --trainable'"


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """The options of one `veil finetune`."""

    model: str
    bundle: Path | None
    data: Path
    out: Path
    mode: str
    device: str
    tokens: int
    validation: float
    resume: bool
    schedule: Schedule
    lora: LoraSettings
    server: Address | None = None
    server_bundle: str | None = None
    terms: Terms = STRICT


def run(request: FinetuneRequest, *, as_json: bool) -> None:
    """Open the model, train, and write the adapter; a table, or one JSON object.

    Raises `ValueError` for data and folders that do not fit, and veil's errors.
    """
    _check_folder(request)
    request.data.stat()
    require_peft()
    keep_out_of_dumps()
    with Reporter() as reporter:
        hybrid, origin = _open(request, reporter.report)
    try:
        outcome, trained = _train(request, hybrid)
    finally:
        hybrid.close()
    summary = _summary(request, outcome, trained)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        typer.echo(str(request.out))
        error_console().print(f"veil: trained {trained:,} parameters beside {origin}", markup=False, soft_wrap=True)


def _check_folder(request: FinetuneRequest) -> None:
    if request.out.exists() and not request.out.is_dir():
        raise ValueError(f"{request.out} is a file; choose a folder")
    if not request.resume and request.out.exists() and any(request.out.iterdir()):
        raise ValueError(f"{request.out} is not empty; go on with --resume, or choose another folder")


def _open(request: FinetuneRequest, progress: Progress) -> tuple[HybridFHEModel, str]:
    if request.server is not None:
        hybrid, folder = connected(
            request.server,
            bundle=request.bundle,
            name=request.server_bundle,
            terms=request.terms,
            fuse_norms="off",
            offline_rows=OfflineRows(tokens=0, prompt_rows=0, memory_mib=2048),
            progress=progress,
        )
        origin = f"{request.server.target}, bundle {folder}"
    else:
        place = "cuda" if kernels_for(request.device).name == "cuda" else "cpu"
        if request.bundle is not None:
            hybrid = HybridFHEModel.load(request.bundle, device=request.device, progress=progress, terms=request.terms)
            hybrid.model.to(place)
            origin = f"bundle {request.bundle}"
        else:
            hybrid, origin = opened_model(
                request.model,
                bits=8,
                modules="linear",
                device=request.device,
                progress=progress,
                place=place,
                trainable=True,
                floats=request.mode == "torch",
            )
    if not hybrid.is_trainable:
        hybrid.close()
        raise BundleError(f"{origin} was not compiled for training; {_REMEDY}")
    hybrid.set_fhe_mode(request.mode)
    return hybrid, origin


def _train(request: FinetuneRequest, hybrid: HybridFHEModel) -> tuple[Outcome, int]:
    tokenizer: Tokenizer | None = hybrid.tokenizer
    net = cast("LanguageModel", hybrid.model)
    if tokenizer is None:
        raise ModelSourceError("the model has no tokenizer; add tokenizer.json to it")
    if net.config.is_encoder_decoder or not net.can_generate():
        raise ModelSourceError("'veil finetune' trains models that write text; use transformers.Trainer for this one")
    limit = getattr(net.config.get_text_config(), "max_position_embeddings", None) or request.tokens
    with quiet():
        examples = read_examples(request.data, tokenizer, min(request.tokens, limit))
    data = divided(examples, request.validation, request.schedule.seed)
    torch.manual_seed(request.schedule.seed)
    model = add_lora(net, request.lora, base=request.model if request.bundle is None else str(request.bundle.name))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    tuning = FineTuning(model, data, request.schedule, padding=int(padding), stats=hybrid.stats)
    before = tuning.resume(request.out) if request.resume else None
    request.out.mkdir(parents=True, exist_ok=True)
    console = error_console()
    console.print(
        f"veil: {len(data.training)} examples, {len(data.validation)} for validation, mode {request.mode}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip

    def told(step: TrainingStep) -> None:
        measured = "" if step.validation is None else f"  validation {step.validation:.4f}"
        line = (
            f"step {step.number}/{request.schedule.steps}  loss {step.loss:.4f}  {step.seconds:.2f} s  {step.bytes:,} bytes"
        )
        console.print(line + measured, markup=False, highlight=False, soft_wrap=True)

    with quiet():
        outcome = tuning.run(told, request.out, before)
        model.save_pretrained(str(request.out))
    return outcome, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _summary(request: FinetuneRequest, outcome: Outcome, trained: int) -> dict[str, object]:
    steps = outcome.steps
    return {
        "adapter": str(request.out),
        "steps": request.schedule.steps,
        "loss": steps[-1].loss if steps else None,
        "validation_before": outcome.validation_before,
        "validation_after": outcome.validation_after,
        "seconds_per_step": statistics.median(step.seconds for step in steps) if steps else None,
        "bytes_per_step": round(statistics.mean(step.bytes for step in steps)) if steps else None,
        "trainable_parameters": trained,
    }
