"""Tables of the README and the docs, written from bench/results between markers.

    python -m bench tables            rewrite them
    python -m bench tables --check    exit with 1 if one is stale (a test does this)

A table stands between ``<!-- results: NAME -->`` and ``<!-- end of results -->``. To add one, write a function from the
results folder to rows of cells, the first one the header, put it into `TABLES`, and put the markers where it should appear.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.family_record import FamilyRecord
from bench.record import Record as Measured
from veil.bench import files
from veil.bench.link import token_seconds
from veil.bench.record import Prompt, Record, SignalSeries, WidthSeries
from veil.bench.report import TYPICAL_LINKS, milliseconds

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
NAMES = {"smollm2": "SmolLM2-135M", "gpt2": "GPT-2 124M", "llama-1b": "Llama-3.2-1B"}

PROMPT_ROWS = (64, 512)

GPU_LINES = (
    "an offline row, server",
    "an offline row, client",
    "server's work for a token",
    "reading the int8 weights alone",
    "a row of a 512-row prompt, offline rows included",
    "a row of a 512-row prompt, plaintext float32",
)

TRIP_RTTS_MS = (0, 5, 20, 50)
TRIP_KINDS = ("plain", "fused", "fused and draft tokens, repeating text", "fused and draft tokens, fresh text")

Rows = list[list[str]]

_MARKED = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def cpu(results: Path) -> Rows:
    """The main figures of each model."""
    records = _records(results)
    lines: list[tuple[str, Callable[[Record], str]]] = [
        ("plaintext float32 `generate`, per token", lambda r: _ms(r.token_s.plaintext)),
        ("encrypted, per token, total", lambda r: f"**{_ms(r.token_s.total)}**"),
        ("of which offline, server and client", lambda r: _ms(r.token_s.offline)),
        ("of which online, server and client", lambda r: _ms(r.token_s.online)),
        ("total / plaintext", lambda r: f"**{_times(r.ratio.plaintext_total)}**"),
        ("offline / plaintext", lambda r: _times(r.ratio.plaintext_offline)),
        ("online / plaintext", lambda r: _times(r.ratio.plaintext_online)),
    ]
    for rows in PROMPT_ROWS:
        lines += [
            (f"a row of a {rows}-row prompt, plaintext", partial(_prompt, rows, lambda p: _ms(p.plaintext_s))),
            ("encrypted, offline rows included", partial(_prompt, rows, lambda p: _ms(p.row_s))),
            ("encrypted / plaintext", partial(_prompt, rows, lambda p: f"**{_times(p.ratio)}**")),
        ]
    lines += [
        ("bytes per token, total", lambda r: f"{r.bytes_per_token.total:,.0f}"),
        ("bytes / the same tensors in clear float32", lambda r: _times(r.ratio.clear_bytes)),
        ("round trips per token", lambda r: f"{r.model.round_trips}"),
        ("memory, server", lambda r: _gb(r.memory.server_bytes)),
        ("memory, client", lambda r: _gb(r.memory.client_bytes)),
    ]
    return _by_model(records, lines)


def token_bytes(results: Path) -> Rows:
    """Bytes a token by direction and moment, against clear float32."""
    rows = [["", "up, offline", "down, offline", "up, online", "down, online", "total", "clear float32, up and down"]]
    for r in _records(results):
        size = r.bytes_per_token
        parts = (size.up_offline, size.down_offline, size.up_online, size.down_online, size.total)
        clear = " + ".join(f"{4 * values:,}" for values in (r.model.inputs, r.model.outputs))
        rows.append([NAMES[r.model.name], *(f"{part:,.0f}" for part in parts), clear])
    return rows


def busy(results: Path) -> Rows:
    """The same beside busy processes."""
    rows = [
        [
            "busy processes beside it",
            "plaintext, per token",
            "encrypted, per token",
            "total / plaintext",
            "online / plaintext",
        ]
    ]
    for count in (0, 1, 2):
        r = files.read(results / (f"busy-{count}-smollm2.json" if count else "cpu-smollm2.json"), Record)
        times = [_ms(seconds) for seconds in (r.token_s.plaintext, r.token_s.total)]
        rows.append([str(count), *times, _times(r.ratio.plaintext_total), _times(r.ratio.plaintext_online)])
    return rows


def signal(results: Path) -> Rows:
    """Signal to noise of one encrypted layer by width."""
    rows = [["inputs of the layer", "signal to noise, measured", "predicted", "bits of a value, up / down"]]
    for p in files.read(results / "signal.json", SignalSeries).points:
        bits = f"{p.input_bits} / {p.result_bits}"
        rows.append([f"{p.width:,}", f"{p.measured_db:.1f} dB", f"{p.predicted_db:.1f} dB", bits])
    return rows


def peer(results: Path) -> Rows:
    """Against the peer, where it was measured."""
    header = ["", "veil", "concrete-ml-extensions", "plaintext float32"]
    rows = [header]
    for r in _records(results):
        name, size = NAMES[r.model.name], r.bytes_per_token
        if r.peer is None or size.peer is None:
            continue
        cells = [f"{r.token_s.total:.3f} s", f"{r.peer.token_s:,.0f} s", _ms(r.token_s.plaintext)]
        rows.append([f"{name}, a token", *cells])
        rows.append([f"{name}, bytes a token", *(f"{v / 1e6:.2f} MB" for v in (size.total, size.peer, size.clear_float32))])
        rows.append([f"{name}, veil is faster by", "", f"**{r.ratio.peer:,.0f} ×**", ""])
    return rows


def peer_layers(results: Path) -> Rows:
    """What the peer's token is made of."""
    rows = [["layer", "how many", "encrypt", "multiply", "decrypt", "error of the result", "measured at"]]
    for r in _records(results):
        for layer in r.peer.layers if r.peer else ():
            whole = layer.measured_outputs == layer.outputs
            rows.append(
                [
                    f"{layer.width} → {layer.outputs}",
                    str(layer.count),
                    _ms(layer.encrypt_s),
                    f"{layer.multiply_s:.1f} s",
                    _ms(layer.decrypt_s),
                    f"{layer.relative_error:.1e}",
                    "its width" if whole else f"{layer.measured_outputs} outputs, scaled",
                ]
            )
    return rows


