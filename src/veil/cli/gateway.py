"""`veil gateway`: its options and help; `veil.commands.gateway` does the work."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from veil.cli.groups import grouped
from veil.cli.options import (
    MODEL_HELP,
    Adapter,
    Checked,
    Consent,
    Device,
    FuseNorms,
    Pad,
    ServerAccess,
    ServerBundle,
    ServingDevice,
    WhichChecked,
    WhichFusion,
)
from veil.cli.reach import sign_of_life


@grouped
def command(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="[NAME=]MODEL", help=MODEL_HELP + " May be repeated.", show_default="smollm2"),
    ] = None,
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="A folder made by `veil compile`, or its client half. May be repeated; one for each --server, or none.",
        ),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]HOST:PORT",
            help="Use the server there, with --bundle's client half or the one that it offers. May be repeated.",
        ),
    ] = None,
    adapter: Adapter = None,
    name: ServerBundle = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MODEL", help="Another name for a model. May be repeated.")
    ] = None,
    fuse_norms: WhichFusion = FuseNorms.auto,
    host: Annotated[
        str, typer.Option(help="The address to listen on; one that others reach needs --api-key or --api-keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8470,
    api_key: Annotated[
        str | None, typer.Option(envvar="VEIL_API_KEY", help="The key that clients must send; the page asks for it.")
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="File of further keys' SHA-256 digests, one a line; `veil token` makes them. No key learns anything of the "
            "conversations of another."
        ),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate chain, to be reached over TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name that this machine is called by; may be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="https://HOST", help="A page elsewhere that may use the API; may be repeated. `*` is any."),
    ] = None,
    at_once: Annotated[
        int, typer.Option(min=1, max=64, help="Answers generated at once; they take turns token by token.")
    ] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Requests that wait; more are refused with status 429.")] = 32,
    answer_tokens: Annotated[
        int, typer.Option(min=1, help="The most tokens of an answer whose request sets no limit.")
    ] = 2048,
    cache_gib: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Keep what was computed of prompts on disk, up to so many GiB, so that a document's rows go up once even "
            "if the gateway is restarted; encrypted with a key from the system's keyring, or the passphrase in "
            "VEIL_CACHE_PASSPHRASE. `veil cache` lists and clears.",
            show_default="off",
        ),
    ] = None,
    cache_days: Annotated[float, typer.Option(min=0.01, help="Forget what was not used for so many days.")] = 7.0,
    eager_prompt: Annotated[
        bool,
        typer.Option(
            "--eager-prompt",
            help="Send rows of finished words while a message is typed on the page, so that its answer begins at once. The "
            "server then sees how fast it is typed, how often it is changed, and messages that are never sent; with --pad, "
            "all that in steps.",
        ),
    ] = False,
    device: ServingDevice = Device.auto,
    open_page: Annotated[bool, typer.Option("--open", help="Open the chat page in the browser.")] = False,
    server_access: ServerAccess,
    consent: Consent,
    checked: WhichChecked = Checked.auto,
    pad: Pad = "off",
) -> None:
    """Answer the OpenAI API and a chat page on this machine; the model may be on another that sees ciphertexts only.

    Programs that speak the OpenAI API use `http://127.0.0.1:8470/v1` as their base URL and any API key; people open
    `http://127.0.0.1:8470`. With `--adapter`, which may be repeated, the model also answers under the name `MODEL:ADAPTER`.
    Keys, tokenizer and sampling stay in this process. Prompts and answers are not logged.
    """
    if (tls_cert is None) != (tls_key is None):
        raise ValueError("--tls-cert and --tls-key go together")
    from veil import Padding
    from veil.cli.models import aliases_of, model_choices
    from veil.gateway.guard import Access
    from veil.gateway.keys import Keys

    padding = Padding.parse(pad)
    if padding is not None and cache_gib is not None:
        raise ValueError(
            "--cache-gib shows how far a prompt repeats an earlier one, whatever --pad says; leave out one of them"
        )
    if padding is not None and padding.powers and eager_prompt:
        raise ValueError(
            "--eager-prompt goes with steps of one size: what is left of a message would show more than its power of two; "
            "use --pad 64"
        )
    access = Access(
        host=host,
        keys=Keys.read(api_key, api_keys),
        hosts=tuple(name.lower() for name in allow_host or ()),
        origins=tuple(origin.lower().rstrip("/") for origin in allow_origin or ()),
    )
    choices = model_choices(
        model or [],
        bundle or [],
        server or [],
        name,
        fuse_norms,
        device,
        server_access,
        consent,
    )
    if adapter:
        if len(choices) > 1:
            raise ValueError("--adapter is for one model; start a gateway for each model that has adapters")
        choices = (replace(choices[0], adapters=tuple(adapter)),)
    choices = tuple(replace(choice, checked=checked.value, padding=padding) for choice in choices)
    sign_of_life()
    from veil.commands.ahead import load_libraries

    load_libraries()
    from veil.commands.gateway import GatewayRequest, Keep, run
    from veil.gateway.app import Settings

    run(
        GatewayRequest(
            choices=choices,
            access=access,
            settings=Settings(at_once=at_once, most_waiting=queue, answer_tokens=answer_tokens, eager=eager_prompt),
            port=port,
            open_page=open_page,
            aliases=aliases_of(alias or []),
            keep=None
            if cache_gib is None
            else Keep(
                most_bytes=int(cache_gib * (1 << 30)), days=cache_days, passphrase=os.environ.get("VEIL_CACHE_PASSPHRASE")
            ),
            tls=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        )
    )
