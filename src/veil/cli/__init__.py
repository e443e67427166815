"""The `veil` command: one module a command has its options and help; `veil.commands`, imported when it runs, the work."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from veil import __version__
from veil.cli import (
    bench,
    bench_load,
    cache,
    chat,
    check,
    cluster,
    compile,
    doctor,
    finetune,
    gateway,
    generate,
    params,
    pull,
    report,
    serve,
    token,
)
from veil.cli.streams import use_utf8
from veil.commands.terminal import EXIT_INTERRUPTED, one_line_errors

app = typer.Typer(
    name="veil",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # its listing of local variables could show keys and prompts
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


for _name, _module in {
    "generate": generate,
    "compile": compile,
    "finetune": finetune,
    "serve": serve,
    "cluster": cluster,
    "pull": pull,
    "check": check,
    "gateway": gateway,
    "chat": chat,
    "cache": cache,
    "token": token,
    "report": report,
    "params": params,
    "doctor": doctor,
}.items():
    app.command(_name)(one_line_errors(_module.command))

_bench = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")
_bench.callback()(one_line_errors(bench.command))
_bench.command("load")(one_line_errors(bench_load.command))
app.add_typer(_bench, name="bench")


def main() -> None:
    """Run the command line; gRPC's own log, raw lines beside every error, only where the environment asks for it."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC looks when it is imported
    use_utf8()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
