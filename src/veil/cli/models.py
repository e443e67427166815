"""Which models a gateway has: `--model`, `--bundle` and `--server`, each as often as wanted and each with a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from veil.cli.options import Consent, Device, FuseNorms, ServerAccess, model_choice
from veil.given import named_given

if TYPE_CHECKING:
    from veil.commands.choice import ModelChoice


def model_choices(
    models: Sequence[str],
    bundles: Sequence[str],
    servers: Sequence[str],
    name: str | None,
    fuse_norms: FuseNorms,
    device: Device,
    access: ServerAccess,
    consent: Consent,
) -> tuple[ModelChoice, ...]:
    """The models in the order of models, servers, bundles without a server; the built-in one where none is named.

    What is said of servers (token, TLS, terms) is said of all. `ValueError` for options that do not fit.
    """
    if servers and len(bundles) not in (0, len(servers)):
        raise ValueError("give --bundle once for each --server, in the same order, or not at all")
    if models and bundles and not servers:
        raise ValueError("--bundle and --server have their own model; leave out --model")
    if name is not None and len(servers) > 1:
        raise ValueError("--name is for one --server; with several each has to offer one bundle, or --bundle says which")
    nothing = Consent()
    made: list[ModelChoice] = []

    def add(text: str | None, model: str | None, bundle: Path | None, server: str | None) -> None:
        terms = (
            consent if server is not None or bundle is not None or len(models) + len(servers) + len(bundles) < 2 else nothing
        )
        fusion = fuse_norms if server is not None or len(servers) == 0 else FuseNorms.auto
        choice = model_choice(model, bundle, server, name, fusion, device, access, terms)
        made.append(replace(choice, name=text))

    for given in models:
        label, model = named_given(given, "NAME=MODEL")
        add(label, model, None, None)
    for place, given in enumerate(servers):
        label, server = named_given(given, "NAME=HOST:PORT")
        add(label, None, Path(named_given(bundles[place], "NAME=FOLDER")[1]) if bundles else None, server)
    for given in bundles if not servers else ():
        label, bundle = named_given(given, "NAME=FOLDER")
        add(label, None, Path(bundle), None)
    if not made:
        add(None, None, None, None)
    return tuple(made)


def aliases_of(given: Sequence[str]) -> dict[str, str]:
    """``NAME=MODEL`` as names by alias. `ValueError`."""
    found: dict[str, str] = {}
    for text in given:
        alias, model = named_given(text, "NAME=MODEL, as --alias takes it")
        if alias is None:
            raise ValueError(f"--alias {text!r} is not NAME=MODEL")
        if alias in found:
            raise ValueError(f"--alias {alias} is given twice")
        found[alias] = model
    return found
