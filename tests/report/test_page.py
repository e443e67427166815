"""The page: complete, self-contained, well-formed, and safe whatever a model is called."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from veil.report.drawing import Line, bars, lines
from veil.report.inside import EIGHT_BIT
from veil.report.layers import LayerQuality, WidthQuality
from veil.report.measure import Fidelity, ModelCosts, Report
from veil.report.page import page


def fidelity(name: str, kl: float) -> Fidelity:
    return Fidelity(name=name, tokens=99, perplexity=11.5, kl=kl, top1=0.97)


def report() -> Report:
    modes = [fidelity("float", 0.0), fidelity("disable", 0.003), fidelity("simulate", 0.004), fidelity(EIGHT_BIT, 0.05)]
    layer = LayerQuality(name="a<b>&.q_proj", snr_db=48.5, predicted_db=48.4, eight_bit_db=-3.0, ratio=0.99)
    costs = ModelCosts(
        up_online_bytes=295_488,
        down_online_bytes=460_512,
        up_offline_bytes=86_784,
        batch_bytes=5_554_176,
        batch_rows=64,
        hint_bytes=2**31,
        remote_weights=134_000_000,
        prepare_s=0.05,
        online_s=0.02,
        client_s=0.01,
    )
    return Report(
        model="<script>alert(1)</script>",
        origin="folder x",
        text="prose",
        security_bits=130.9,
        core_svp_bits=104,
        bits=8,
        modes=modes,
        sample=modes,
        layers=[layer, layer],
        widths=[WidthQuality(width=28_672, input_bits=26, result_bits=15, snr_db=46.1)],
        by_bits=[(2, fidelity("simulate", 9.0)), (8, fidelity("simulate", 0.003))],
        costs=costs,
    )


def test_it_asks_for_nothing_and_escapes_what_it_shows() -> None:
    text = page(report())
    assert not re.search(r"(src|href)=|url\(|@import|https?:|<script", text)
    assert "&lt;script&gt;" in text
    assert "a&lt;b&gt;&amp;.q_proj" in text
    for shown in (
        "0.0040",
        "0.0500",
        "295,488 bytes",
        "2.00 GiB",
        "130.9 bits",
        "-3.0",
        "28,672",
        "46.1",
        "5,554,176 bytes for 64 rows",
    ):
        assert shown in text


def test_drawings_are_well_formed_and_say_what_they_show() -> None:
    for drawing in (
        bars([("a & b", 0.5, "0.5", "veil"), ("c", 0.0, "0", "rival")]),
        bars([("x", 1e-9, "0", "veil"), ("y", 3.0, "3", "veil")], log=True),
        lines(
            [Line("one", "veil", [1.0, 2.0, 3.0]), Line("two", "plain", [-12.0, 2.0, 40.0], dashed=True)],
            unit="dB",
            below="n",
        ),
        lines([Line("a point", "veil", [7.0])], unit="dB", below="n"),
    ):
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        left, top, width, height = (float(value) for value in root.get("viewBox", "").split())
        assert (left, top) == (0, 0)
        for bar in root.iter("rect"):
            assert 0 <= float(bar.get("x", "")) <= float(bar.get("x", "")) + float(bar.get("width", "")) <= width
        for line in root.iter("polyline"):
            for point in line.get("points", "").split():
                x, y = (float(value) for value in point.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height
