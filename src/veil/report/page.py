"""The report as one HTML page with drawings in it; it asks for nothing outside itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from veil.report.drawing import Line, bars, lines
from veil.report.fusion import COLUMNS
from veil.report.inside import EIGHT_BIT
from veil.report.layers import LayerQuality, WidthQuality
from veil.report.measure import Fidelity, Report, cost_rows

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --rule: #d9dee5; --paper: #fff;
  --veil: #0b6e63; --rival: #b5532a; --plain: #7a8594; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --rule: #333c48; --paper: #12161c;
  --veil: #4cc2b2; --rival: #f0905f; --plain: #8793a3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 56rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p, figcaption { color: var(--soft); max-width: 44rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; } svg .value { fill: var(--ink); }
.veil { fill: var(--veil); stroke: var(--veil); } .rival { fill: var(--rival); stroke: var(--rival); }
.plain { fill: var(--plain); stroke: var(--plain); } .line { fill: none; stroke-width: 1.8; } .rule { stroke: var(--rule); }
details summary { cursor: pointer; color: var(--soft); }
"""


def page(report: Report) -> str:
    """The whole page."""
    modes = report.modes
    parts = [
        f"<h1>{escape(report.model)} under veil</h1>",
        f"<p>{escape(report.origin)}. Weights of {report.bits} bits. {modes[0].tokens:,} tokens of {escape(report.text)}; "
        f"security {report.security_bits:.1f} bits.</p>",
        "<h2>Are the answers as good?</h2>",
        "<p>Distributions of the next token against the float model's. <em>disable</em>: integer weights, no encryption. "
        "<em>simulate</em>: the noise of encryption added. <em>execute</em>: encrypted. The last row rounds activations to "
        "8 bits by each row's largest value, as many systems do, with the same weights.</p>",
        _modes(modes),
        _kl_figure(modes),
    ]
    if report.sample:
        parts += [
            f"<h2>Encrypted for real</h2><p>The first {report.sample[0].tokens:,} of these tokens.</p>",
            _modes(report.sample),
        ]
    if report.by_bits:
        parts += ["<h2>Bits of the weights</h2>", _bits(report)]
    if report.fusion:
        rows = [variant.cells() for variant in report.fusion]
        parts += ["<h2>Fused norms</h2>", _table(COLUMNS, rows)]
    if report.layers:
        parts += ["<h2>Layer by layer</h2>", _layers(report.layers)]
    if report.widths:
        parts += ["<h2>Other widths</h2>", _widths(report.widths)]
    parts += ["<h2>What it costs</h2>", _table(("", ""), cost_rows(report))]
    body = "\n".join(parts)
    title = escape(f"veil report: {report.model}")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'


def _modes(modes: Sequence[Fidelity]) -> str:
    head = ("", "perplexity", "against float", "KL, nats", "same best token")
    rows = [
        (
            mode.name,
            f"{mode.perplexity:.3f}",
            f"{100 * (mode.perplexity / modes[0].perplexity - 1):+.2f} %",
            f"{mode.kl:.4f}",
            f"{100 * mode.top1:.1f} %",
        )
        for mode in modes
    ]
    return _table(head, rows)


def _kl_figure(modes: Sequence[Fidelity]) -> str:
    rows = [(mode.name, mode.kl, "rival" if mode.name == EIGHT_BIT else "veil") for mode in modes[1:]]
    drawing = bars([(name, value, f"{value:.4f}", kind) for name, value, kind in rows])
    caption = "KL divergence from the float model, nats a token; shorter is better."
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _bits(report: Report) -> str:
    head = ("bits", "perplexity", "KL, nats", "same best token")
    rows = [(str(b), f"{f.perplexity:.3f}", f"{f.kl:.4f}", f"{100 * f.top1:.1f} %") for b, f in report.by_bits]
    drawing = bars([(f"{bits} bits", found.kl, f"{found.kl:.4f}", "veil") for bits, found in report.by_bits], log=True)
    caption = "KL divergence, nats a token, on a logarithmic scale."
    return f"{_table(head, rows)}<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _layers(layers: Sequence[LayerQuality]) -> str:
    drawing = lines(
        [
            Line("encrypted, measured", "veil", [layer.snr_db for layer in layers]),
            Line("encrypted, predicted", "plain", [layer.predicted_db for layer in layers], dashed=True),
            Line("8-bit activations", "rival", [layer.eight_bit_db for layer in layers]),
        ],
        unit="dB",
        below="layers, in the order of the model",
    )
    head = ("layer", "encrypted, dB", "predicted, dB", "8-bit activations, dB", "variance / predicted")
    rows = [
        (layer.name, f"{layer.snr_db:.1f}", f"{layer.predicted_db:.1f}", f"{layer.eight_bit_db:.1f}", f"{layer.ratio:.3f}")
        for layer in layers
    ]
    caption = "Signal to noise of each layer's product on the same inputs; higher is better."
    table = f"<details><summary>every layer in numbers</summary>{_table(head, rows)}</details>"
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>{table}"


def _widths(widths: Sequence[WidthQuality]) -> str:
    head = ("width", "bits up", "bits down", "predicted, dB")
    rows = [(f"{w.width:,}", str(w.input_bits), str(w.result_bits), f"{w.snr_db:.1f}") for w in widths]
    said = (
        "What to expect of a layer's product by the width of its input, for weights spread like this model's. The bits of "
        "the wire are chosen by width, so wide layers take more of them."
    )
    return f"<p>{said}</p>{_table(head, rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head) if any(head) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{f"<thead><tr>{top}</tr></thead>" if top else ""}<tbody>{body}</tbody></table></div>'
