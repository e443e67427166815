"""`veil report`: its options and help; `veil.commands.report` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.cli.options import AsJson, Bits, Checked, Device, Model, Modules, check_file, check_model
from veil.cli.reach import sign_of_life


def command(
    model: Model = "smollm2",
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text to read.", show_default="built-in prose")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="The most tokens of the text to read.")] = 2048,
    sample: Annotated[
        int, typer.Option(min=0, max=256, help="How many of them to encrypt for real as well; 0 encrypts none.")
    ] = 128,
    weight_bits: Bits = 8,
    modules: Modules = "linear",
    bits: Annotated[bool, typer.Option("--bits", help="Compare weights of 2 to 8 bits too; takes minutes.")] = False,
    fused: Annotated[
        bool, typer.Option("--fused", help="Compare with fused norms too: fidelity, round trips, bytes, weights.")
    ] = False,
    device: Annotated[
        Device,
        typer.Option(help="Where both halves and the layers between compute; `auto` takes a GPU if veil can use one."),
    ] = Device.auto,
    checked: Annotated[
        Checked, typer.Option(help="Check the encrypted sample's answers and show what that costs; `off` leaves it out.")
    ] = Checked.auto,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page with plots here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how good a model's answers are under veil, and what they cost.

    Perplexity, KL divergence and agreement on the best token, against the float model: for the integer weights alone, with
    the noise of encryption simulated, with encryption on a sample, and for 8-bit dynamic activations as other systems use
    them. Then signal to noise, of every layer beside its prediction and as predicted for other widths; bytes, memory, time
    and security.
    """
    check_model(model)
    check_file(text)
    sign_of_life()
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
            fused=fused,
            device=device.value,
            html=html,
            checked=checked is not Checked.off,
        ),
        as_json=as_json,
    )
