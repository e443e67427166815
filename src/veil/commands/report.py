"""`veil report`: how good a model's answers are under veil, and what they cost."""

from __future__ import annotations

import dataclasses
import json
import time
from importlib import resources
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from veil.commands.models import compiled
from veil.commands.terminal import Reporter, error_console
from veil.disk import write_whole
from veil.errors import ModelSourceError
from veil.hybrid.model import HybridFHEModel
from veil.kernels.backend import kernels_for
from veil.progress import Progress
from veil.report import fusion, layers, measure
from veil.report.inside import EIGHT_BIT, beside
from veil.report.measure import WINDOW, Fidelity, Report
from veil.report.page import page
from veil.sources.models import Source, load_model
from veil.sources.quiet import quiet

_BITS_TOKENS = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """The options of one `veil report`."""

    model: str
    text: Path | None
    tokens: int
    sample: int
    bits: int
    modules: str
    every_bits: bool
    fused: bool
    device: str
    html: Path | None
    checked: bool = True


def run(request: ReportRequest, *, as_json: bool) -> None:
    """Measure, then print tables (or one JSON object) and write the page.

    Raises `ModelSourceError` for a model that does not predict the next token or a text of fewer than two tokens,
    `ValueError` for a page that cannot be written.
    """
    if request.html is not None and not request.html.parent.is_dir():
        raise ValueError(f"there is no folder {request.html.parent} for the page; make it, or choose another place")
    start = time.perf_counter()
    with Reporter() as reporter, quiet():
        text = _read(request.text)
        kernels_for(request.device)  # an absent GPU is told of before the long work
        source = load_model(request.model, progress=reporter.report)
        ids = _tokens(source, text, request.tokens)
        report = _measured(request, source, ids, reporter)
        if request.every_bits:
            report.by_bits = _by_bits(request, ids, reporter)
        if request.fused:
            report.fusion = fusion.variants(
                lambda fuse_norms: _compiled(request, load_model(request.model), fuse_norms=fuse_norms),
                ids[:, :_BITS_TOKENS],
                reporter.report,
            )
    report.seconds = time.perf_counter() - start
    if request.html is not None:
        write_whole(request.html, page(report).encode())
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report)))
        return
    console = Console()
    for table in tables(report):
        console.print(table)
    if request.html is not None:
        error_console().print(Text(f"page: {request.html}"))


def _measured(request: ReportRequest, source: Source, ids: torch.Tensor, reporter: Reporter) -> Report:
    hybrid = _compiled(request, source, progress=reporter.report)
    params = hybrid.params
    report = Report(
        model=source.name,
        origin=source.origin,
        text=str(request.text.name) if request.text else "the built-in prose",
        bits=request.bits,
        security_bits=float(params.security_bits),
        core_svp_bits=float(params.core_svp_bits),
    )
    report.widths = layers.width_quality(hybrid)
    parts = measure.windows(ids)
    report.modes = measure.fidelity(hybrid, parts, ("disable", "simulate", EIGHT_BIT), reporter.report, "reading the text")
    few = ids[:, : min(request.sample, WINDOW)]
    if few.shape[1] > 1:
        reporter.report("building the server's half", 0, 1)
        if request.checked:
            hybrid.check_answers(source.name)
        hybrid.set_fhe_mode("execute")
        reporter.report("building the server's half", 1, 1)
        every = ("disable", "simulate", "execute", EIGHT_BIT)
        report.sample = measure.fidelity(hybrid, measure.windows(few), every, reporter.report, "reading a part encrypted")
        reporter.report("every layer, encrypted", 0, 1)
        rows = few[:, : min(few.shape[1], 64)]
        report.layers = layers.layer_quality(hybrid, rows)
        report.costs = measure.costs(hybrid, lambda: hybrid(beside(hybrid, rows)), rows.shape[1])
        reporter.report("every layer, encrypted", 1, 1)
    hybrid.close()
    return report


def _compiled(
    request: ReportRequest, source: Source, *, fuse_norms: str = "off", progress: Progress | None = None
) -> HybridFHEModel:
    """A loaded model, compiled where it will run."""
    source.model.to("cuda" if kernels_for(request.device).name == "cuda" else "cpu")
    return compiled(
        source,
        bits=request.bits,
        modules=request.modules,
        device=request.device,
        fuse_norms=fuse_norms,
        progress=progress,
    )


