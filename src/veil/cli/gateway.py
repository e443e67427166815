"""`veil gateway`: its options and help; `veil.commands.gateway` does the work."""

from __future__ import annotations

from typing import Annotated

import typer

from veil.cli.options import (
    Bundle,
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
    ServingDevice,
    Tls,
    TlsCa,
    Token,
    WhichFold,
    model_choice,
)


def command(
    model: OtherModel = None,
    bundle: Bundle = None,
    server: Server = None,
    name: ServerBundle = None,
    fold_norms: WhichFold = FoldNorms.auto,
    host: Annotated[
        str, typer.Option(help="The address to listen on; one that others reach needs --api-key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8470,
    api_key: Annotated[
        str | None, typer.Option(envvar="VEIL_API_KEY", help="The key that clients must send; the page asks for it.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name that this machine is called by; may be repeated.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="Answers that take turns, a token each.")] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Requests that wait; more are refused with status 429.")] = 32,
    answer_tokens: Annotated[
        int, typer.Option(min=1, help="The most tokens of an answer whose request sets no limit.")
    ] = 2048,
    device: ServingDevice = Device.auto,
    open_page: Annotated[bool, typer.Option("--open", help="Open the chat page in the browser.")] = False,
    token: Token = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    allow_no_tls: NoTls = False,
    digest: Digest = None,
    allow_no_cryptography: NoCryptography = False,
    expert_leak: Leak = ExpertLeak.none,
    pad: Pad = "off",
) -> None:
    """Answer the OpenAI API and a chat page on this machine; the model may be on another that sees ciphertexts only.

    Programs that speak the OpenAI API use `http://127.0.0.1:8470/v1` as their base URL and any API key; people open
    `http://127.0.0.1:8470`. Keys, tokenizer and sampling stay in this process. Prompts and answers are not logged.
    """
    from veil.commands.gateway import GatewayRequest, run
    from veil.gateway.app import Settings
    from veil.gateway.guard import Access

    run(
        GatewayRequest(
            choice=model_choice(
                model,
                bundle,
                server,
                name,
                fold_norms,
                device,
                (token, tls, tls_ca, allow_no_tls),
                (expert_leak, allow_no_cryptography, digest),
                pad,
            ),
            access=Access(host=host, api_key=api_key, hosts=tuple(name.lower() for name in allow_host or ())),
            settings=Settings(at_once=at_once, most_waiting=queue, answer_tokens=answer_tokens),
            port=port,
            open_page=open_page,
        )
    )
