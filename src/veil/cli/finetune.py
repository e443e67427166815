"""`veil finetune`: its options and help; `veil.commands.finetune` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.cli.groups import grouped
from veil.cli.options import (
    MODEL_HELP,
    AsJson,
    Bundle,
    Consent,
    Digest,
    Mode,
    NoCryptography,
    Server,
    ServerAccess,
    ServerBundle,
    ServingDevice,
    check_bundle,
    check_file,
    check_model,
    check_new_folder,
)
from veil.cli.options import Device as Device
from veil.cli.options import ExpertLeak as ExpertLeak
from veil.cli.reach import sign_of_life


@grouped
def command(
    *,
    data: Annotated[
        Path,
        typer.Option(
            help="What to learn: a `.jsonl` file whose lines have `messages`, `question` and `answer`, `prompt` and "
            "`completion`, `instruction` and `output`, or `text`; or any text."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the adapter, in PEFT's format, and its checkpoint.")],
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP, show_default="smollm2")] = None,
    mode: Annotated[
        Mode,
        typer.Option(help="`execute` encrypts. The others encrypt nothing and are for comparison, as in `veil generate`."),
    ] = Mode.execute,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 100,
    batch: Annotated[int, typer.Option(min=1, help="Examples that go through the model together.")] = 4,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches whose gradients make one step.")] = 1,
    tokens: Annotated[int, typer.Option(min=2, help="The most tokens of an example; the rest is cut off.")] = 256,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="It falls linearly to 0.")] = 2e-4,
    clip: Annotated[float, typer.Option(min=0.0, help="The most that the gradients' norm may be; 0 for no limit.")] = 1.0,
    rank: Annotated[int, typer.Option(min=1, max=1024, help="The adapter's rank (LoRA).")] = 8,
    alpha: Annotated[float, typer.Option(min=0.0, help="The adapter's scale, over its rank.")] = 16.0,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.95, help="Dropout before the adapter.")] = 0.0,
    targets: Annotated[
        str | None,
        typer.Option(
            help="Names of the layers that get an adapter, with commas.", show_default="the architecture's, by peft"
        ),
    ] = None,
    validation: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the examples to measure by.")] = 0.1,
    validate_every: Annotated[int, typer.Option(min=0, help="Steps between measurements; 0 for first and last only.")] = 0,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints; 0 for the last only.")] = 20,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    seed: Annotated[int, typer.Option(help="Decides the order of examples and the adapter's start; no secret.")] = 0,
    bundle: Bundle = None,
    device: ServingDevice = Device.auto,
    server: Server = None,
    name: ServerBundle = None,
    server_access: ServerAccess,
    digest: Digest = None,
    allow_no_cryptography: NoCryptography = False,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA adapter on data that the other side does not see: examples, gradients and adapter stay here.

    The frozen layers are computed forward and backward on encrypted rows; the server learns how many there are, and when.
    With `--server` it has to serve a bundle that `veil compile --trainable` made. The adapter is used with `veil generate
    --adapter OUT`, with `veil gateway --adapter OUT`, or by any program that reads PEFT's format.

    A line for each step on standard error: loss, seconds, bytes. With `--json`: `adapter`, `steps`, `loss`,
    `validation_before`, `validation_after`, `seconds_per_step`, `bytes_per_step`, `trainable_parameters`.
    """
    if model is not None and (bundle is not None or server is not None):
        raise ValueError("--bundle and --server have their own model; leave out MODEL")
    if server is not None and mode is not Mode.execute:
        raise ValueError("--server uses encryption; leave out --mode")
    if bundle is not None and mode is Mode.torch:
        raise ValueError("a bundle has no float layers for --mode torch; use --mode disable, or MODEL")
    check_model(model or "smollm2")
    consent = Consent(digest=digest, allow_no_cryptography=allow_no_cryptography)
    check_bundle(bundle, consent.terms())
    check_file(data)
    if not resume:
        check_new_folder(out, "go on with --resume, or choose a new folder")
    sign_of_life()
    from veil.commands.finetune import FinetuneRequest, run
    from veil.training.adapters import LoraSettings
    from veil.training.loop import Schedule

    run(
        FinetuneRequest(
            model=model or "smollm2",
            bundle=bundle,
            data=data,
            out=out,
            mode=mode.value if server is None else "remote",
            device=device.value,
            tokens=tokens,
            validation=validation,
            resume=resume,
            schedule=Schedule(
                steps=steps,
                batch=batch,
                accumulate=accumulate,
                learning_rate=learning_rate,
                clip=clip,
                validate_every=validate_every,
                save_every=save_every,
                seed=seed,
            ),
            lora=LoraSettings(
                rank=rank,
                alpha=alpha,
                dropout=dropout,
                targets=tuple(part.strip() for part in (targets or "").split(",") if part.strip()),
            ),
            server=None if server is None else server_access.address(server),
            server_bundle=name,
            terms=consent.terms(half=bundle is not None or server is not None),
        ),
        as_json=as_json,
    )