def limits(results: Path) -> Rows:
    """Each step against what bounds it."""
    records = _records(results)
    rows = [["", "share of", *(NAMES[r.model.name] for r in records)]]
    for number, limit in enumerate(records[0].limits):
        cells = []
        for r in records:
            there = r.limits[number]
            share = "" if there.share is None else f", {there.share:.0%}"
            cells.append(_ms(there.timing.median_s) + share)
        rows.append([limit.name, "" if limit.share is None else limit.bound, *cells])
    rows.append(["read bandwidth", "", *(f"{r.machine.read_bytes_per_s / 1e9:.1f} GB/s" for r in records)])
    rows.append(["multiply-add peak", "", *(f"{(r.machine.multiply_adds_per_s or 0) / 1e9:.0f} G/s" for r in records)])
    floor = "total / time to read the required bytes once"
    rows.append([floor, "", *(_times(r.ratio.floor) for r in records)])
    return rows


def links(results: Path) -> Rows:
    """Seconds a token over links, by formula."""
    records = _records(results)
    rows = [["link", *(f"{NAMES[r.model.name]}, {r.model.round_trips} trips" for r in records)]]
    for name, link in TYPICAL_LINKS:
        cells = []
        for r in records:
            size = r.bytes_per_token.up_online + r.bytes_per_token.down_online
            cells.append(f"{token_seconds(r.token_s.online, r.model.round_trips, size, link):.2f} s")
        rows.append([name, *cells])
    return rows


def trips(results: Path) -> Rows:
    """Seconds a token over links, plain, fused and with draft tokens, as `bench/trips.py` measured them."""
    rows: Rows = [["", "trips a pass", *(f"{rtt} ms" for rtt in TRIP_RTTS_MS)]]
    for name in ("smollm2", "gpt2"):
        for mbit in (1000, 100):
            path = results / f"trips-{name}-{mbit}.json"
            if not path.exists():
                continue
            value = {row.name: row.value for row in Measured.read(path).rows}
            for key in TRIP_KINDS:
                variant = "plain" if key == "plain" else "fused"
                count = f"{value[f'{variant}, round trips a pass']:.0f}"
                times = [f"{value[f'{key}, {rtt} ms, a token']:.2f} s" for rtt in TRIP_RTTS_MS]
                rows.append([f"{NAMES[name]}, {mbit} Mbit/s, {key}", count, *times])
    if len(rows) == 1:
        raise FileNotFoundError(f"no record of trips in {results}")
    return rows


def draft_tokens(results: Path) -> Rows:
    """Tokens a pass with four draft tokens from the text, prompt by prompt."""
    values = Measured.read(results / "drafts.json").rows
    shown = [(row.name.removesuffix(", tokens a pass"), row.value) for row in values if "tokens a pass" in row.name]
    return [["prompt", "tokens a pass"], *([name, f"{value:.2f}"] for name, value in shown)]


