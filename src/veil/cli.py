"""The `veil` command: names, options and help. The work is in `veil.commands`, imported when a command runs."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from veil import __version__
from veil.commands.terminal import EXIT_INTERRUPTED, one_line_errors


class Mode(str, Enum):
    """How the remote layers are computed."""

    torch = "torch"
    disable = "disable"
    simulate = "simulate"
    execute = "execute"


class Device(str, Enum):
    """Where veil computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class FoldNorms(str, Enum):
    """Whether layers on both sides of a norm share a round trip."""

    auto = "auto"
    on = "on"
    off = "off"


class Task(str, Enum):
    """What a model is loaded for."""

    auto = "auto"
    embed = "embed"


class ExpertLeak(str, Enum):
    """What a mixture of experts tells the server of its routing."""

    none = "none"
    reveal = "reveal"


class BenchMode(str, Enum):
    """Where `veil bench` runs the server."""

    execute = "execute"
    remote = "remote"


class BenchPeer(str, Enum):
    """Systems that `veil bench` compares with."""

    concrete_ml = "concrete-ml"


class BenchFigure(str, Enum):
    """Figures that `veil bench` draws."""

    phases = "phases"
    bytes = "bytes"
    rows = "rows"
    links = "links"
    widths = "widths"


app = typer.Typer(
    name="veil",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # its listing of local variables could show keys and prompts
    context_settings={"help_option_names": ["-h", "--help"]},
)

_MODEL_HELP = (
    "The model: `smollm2` (built in), a FOLDER in Hugging Face layout, a FILE.gguf, or a HUB-ID such as "
    "`openai-community/gpt2`."
)
_MODULES_HELP = (
    "Which layers are remote: `linear` (every linear layer, the head included), `linear+embedding` (the token "
    "embedding too), or a regular expression that matches whole module names."
)
_BITS_HELP = "Bits of the remote layers' weights."
_DEVICE_HELP = (
    "Where it computes, both halves and the layers between them; `auto` takes a GPU if veil can use one. With --server "
    "the client's half stays on the processor."
)
_SERVER_HELP = "Use the server there, with --bundle's client half or the one that the server offers."
_WHICH_FOLD_HELP = (
    "Which of a server's bundles of one model to fetch: `on` the one with folded norms (half the round trips), `off` the "
    "other, `auto` what the distance to the server makes faster."
)
_TOKEN_HELP = "The bearer token, if the server wants one; the environment variable keeps it out of the process list."
_TLS_HELP = "Use TLS, with the certificates that the system trusts."
_TLS_CA_HELP = "Use TLS, with this PEM file of the authority that signed the server's certificate."
_INSECURE_HELP = "Let a token go to another machine without TLS, and take parameters without security from the server."
_JSON_HELP = "Print one JSON object on standard output and nothing else there."


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"veil {__version__}")
        raise typer.Exit