def _by_bits(request: ReportRequest, ids: torch.Tensor, reporter: Reporter) -> list[tuple[int, Fidelity]]:
    rows = []
    for bits in range(2, 9):
        source = load_model(request.model)
        hybrid = _compiled(dataclasses.replace(request, bits=bits), source)
        parts = measure.windows(ids[:, :_BITS_TOKENS])
        found = measure.fidelity(hybrid, parts, ("simulate",), reporter.report, f"weights of {bits} bits")
        rows.append((bits, found[1]))
    return rows


def _read(path: Path | None) -> str:
    if path is None:
        return resources.files("veil.report").joinpath("prose.txt").read_text(encoding="utf-8")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({_reason(error)}); pass a UTF-8 file") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _tokens(source: Source, text: str, count: int) -> torch.Tensor:
    model = source.model
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise ModelSourceError(
            f"{source.origin} is a {type(model).__name__}, which does not predict a text's next token; "
            "report measures causal language models"
        )
    if source.tokenizer is None:
        raise ModelSourceError(f"{source.origin} has no tokenizer; add tokenizer.json to it")
    ids: torch.Tensor = source.tokenizer(text, return_tensors="pt").input_ids[:, :count]
    if ids.shape[1] < 2:
        raise ValueError("the text has fewer than two tokens; pass a longer one")
    return ids


# Tables --------------------------------------------------------------------------------------------------------------


def tables(report: Report) -> list[Table]:
    """The report for a terminal."""
    title = f"{report.model}: {report.modes[0].tokens:,} tokens of {report.text}, weights of {report.bits} bits"
    made = [_modes_table(title, report.modes)]
    if report.sample:
        made.append(_modes_table(f"the first {report.sample[0].tokens:,} of them, encrypted too", report.sample))
    if report.by_bits:
        made.append(_bits_table(report))
    if report.fusion:
        made.append(_fusion_table(report))
    if report.layers:
        made.append(_layers_table(report))
    made.append(_widths_table(report))
    made.append(_costs_table(report))
    return made


def _modes_table(title: str, modes: list[Fidelity]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("", "perplexity", "against float", "KL, nats", "same best token"):
        table.add_column(name, justify="left" if not name else "right")
    for mode in modes:
        rise = f"{100 * (mode.perplexity / modes[0].perplexity - 1):+.2f} %"
        table.add_row(mode.name, f"{mode.perplexity:.3f}", rise, f"{mode.kl:.4f}", f"{100 * mode.top1:.1f} %")
    return table


def _bits_table(report: Report) -> Table:
    table = Table(title=f"bits of the weights, simulated noise, {report.by_bits[0][1].tokens} tokens", title_justify="left")
    for name in ("bits", "perplexity", "KL, nats", "same best token"):
        table.add_column(name, justify="right")
    for bits, found in report.by_bits:
        table.add_row(str(bits), f"{found.perplexity:.3f}", f"{found.kl:.4f}", f"{100 * found.top1:.1f} %")
    return table


def _fusion_table(report: Report) -> Table:
    title = f"fused norms, simulated noise, {report.fusion[0].fidelity.tokens} tokens; bytes a token row, online"
    table = Table(title=title, title_justify="left")
    for name in fusion.COLUMNS:
        table.add_column(name, justify="left" if name == "norms" else "right", overflow="fold")
    for variant in report.fusion:
        table.add_row(*variant.cells())
    if report.fusion[-1].unfused:
        table.caption = f"not fused: {report.fusion[-1].unfused[0]}"
    return table


def _layers_table(report: Report) -> Table:
    table = Table(title="signal to noise of every layer, dB", title_justify="left")
    for name in ("layer", "encrypted", "predicted", "8-bit activations", "variance / predicted"):
        table.add_column(name, justify="left" if name == "layer" else "right", overflow="fold")
    for layer in report.layers:
        values = (f"{layer.snr_db:.1f}", f"{layer.predicted_db:.1f}", f"{layer.eight_bit_db:.1f}", f"{layer.ratio:.3f}")
        table.add_row(Text(layer.name), *values)
    return table


def _widths_table(report: Report) -> Table:
    table = Table(title="signal to noise by width, predicted, for weights spread like these", title_justify="left")
    for name in ("width", "bits up", "bits down", "dB"):
        table.add_column(name, justify="right")
    for found in report.widths:
        table.add_row(f"{found.width:,}", str(found.input_bits), str(found.result_bits), f"{found.snr_db:.1f}")
    return table


def _costs_table(report: Report) -> Table:
    table = Table(title="costs, client and server in this process", title_justify="left", show_header=False)
    for name, value in measure.cost_rows(report):
        table.add_row(name, value)
    return table