def widths(results: Path) -> Rows:
    """Cost by model width."""
    rows = [["hidden size", "encrypted, total", "online", "plaintext", "total / plaintext", "online / plaintext"]]
    for point in files.read(results / "widths.json", WidthSeries).points:
        token, ratio = point.token_s, point.ratio
        times = [_ms(seconds) for seconds in (token.total, token.online, token.plaintext)]
        rows.append([str(point.model.hidden_size), *times, _times(ratio.plaintext_total), _times(ratio.plaintext_online)])
    return rows


def quality(results: Path) -> Rows:
    """Accuracy of SmolLM2."""
    rows = {row.name: row for row in Measured.read(results / "quality.json").rows}
    simulated, weights = (rows[f"KL divergence from float, {mode}"].value for mode in ("simulate", "disable"))
    snr, error = rows["signal to noise of a layer"], rows["error variance / predicted, by layer"]
    return [
        ["", ""],
        [
            "KL divergence from float, simulated noise",
            f"{simulated:.4f} nats (8-bit weights alone: {weights:.4f})",
        ],
        ["perplexity against float", f"{rows['perplexity above float, simulate'].value:+.2f} %"],
        ["signal to noise of a layer, encrypted", f"median {snr.value:.1f} dB, least {snr.low or 0.0:.1f} dB"],
        ["error variance / prediction, by layer", f"{error.low or 0.0:.2f} … {error.high or 0.0:.2f}"],
    ]


def gpu(results: Path) -> Rows:
    """A GPU: offline rows, the server's work for a token and prompts, as `bench/gpu.py` measured them."""
    found = {row.name: row for row in Measured.read(results / "gpu.json").rows}
    names = ("gpt2", "llama-1b", "llama-8b")
    rows: Rows = [["", *("GPT-2 124M", "Llama-3.2-1B", "Llama-3-8B")]]
    for line in GPU_LINES:
        cells = [found.get(f"{name}, {line}") for name in names]
        rows.append([line, *("" if cell is None else f"{cell.value:.3g} {cell.unit}" for cell in cells)])
    return rows


def gpu_models(results: Path) -> Rows:
    """`veil bench --device cuda`: both halves and plaintext on one GPU."""
    records = [files.read(results / f"gpu-{name}.json", Record) for name in ("gpt2", "llama-1b")]
    lines: list[tuple[str, Callable[[Record], str]]] = [
        ("plaintext float32 `generate`, per token", lambda r: _ms(r.token_s.plaintext)),
        ("encrypted, per token, total", lambda r: f"**{_ms(r.token_s.total)}**"),
        ("of which its row, offline", lambda r: _ms(r.token_s.offline)),
        ("of which the pass", lambda r: _ms(r.token_s.online)),
        ("total / plaintext", lambda r: f"**{_times(r.ratio.plaintext_total)}**"),
        *(
            (f"a row of a {rows}-row prompt, offline rows included", partial(_prompt, rows, lambda p: _ms(p.row_s)))
            for rows in PROMPT_ROWS
        ),
        ("memory on the GPU, at most", lambda r: _gb(r.memory.highest_bytes)),
    ]
    return _by_model(records, lines)


def remote(results: Path) -> Rows:
    """SmolLM2 over the network beside one process, with fused norms and, where that was measured, without."""
    found = [Measured.read(results / "remote-smollm2.json")]
    if (unfused := results / "remote-smollm2-unfused.json").exists():
        found.append(Measured.read(unfused))
    rows = [{row.name: row.value for row in one.rows} for one in found]
    prompt = found[0].parameters["prompt_rows"]
    lines = [
        ("a token, in process, rows ready", "in process, a token, rows ready", "ms"),
        ("a token, remote, pool warm", "remote, a token, pool warm", "ms"),
        ("remote online overhead, pool warm (target ≤ 15 %)", "remote online overhead, pool warm", "%"),
        ("a token, in process, offline rows included", "in process, a token, rows included", "ms"),
        ("a token, remote, pool warm and refilled meanwhile", "remote, a token, pool warm and refilling", "ms"),
        ("a token, remote, pool cold", "remote, a token, pool cold", "ms"),
        (f"first token of a {prompt}-row prompt, pool warm", f"remote, first token, {prompt} rows, pool warm", "s"),
        (f"first token of a {prompt}-row prompt, pool cold", f"remote, first token, {prompt} rows, pool cold", "s"),
        ("one client, pool warm", "1 client(s) at once, all together, pool warm", "tokens/s"),
        ("four clients at once, together, pool warm", "4 client(s) at once, all together, pool warm", "tokens/s"),
        ("four clients / one (target ≥ 1.3)", "four clients / one", "×"),
    ]

    def cell(found: float | None, unit: str) -> str:
        if found is None:
            return ""
        value = found * (1000 if unit == "ms" else 1)
        return f"{value:.0f} {unit}" if unit in ("ms", "%") else f"{value:.2f} {unit}"

    trips = [f"SmolLM2-135M, {one.parameters['round_trips']} round trips per token" for one in found]
    return [["", *trips], *([text, *(cell(one.get(name), unit) for one in rows)] for text, name, unit in lines)]