@app.callback()
def veil(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Use a language model on somebody else's machine without showing it the prompt or the answer.

    The linear layers, nearly all of a model's weights and work, are computed by the other side on encrypted
    activations. Everything else (tokenizer, norms, attention, sampling) stays with you, and so do the keys.

    Start with: `veil generate "Name the capital of France."`

    Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 2 an error that one line
    explains, 130 interrupted.
    """


@app.command()
@one_line_errors
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt, or `-` to read it from standard input.")],
    model: Annotated[str | None, typer.Option(help=_MODEL_HELP, show_default="smollm2")] = None,
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
        typer.Option(help="Makes sampling repeatable; keys and masks are always fresh.", show_default="random"),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, no chat template.")] = False,
    bits: Annotated[
        int | None,
        typer.Option(min=2, max=8, help=_BITS_HELP, show_default="8"),
    ] = None,
    modules: Annotated[str | None, typer.Option(help=_MODULES_HELP, show_default="linear")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="A folder made by `veil compile`, instead of --model, --bits and --modules."),
    ] = None,
    device: Annotated[Device, typer.Option(help=_DEVICE_HELP)] = Device.auto,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help=_SERVER_HELP,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Which of the server's bundles.", show_default="the fitting one")] = None,
    token: Annotated[str | None, typer.Option(envvar="VEIL_TOKEN", help=_TOKEN_HELP)] = None,
    tls: Annotated[bool, typer.Option("--tls", help=_TLS_HELP)] = False,
    tls_ca: Annotated[Path | None, typer.Option(help=_TLS_CA_HELP)] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help=_INSECURE_HELP)] = False,
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
    fold_norms: Annotated[FoldNorms, typer.Option(help=_WHICH_FOLD_HELP)] = FoldNorms.auto,
    as_json: Annotated[bool, typer.Option("--json", help=_JSON_HELP)] = False,
) -> None:
    """Answer a prompt through encryption, client and server in one process or, with `--server`, in two.

    Tokens appear as they come. A table follows with what they cost: seconds a token, split into making masks ahead
    (prepare), the server's online product and the client's work; bytes a token, ahead and online; the security level; with
    `--server` also what of it was round trips, transfer and computing, and how many guesses were right.

    With `--json`: `text`, `prompt_tokens`, `new_tokens`, `security_bits` (0 when nothing is encrypted), `seconds` with
    `load`, `prompt` (until the first token), `per_token` (each one after it, its mask included), `prepare`, `online`,
    `client` (a generated token's shares), `trips_per_token`, with `--server` also `remote`, with guesses `guesses`, and
    `bytes_per_token` with `up_ahead`, `down_ahead`, `up_online`, `down_online`.
    """
    if bundle is not None and (model, bits, modules) != (None, None, None):
        raise ValueError("--bundle has its own model; leave out --model, --bits and --modules")
    if server is not None and (mode is not Mode.execute or (model, bits, modules) != (None, None, None)):
        raise ValueError("--server uses a bundle and encryption; leave out --mode, --model, --bits and --modules")
    _check_fold_norms(fold_norms, server, bundle)
    if mode is Mode.torch and speculate not in ("auto", "off"):
        raise ValueError("--speculate needs remote layers; leave out --mode torch")
    if top_p == 0.0:
        raise ValueError("--top-p has to be above 0; for the likeliest token every time use --temperature 0")
    from veil.commands.generate import Request, run

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
            server=None if server is None else _address(server, token, tls, tls_ca, insecure),
            server_bundle=name,
            speculate=speculate,
            fold_norms=fold_norms.value,
        ),
        as_json=as_json,
    )


def _address(server: str, token: str | None, tls: bool, tls_ca: Path | None, insecure: bool) -> Any:
    from veil.client.connection import Address

    return Address(target=server, token=token, tls=tls_ca or tls, insecure=insecure)


def _check_fold_norms(fold_norms: FoldNorms, server: str | None, bundle: Path | None) -> None:
    if fold_norms is not FoldNorms.auto and (server is None or bundle is not None):
        raise ValueError("--fold-norms chooses what to fetch from a --server; a model is folded by 'veil compile'")


@app.command("compile")
@one_line_errors
def compile_(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP)],
    out: Annotated[Path, typer.Argument(help="The folder to make; it must not exist, or be empty.")],
    bits: Annotated[int, typer.Option(min=2, max=8, help=_BITS_HELP)] = 8,
    modules: Annotated[str, typer.Option(help=_MODULES_HELP)] = "linear",
    fold_norms: Annotated[
        FoldNorms,
        typer.Option(
            help="Fold norms into the weights: half the round trips, about twice the weights. `auto` folds what the model "
            "allows, `on` fails with a reason if something cannot be folded."
        ),
    ] = FoldNorms.auto,
    task: Annotated[
        Task, typer.Option(help="`auto` takes the class that the checkpoint names, `embed` the model without a head.")
    ] = Task.auto,
    expert_leak: Annotated[
        ExpertLeak,
        typer.Option(
            help="For mixtures of experts: `none` evaluates every expert for every row; `reveal` only the routed ones, "
            "which shows the server which they are."
        ),
    ] = ExpertLeak.none,
    as_json: Annotated[bool, typer.Option("--json", help=_JSON_HELP)] = False,
) -> None:
    """Split a model into a bundle: `OUT/client` for you, `OUT/server` for the machine that computes.

    The server's folder holds the integer weights of the remote layers and a public seed; the client's everything else.
    """
    from veil.commands.compile import run

    run(
        model,
        out,
        bits=bits,
        modules=modules,
        fold_norms=fold_norms.value,
        task=task.value,
        expert_leak=expert_leak.value,
        as_json=as_json,
    )


@app.command()
@one_line_errors
def serve(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE/server...", help="Server halves, as PATH or NAME=PATH.")],
    offer: Annotated[
        list[str] | None,
        typer.Option(metavar="BUNDLE/client", help="A client half for `veil pull`, as PATH or NAME=PATH; may be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8471,
    device: Annotated[Device, typer.Option(help="Where it computes; `auto` takes a GPU if veil can use one.")] = Device.auto,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="File of accepted tokens' SHA-256 digests, one a line; `veil token` makes them.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on an address that others reach without TLS or tokens.")
    ] = False,
    rows_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="The port for rows, which saves gRPC's time; 0 for none.", show_default="port + 1"
        ),
    ] = None,
    max_sessions: Annotated[int, typer.Option(min=1, help="The most sessions at once.")] = 64,
    memory_gib: Annotated[float, typer.Option(min=0.01, help="Memory for the sessions' keys and masks.")] = 4.0,
    metrics_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Answer Prometheus on this port.")] = None,
) -> None:
    """Compute the remote layers of bundles for clients that keep their keys.

    It reads the server halves and sees ciphertexts only. SIGTERM lets running calls finish, for 30 seconds at most. One
    JSON object a line is logged to standard error.
    """
    from veil.commands.serve import ServeRequest, run

    run(
        ServeRequest(
            bundles=bundles,
            offers=offer or [],
            host=host,
            port=port,
            rows_port=rows_port,
            device=device.value,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tokens=tokens,
            insecure=insecure,
            max_sessions=max_sessions,
            memory_gib=memory_gib,
            metrics_port=metrics_port,
        )
    )


@app.command()
@one_line_errors
def pull(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server.")],
    out: Annotated[Path, typer.Argument(help="The folder to make; it must not exist.")],
    name: Annotated[str | None, typer.Option(help="Which of the server's bundles.", show_default="the only one")] = None,
    token: Annotated[str | None, typer.Option(envvar="VEIL_TOKEN", help=_TOKEN_HELP)] = None,
    tls: Annotated[bool, typer.Option("--tls", help=_TLS_HELP)] = False,
    tls_ca: Annotated[Path | None, typer.Option(help=_TLS_CA_HELP)] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help=_INSECURE_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help=_JSON_HELP)] = False,
) -> None:
    """Fetch the client half of a bundle, check its digests and show them."""
    from veil.commands.pull import run

    run(_address(server, token, tls, tls_ca, insecure), out, name=name, as_json=as_json)


@app.command()
@one_line_errors
def gateway(
    model: Annotated[str | None, typer.Option(help=_MODEL_HELP, show_default="smollm2")] = None,
    bundle: Annotated[Path | None, typer.Option(help="A folder made by `veil compile`, or its client half.")] = None,
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help=_SERVER_HELP)] = None,
    name: Annotated[str | None, typer.Option(help="Which of the server's bundles.", show_default="the fitting one")] = None,
    fold_norms: Annotated[FoldNorms, typer.Option(help=_WHICH_FOLD_HELP)] = FoldNorms.auto,
    host: Annotated[
        str, typer.Option(help="The address to listen on; one that others reach needs --api-key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8472,
    api_key: Annotated[
        str | None, typer.Option(envvar="VEIL_API_KEY", help="The key that clients must send; the page asks for it.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name that this machine is called by; may be repeated.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="Answers that take turns, a token each.")] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Requests that wait; more are refused with status 429.")] = 32,
    device: Annotated[Device, typer.Option(help=_DEVICE_HELP)] = Device.auto,
    open_page: Annotated[bool, typer.Option("--open", help="Open the chat page in the browser.")] = False,
    token: Annotated[str | None, typer.Option(envvar="VEIL_TOKEN", help=_TOKEN_HELP)] = None,
    tls: Annotated[bool, typer.Option("--tls", help=_TLS_HELP)] = False,
    tls_ca: Annotated[Path | None, typer.Option(help=_TLS_CA_HELP)] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help=_INSECURE_HELP)] = False,
) -> None:
    """Answer the OpenAI API and a chat page on this machine; the model may be on another that sees ciphertexts only.

    Programs that speak the OpenAI API use `http://127.0.0.1:8472/v1` as their base URL and any API key; people open
    `http://127.0.0.1:8472`. Keys, tokenizer and sampling stay in this process. Prompts and answers are not logged.
    """
    from veil.commands.gateway import GatewayRequest, run
    from veil.gateway.app import Settings
    from veil.gateway.guard import Access

    run(
        GatewayRequest(
            choice=_choice(model, bundle, server, name, fold_norms, device, (token, tls, tls_ca, insecure)),
            access=Access(host=host, api_key=api_key, hosts=tuple(name.lower() for name in allow_host or ())),
            settings=Settings(at_once=at_once, most_waiting=queue),
            port=port,
            open_page=open_page,
        )
    )


@app.command()
@one_line_errors
def chat(
    model: Annotated[str | None, typer.Option(help=_MODEL_HELP, show_default="smollm2")] = None,
    bundle: Annotated[Path | None, typer.Option(help="A folder made by `veil compile`, or its client half.")] = None,
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help=_SERVER_HELP)] = None,
    name: Annotated[str | None, typer.Option(help="Which of the server's bundles.", show_default="the fitting one")] = None,
    fold_norms: Annotated[FoldNorms, typer.Option(help=_WHICH_FOLD_HELP)] = FoldNorms.auto,
    system: Annotated[str, typer.Option(help="Instructions for the model.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 512,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="0 takes the likeliest token every time; higher is more varied.")
    ] = 0.3,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample among the likeliest tokens of this total probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", show_default="random")] = None,
    device: Annotated[Device, typer.Option(help=_DEVICE_HELP)] = Device.auto,
    token: Annotated[str | None, typer.Option(envvar="VEIL_TOKEN", help=_TOKEN_HELP)] = None,
    tls: Annotated[bool, typer.Option("--tls", help=_TLS_HELP)] = False,
    tls_ca: Annotated[Path | None, typer.Option(help=_TLS_CA_HELP)] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help=_INSECURE_HELP)] = False,
) -> None:
    """Talk to a model in the terminal; masks are made while you type.

    Enter sends, Alt+Enter starts a line, Ctrl-C stops an answer, Ctrl-D leaves; `/reset`, `/retry`, `/stats`, `/help`.
    History lives in memory only. Without a terminal each line of standard input is a message and gets its answer.
    """
    from veil.commands.chat import ChatRequest, run

    run(
        ChatRequest(
            choice=_choice(model, bundle, server, name, fold_norms, device, (token, tls, tls_ca, insecure)),
            system=system,
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
    )


def _choice(
    model: str | None,
    bundle: Path | None,
    server: str | None,
    name: str | None,
    fold_norms: FoldNorms,
    device: Device,
    access: tuple[str | None, bool, Path | None, bool],
) -> Any:
    if model is not None and (bundle is not None or server is not None):
        raise ValueError("--bundle and --server have their own model; leave out --model")
    _check_fold_norms(fold_norms, server, bundle)
    from veil.commands.served import ModelChoice

    return ModelChoice(
        model=model or "smollm2",
        bundle=bundle,
        device=device.value,
        server=None if server is None else _address(server, *access),
        server_bundle=name,
        fold_norms=fold_norms.value,
    )


@app.command()
def token() -> None:
    """Make a token: itself on standard output, the line for the server's file on standard error."""
    from veil.server.tokens import digest_of, fresh_token

    made = fresh_token()
    typer.echo(made)
    typer.echo(f"for the server's --tokens file: {digest_of(made)}", err=True)


@app.command()
@one_line_errors
def bench(
    model: Annotated[
        str,
        typer.Option(
            help="`smollm2` (built in), `gpt2` or `llama-1b` (their shapes with random weights: speed does not depend on "
            "values), or a FOLDER or FILE.gguf."
        ),
    ] = "smollm2",
    device: Annotated[Device, typer.Option(help=_DEVICE_HELP)] = Device.cpu,
    mode: Annotated[
        BenchMode,
        typer.Option(help="`execute`: client and server in one process; `remote`: the server in another, over loopback."),
    ] = BenchMode.execute,
    prompt_rows: Annotated[int, typer.Option(min=1, help="Rows of the prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens measured in each generation.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Generations of each kind.")] = 3,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Measure the float32 model with the same prompt in the same run.")
    ] = False,
    peer: Annotated[
        BenchPeer | None, typer.Option(help="Measure this system on the same layer shapes; minutes to a quarter of an hour.")
    ] = None,
    install_peer: Annotated[
        bool,
        typer.Option("--install-peer", help="Let this command install the peer into a virtual environment of its own."),
    ] = False,
    fold_norms: Annotated[
        FoldNorms, typer.Option(help="Fold norms into the weights, as `veil compile` does: half the round trips.")
    ] = FoldNorms.off,
    widths: Annotated[
        str | None,
        typer.Option(
            metavar="D,D,...",
            help="Instead of --model, a Llama of four layers at each of these hidden sizes, such as 512,1024,2048,4096.",
        ),
    ] = None,
    from_: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="RECORD", help="Measure nothing; show and draw this record. May be repeated."),
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the record; `-` prints it.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png|.svg", help="Draw a figure (needs matplotlib).")] = None,
    figure: Annotated[
        BenchFigure | None,
        typer.Option(
            help="Which: a token's `phases`; `bytes` a token; seconds a row by `rows` at once; a token over `links`, "
            "or by `widths`.",
            show_default="phases, or widths",
        ),
    ] = None,
) -> None:
    """Measure what encryption costs on this machine: plaintext, veil and a peer in one run.

    A token's time is split into phases, ahead of time and online; each step is compared with the memory bandwidth and
    multiply-add peak that are measured in the same run. A table says what network links make of it: a token makes one
    round trip for each group of layers, so at 20 ms those are what people wait for.

    The record has `token_s` with `total`, `online`, `plaintext`, `peer`; `ratio` with `plaintext_total`,
    `plaintext_online`, `peer` (how many times faster than it), `floor` (total over the time that reading what must be
    read takes); `bytes_per_token` with `total` and its parts; phases, limits, memory, links, machine, commit, versions.

    Nothing else should run meanwhile. `gpt2` takes about two minutes, its peer two more.
    """
    from veil.bench.run import Request
    from veil.commands import bench as command

    command.bench(
        command.BenchRequest(
            run=Request(
                model=model,
                mode=mode.value,
                device=device.value,
                prompt_rows=prompt_rows,
                new_tokens=new_tokens,
                repeats=repeats,
                plaintext=plaintext,
                peer=peer is not None,
                install_peer=install_peer,
                fold_norms=fold_norms.value,
            ),
            widths=command.parse_widths(widths),
            records=tuple(from_ or ()),
            figure=figure.value if figure else None,
            json=as_json,
            plot=plot,
        )
    )


