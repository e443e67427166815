"""`veil generate`: its options and help; `veil.commands.generate` does the work."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from veil.cli.options import (
    BITS_HELP,
    MODULES_HELP,
    AsJson,
    Device,
    Digest,
    ExpertLeak,
    FoldNorms,
    Leak,
    NoCryptography,
    NoTls,
    OtherModel,
    Pad,
    Server,
    ServerBundle,
    Tls,
    TlsCa,
    Token,
    WhichFold,
    address,
    check_fold_norms,
    terms,
)


class Mode(str, Enum):
    """How the remote layers are computed."""

    torch = "torch"
    disable = "disable"
    simulate = "simulate"
    execute = "execute"


def command(
    prompt: Annotated[str, typer.Argument(help="The prompt, or `-` to read it from standard input.")],
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
    server: Server = None,
    name: ServerBundle = None,
    token: Token = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    allow_no_tls: NoTls = False,
    digest: Digest = None,
    allow_no_cryptography: NoCryptography = False,
    expert_leak: Leak = ExpertLeak.none,
    speculate: Annotated[
        str,
        typer.Option(
            metavar="auto|lookup|MODEL|off",
            help="Check several guessed tokens in one set of round trips: `lookup` guesses what followed the same words "
            "before, MODEL is a small model with the same tokenizer that runs here. The text is the same; the server sees "
            "how many are guessed, which follows how often that went well. `auto` looks up if there is a server, as much as "
            "its distance is worth.",
        ),
    ] = "off",
    fold_norms: WhichFold = FoldNorms.auto,
    pad: Pad = "off",
    as_json: AsJson = False,
) -> None:
    """Answer a prompt through encryption, client and server in one process or, with `--server`, in two.

    Tokens appear as they come. A table follows with what they cost: seconds a token, split into making rows ahead
    (prepare), the server's online product and the client's work; bytes a token, ahead and online; the security level; with
    `--server` also what of it was round trips, transfer and computing, and how many guesses were right.

    With `--json`: `text`, `prompt_tokens`, `new_tokens`, `security_bits` (0 when nothing is encrypted), `seconds` with
    `load`, `prompt` (until the first token), `per_token` (each one after it, its row included), `prepare`, `online`,
    `client` (a generated token's shares), `trips_per_token`, with `--server` also `remote`, with guesses `guesses`, and
    `bytes_per_token` with `up_ahead`, `down_ahead`, `up_online`, `down_online`.
    """
    if bundle is not None and (model, bits, modules) != (None, None, None):
        raise ValueError("--bundle has its own model; leave out --model, --bits and --modules")
    if server is not None and (mode is not Mode.execute or (model, bits, modules) != (None, None, None)):
        raise ValueError("--server uses a bundle and encryption; leave out --mode, --model, --bits and --modules")
    check_fold_norms(fold_norms, server, bundle)
    if mode is Mode.torch and speculate not in ("auto", "off"):
        raise ValueError("--speculate needs remote layers; leave out --mode torch")
    if pad != "off" and (speculate != "off" or mode not in (Mode.execute,)):
        raise ValueError("--pad hides lengths from a server; leave out --speculate and --mode")
    if top_p == 0.0:
        raise ValueError("--top-p has to be above 0; for the likeliest token every time use --temperature 0")
    from veil.commands.generate import Request, run
    from veil.model.padding import Padding

    run(
        Request(
            prompt=sys.stdin.read() if prompt == "-" else prompt,
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
            server=None if server is None else address(server, token, tls, tls_ca, allow_no_tls),
            terms=terms(expert_leak, allow_no_cryptography, digest, half=bundle is not None or server is not None),
            server_bundle=name,
            speculate=speculate,
            fold_norms=fold_norms.value,
            padding=Padding.parse(pad),
        ),
        as_json=as_json,
    )
