"""`veil generate`: its options and help; `veil.commands.generate` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.cli.groups import grouped
from veil.cli.options import (
    BITS_HELP,
    MODULES_HELP,
    AsJson,
    Checked,
    Consent,
    Device,
    FuseNorms,
    Mode,
    OtherModel,
    Pad,
    Server,
    ServerAccess,
    ServerBundle,
    WhichChecked,
    WhichFusion,
    check_bundle,
    check_file,
    check_fuse_norms,
    check_model,
)
from veil.cli.reach import sign_of_life
from veil.cli.streams import read_input
from veil.errors import ModelSourceError


@grouped
def command(
    *,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt, or `-` to read it from standard input.", show_default=False)
    ] = None,
    model: OtherModel = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens to generate.")] = 128,
    mode: Annotated[
        Mode,
        typer.Option(
            help="`execute` encrypts. The others encrypt nothing and are for comparison: `simulate` adds the noise "
            "that encryption would, `disable` computes the integer layers in clear, `torch` the original float layers."
        ),
    ] = Mode.execute,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token every time; higher is more varied.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest tokens of this total probability.")
    ] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(help="Makes sampling repeatable; secrets are always fresh.", show_default="random"),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, no chat template.")] = False,
    bits: Annotated[int | None, typer.Option(min=2, max=8, help=BITS_HELP, show_default="8")] = None,
    modules: Annotated[str | None, typer.Option(help=MODULES_HELP, show_default="linear")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="A folder made by `veil compile`, instead of --model, --bits and --modules."),
    ] = None,
    device: Annotated[
        Device,
        typer.Option(
            help="Where it computes, both halves and the layers between them; `auto` takes a GPU if veil can use one. With "
            "--server the client's half stays on the processor."
        ),
    ] = Device.auto,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="A PEFT adapter, such as `veil finetune` makes; it stays on this machine."),
    ] = None,
    server: Server = None,
    name: ServerBundle = None,
    server_access: ServerAccess,
    consent: Consent,
    checked: WhichChecked = Checked.auto,
    speculate: Annotated[
        str,
        typer.Option(
            metavar="auto|lookup|MODEL|off",
            help="Draft several tokens and check them in one set of round trips (speculative decoding). `lookup` drafts "
            "what followed the same words before; MODEL is a small model with the same tokenizer, run here; `auto` is "
            "`lookup` with a server, as many tokens as its round-trip time makes worthwhile. The text does not change. The "
            "server sees how many tokens are drafted, and that number depends on how many were accepted before.",
        ),
    ] = "off",
    fuse_norms: WhichFusion = FuseNorms.auto,
    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with a JSON schema, which the answer follows exactly.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated.")
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='Answer the prompts of a file, the rows of several together: `{"prompt": ...}` or `{"messages": [...]}` a '
            "line, with an `id` if wanted; one object a line comes out, with `id` and `text`.",
        ),
    ] = None,
    pad: Pad = "off",
    as_json: AsJson = False,
) -> None:
    """Answer a prompt through encryption, client and server in one process or, with `--server`, in two.

    Tokens appear as they come. A table follows with what they cost: seconds a token, split into making offline rows
    (prepare), the server's online product and the client's work; bytes a token, offline and online; the security level; with
    `--server` also what of it was round trips, transfer and computing, and how many draft tokens were right.

    With `--json`: `text`, `prompt_tokens`, `new_tokens`, `security_bits` (0 when nothing is encrypted), `seconds` with
    `load`, `prompt` (until the first token), `per_token` (each one after it, its row included), `prepare`, `online`,
    `client` (a generated token's shares), `trips_per_token`, `checked` (the model whose weights the answers were checked
    against, or null), with `--server` also `remote`, with draft tokens `draft_tokens`, and `bytes_per_token` with
    `up_offline`, `down_offline`, `up_online`, `down_online`.
    """
    if (prompt is None) == (batch is None):
        raise ValueError("there is one prompt, or --batch FILE.jsonl; give either")
    if batch is not None and (speculate != "off" or as_json):
        raise ValueError("--batch answers several prompts and prints JSON anyway; leave out --speculate and --json")
    if json_schema is not None and speculate != "off":
        raise ValueError("draft tokens do not know the schema; leave out --speculate, or --json-schema")
    if any(not text for text in stop or ()):
        raise ValueError("--stop takes a text of at least one character")
    check_file(batch)
    check_file(json_schema)
    if bundle is not None and (model, bits, modules) != (None, None, None):
        raise ValueError("--bundle has its own model; leave out --model, --bits and --modules")
    if server is not None and (mode is not Mode.execute or (model, bits, modules) != (None, None, None)):
        raise ValueError("--server uses a bundle and encryption; leave out --mode, --model, --bits and --modules")
    check_fuse_norms(fuse_norms, server, bundle)
    if checked is Checked.require and mode is not Mode.execute:
        raise ValueError("--checked require is about encrypted answers; leave out --mode")
    if mode is Mode.torch and speculate not in ("auto", "off"):
        raise ValueError("--speculate needs remote layers; leave out --mode torch")
    if pad != "off" and (speculate not in ("auto", "off") or mode is not Mode.execute):
        raise ValueError("--pad hides lengths from a server; leave out --speculate and --mode")
    if mode is Mode.torch and bundle is not None:
        raise ValueError("a bundle has no float layers for --mode torch; use --mode disable, or --model")
    check_model(model or "smollm2")
    chosen = consent.terms(half=bundle is not None or server is not None)
    check_bundle(bundle, chosen)
    from veil import Padding

    if prompt is not None and not prompt.strip():
        raise ValueError("the prompt is empty; give at least one word")
    if speculate not in ("auto", "lookup", "off"):
        try:
            check_model(speculate)
        except ModelSourceError as error:
            raise ModelSourceError(f"--speculate is auto, lookup, off or a model, and as a model: {error}") from None
    if top_p == 0.0:
        raise ValueError("--top-p has to be above 0; for the likeliest token every time use --temperature 0")
    padding = Padding.parse(pad)
    where = None if server is None else server_access.address(server)
    sign_of_life()
    from veil.commands.ahead import begin_rendering, load_libraries

    if not raw:
        begin_rendering()
    load_libraries()
    from veil.commands.generate import run
    from veil.commands.prepared import GenerateRequest

    run(
        GenerateRequest(
            prompt=read_input() if prompt == "-" else "x" if prompt is None else prompt,  # with --batch a stand-in
            model=model or "smollm2",
            bits=bits or 8,
            modules=modules or "linear",
            bundle=bundle,
            mode=mode.value if server is None else "remote",
            device=device.value,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            raw=raw,
            server=where,
            terms=chosen,
            server_bundle=name,
            speculate=speculate,
            fuse_norms=fuse_norms.value,
            adapter=adapter,
            json_schema=json_schema,
            stop=tuple(stop or ()),
            batch=batch,
            checked=checked.value,
            padding=padding,
        ),
        as_json=as_json,
    )