@app.command()
@one_line_errors
def report(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP)] = "smollm2",
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text to read.", show_default="built-in prose")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="The most tokens of the text to read.")] = 2048,
    sample: Annotated[
        int, typer.Option(min=0, max=256, help="How many of them to encrypt for real as well; 0 encrypts none.")
    ] = 128,
    weight_bits: Annotated[int, typer.Option(min=2, max=8, help=_BITS_HELP)] = 8,
    modules: Annotated[str, typer.Option(help=_MODULES_HELP)] = "linear",
    bits: Annotated[bool, typer.Option("--bits", help="Compare weights of 2 to 8 bits too; takes minutes.")] = False,
    folded: Annotated[
        bool, typer.Option("--folded", help="Compare with folded norms too: fidelity, round trips, bytes, weights.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page with plots here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=_JSON_HELP)] = False,
) -> None:
    """Measure how good a model's answers are under veil, and what they cost.

    Perplexity, KL divergence and agreement on the best token, against the float model: for the integer weights alone, with
    the noise of encryption simulated, with encryption on a sample, and for 8-bit dynamic activations as other systems use
    them. Then every layer's signal to noise beside its prediction, bytes, memory, time and security.
    """
    from veil.commands.report import ReportRequest, run

    run(
        ReportRequest(
            model=model,
            text=text,
            tokens=tokens,
            sample=sample,
            bits=weight_bits,
            modules=modules,
            every_bits=bits,
            folded=folded,
            html=html,
        ),
        as_json=as_json,
    )


@app.command()
@one_line_errors
def params(
    as_json: Annotated[bool, typer.Option("--json", help=_JSON_HELP)] = False,
) -> None:
    """Show the parameter set that veil uses and the estimates of its security."""
    from veil.commands.params import run

    run(as_json=as_json)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