def families(results: Path) -> Rows:
    """Every architecture that could be made, what came of it, and what stayed with the client."""
    rows = [["architecture", "class", "", "weights that are remote", "least signal to noise of a layer", "on disk", ""]]
    for f in FamilyRecord.read(results / "families.json").families:
        if f.verdict in ("works", "refused", "fails"):
            db = "" if f.layer_db is None else f"{f.layer_db:.0f} dB"
            disk = f.bundle.partition(":")[0] if f.bundle else ""
            share = f"{f.remote_share:.0%}" if f.remote_layers else ""
            rows.append([f.kind, f"`{f.model}`", f.verdict, share, db, disk, _cell(f.reason)])
    return rows


def families_counted(results: Path) -> Rows:
    """How many architectures there are of each verdict."""
    counts = FamilyRecord.read(results / "families.json").counts()
    names = {
        "works": "work",
        "refused": "are refused in a line",
        "fails": "fail",
        "no layer": "have no linear layer",
        "not built": "could not be made small by the script",
    }
    return [["architectures", ""], *([f"{counts[verdict]}", text] for verdict, text in names.items() if verdict in counts)]


def families_unbuilt(results: Path) -> Rows:
    """Those that were not tried, and why."""
    found = [f for f in FamilyRecord.read(results / "families.json").families if f.verdict == "not built"]
    return [["architecture", "why there is no small model of it"], *([f.kind, _cell(f.reason)] for f in found)]


def _cell(text: str) -> str:
    """A text that fits into a table's cell."""
    text = " ".join(text.replace("|", "/").replace("<", "").replace(">", "").split())
    return text if len(text) <= 110 else text[:107] + "..."


TABLES: dict[str, Callable[[Path], Rows]] = {
    "cpu": cpu,
    "bytes": token_bytes,
    "busy": busy,
    "signal": signal,
    "peer": peer,
    "peer-layers": peer_layers,
    "limits": limits,
    "links": links,
    "trips": trips,
    "drafts": draft_tokens,
    "widths": widths,
    "quality": quality,
    "gpu": gpu,
    "gpu-models": gpu_models,
    "families": families,
    "families-counted": families_counted,
    "families-unbuilt": families_unbuilt,
    "remote": remote,
}


def documents() -> list[Path]:
    """The files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rewritten(text: str, results: Path = RESULTS, missing: Callable[[str, Exception], None] | None = None) -> str:
    """A document with every table in it made anew; `ValueError` for an unknown name.

    A table whose record is not there, or is of another format, stays as it is; ``missing`` is told of it.
    """

    def replacement(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}; tables are {', '.join(TABLES)}")
        try:
            made = markdown(TABLES[name](results))
        except (OSError, ValueError, IndexError) as error:
            if missing is not None:
                missing(name, error)
            return match[0]
        return match[1] + made + match[3]

    return _MARKED.sub(replacement, text)


def markdown(rows: Rows) -> str:
    """Rows of cells as a Markdown table; the first is its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines) + "\n"


def _stays(place: Path, name: str, error: object) -> None:
    print(f"{place}: {name} stays as it is: {error}")


def main() -> int:
    """Rewrite, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in documents():
        before = path.read_text()
        place = path.relative_to(ROOT)
        after = rewritten(before, missing=partial(_stays, place))
        if before != after:
            stale.append(place)
            if not check:
                path.write_text(after)
    for path in stale:
        print(f"{path}: {'stale; run python -m bench tables' if check else 'rewritten'}")
    return 1 if check and stale else 0


def _records(results: Path) -> list[Record]:
    paths = [results / f"cpu-{name}.json" for name in NAMES]
    found = [files.read(path, Record) for path in paths if path.exists()]
    if not found:
        raise FileNotFoundError(f"no record of a model in {results}")
    return found


def _prompt(rows: int, show: Callable[[Prompt], str], record: Record) -> str:
    """A figure of the prompt of this many rows, empty where it was not measured."""
    prompt = record.prompt(rows)
    return "" if prompt is None else show(prompt)


def _by_model(records: list[Record], lines: list[tuple[str, Callable[[Record], str]]]) -> Rows:
    """A column for each record's model, a row for each named figure."""
    return [["", *(NAMES[r.model.name] for r in records)], *([name, *map(show, records)] for name, show in lines)]


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else milliseconds(seconds)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} ×"


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB"


if __name__ == "__main__":
    sys.exit(main())
