"""`veil check`: its options and help; `veil.commands.check` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.cli.groups import grouped
from veil.cli.options import MODEL_HELP, AsJson, Consent, check_bundle, check_model
from veil.cli.reach import sign_of_life


@grouped
def command(
    *,
    model: Annotated[str | None, typer.Argument(help=f"The model whose weights you trust. {MODEL_HELP}")] = None,
    half: Annotated[
        Path | None, typer.Option(help="The client half, as `veil pull` or `veil compile` made it; or the bundle's folder.")
    ] = None,
    forgive: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Instead: ask this server again, although it once gave wrong answers."),
    ] = None,
    consent: Consent,
    as_json: AsJson = False,
) -> None:
    """Check a client half against weights that you trust, and from then on every answer of its server.

    The half's tensors, scales, configuration and tokenizer have to be MODEL's. Then secret sign vectors of your own are made
    from its weights, some 3 % of their size, and kept in your data folder. With them each row that a server answers is
    checked before it is used; a server that computes with other weights is caught, and not asked again.

    With `--json`: `model`, `origin`, `half`, `digest`, `bits`, `path`, `vector_bytes`, `residuals`, `least_change` (the
    smallest change of one output that is surely caught, as a share of the largest output RMS of its group), `loss` (what the
    half's divisors lose of the weights, over what plain rounding loses), `on_trust` (what could not be checked), `seconds`.
    """
    if forgive is not None:
        if (model, half) != (None, None):
            raise ValueError("--forgive stands alone; leave out the model and --half")
        from veil.commands import check

        check.forgive(forgive, as_json=as_json)
        return
    if model is None or half is None:
        raise ValueError("name the model that you trust and its half: veil check MODEL --half HALF")
    check_model(model)
    terms = consent.terms()
    check_bundle(half, terms)
    sign_of_life()
    from veil.commands import check

    check.run(model, half, terms=terms, as_json=as_json)
