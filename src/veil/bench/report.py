"""A record as tables for a person to read."""

from __future__ import annotations

from rich.table import Table

from veil.bench import load_report
from veil.bench.files import AnyRecord
from veil.bench.link import token_seconds
from veil.bench.load_record import LoadSeries
from veil.bench.record import Record, SignalSeries, Timing, WidthSeries
from veil.network.link import Link

TYPICAL_LINKS = (
    ("same rack, 0.2 ms, 10 Gbit/s", Link(rtt_s=0.0002, bytes_per_s=1.25e9)),
    ("same city, 5 ms, 1 Gbit/s", Link(rtt_s=0.005, bytes_per_s=125e6)),
    ("20 ms, 1 Gbit/s", Link(rtt_s=0.02, bytes_per_s=125e6)),
    ("20 ms, 100 Mbit/s", Link(rtt_s=0.02, bytes_per_s=12.5e6)),
    ("other continent, 100 ms, 100 Mbit/s", Link(rtt_s=0.1, bytes_per_s=12.5e6)),
)


def tables(record: AnyRecord) -> list[Table]:
    """Every table of a record; of one model's: summary, phases, bytes, limits, links, and the peer if it was measured."""
    if isinstance(record, WidthSeries):
        return [widths(record)]
    if isinstance(record, SignalSeries):
        return [signal(record)]
    if isinstance(record, LoadSeries):
        return load_report.tables(record)
    made = [summary(record), phases(record), sizes(record), limits(record)]
    made += [] if record.phase("whole pass") else [links(record)]
    return made + ([peer(record)] if record.peer else [])


def summary(record: Record) -> Table:
    """The record's main figures."""
    token, ratio, size, memory = record.token_s, record.ratio, record.bytes_per_token, record.memory
    machine = record.machine
    where = machine.accelerator or machine.processor
    load = f" · beside {record.settings.busy} busy processes" if record.settings.busy else ""
    table = _table(f"{record.model.name} · {where}, {machine.cores} cores · {record.commit}{load}")
    rows = [
        ("per token, total", milliseconds(token.total), _times(ratio.plaintext_total, "plaintext")),
        ("  offline, both sides", milliseconds(token.offline), _times(ratio.plaintext_offline, "plaintext")),
        ("  online", milliseconds(token.online), _times(ratio.plaintext_online, "plaintext")),
    ]
    if token.plaintext is not None:
        rows.append(("  plaintext float32", milliseconds(token.plaintext), f"{record.settings.threads} threads"))
    if token.peer is not None and ratio.peer is not None:
        rows.append(("  the peer", f"{token.peer:,.0f} s", f"veil is {ratio.peer:,.0f} times faster"))
    floor = f"{ratio.floor:.1f} × the time to read the required bytes once, at {machine.read_bytes_per_s / 1e9:.1f} GB/s"
    rows.append(("  bandwidth floor", milliseconds(record.floor.seconds), floor))
    for prompt in record.prompts:
        parts = f"{milliseconds(prompt.offline_s)} offline, {milliseconds(prompt.online_s)} online"
        if prompt.plaintext_s is not None:
            parts = f"{_times(prompt.ratio, 'plaintext')} ({milliseconds(prompt.plaintext_s)}); {parts}"
        rows.append((f"a row of a {prompt.rows}-row prompt", milliseconds(prompt.row_s), parts))
    kind = "two processes" if memory.separate_processes else "one process, the server's counted"
    rows += [
        ("bytes a token", f"{size.total:,.0f}", f"{ratio.clear_bytes:.2f} × clear float32"),
        ("round trips a token", str(record.model.round_trips), ""),
        ("memory, server", f"{memory.server_bytes / 1e9:.2f} GB", kind),
        ("memory, client", f"{memory.client_bytes / 1e9:.2f} GB", f"whole run at most {memory.highest_bytes / 1e9:.2f} GB"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def phases(record: Record) -> Table:
    """Where a token's time goes."""
    table = _table("a token's phases", "phase", "when, where", "median", "80 % between", "samples")
    for phase in record.phases:
        where = f"{phase.moment}, {phase.side}"
        table.add_row(phase.name, where, milliseconds(phase.token.median_s), _spread(phase.token), str(phase.token.count))
    return table


def sizes(record: Record) -> Table:
    """Bytes of a token, by direction and moment."""
    size = record.bytes_per_token
    table = _table("bytes a token", "", "up", "down")
    table.add_row("offline", f"{size.up_offline:,.0f}", f"{size.down_offline:,.0f}")
    table.add_row("online", f"{size.up_online:,.0f}", f"{size.down_online:,.0f}")
    clear = [4 * values for values in (record.model.inputs, record.model.outputs)]
    table.add_row("the same tensors in clear float32", *(f"{nbytes:,}" for nbytes in clear))
    return table


def limits(record: Record) -> Table:
    """How close each step comes to its limit."""
    table = _table("limits", "step", "median", "80 % between", "share of its bound")
    for limit in record.limits:
        share = "" if limit.share is None else f"{limit.share:.0%} of {limit.bound}"
        table.add_row(limit.name, milliseconds(limit.timing.median_s), _spread(limit.timing), share)
    return table


def links(record: Record) -> Table:
    """What a network link makes of a token, by formula."""
    trips = record.model.round_trips
    table = _table(f"a token over a link, its row ready: {trips} round trips", "link", "by formula", "of it round trips")
    online_bytes = record.bytes_per_token.up_online + record.bytes_per_token.down_online
    for name, link in TYPICAL_LINKS:
        seconds = token_seconds(record.token_s.online, trips, online_bytes, link)
        table.add_row(name, f"{seconds:.3f} s", f"{trips * link.rtt_s:.3f} s")
    return table


def peer(record: Record) -> Table:
    """The peer's layers."""
    assert record.peer is not None
    title = f"{record.peer.name} {record.peer.version}: {record.peer.token_s:,.0f} s a token"
    table = _table(title, "layer", "how many", "encrypt", "multiply", "decrypt", "measured at")
    for layer in record.peer.layers:
        cut = "" if layer.measured_outputs == layer.outputs else f"{layer.measured_outputs} outputs, scaled"
        times = [milliseconds(seconds) for seconds in (layer.encrypt_s, layer.multiply_s, layer.decrypt_s)]
        table.add_row(f"{layer.width} → {layer.outputs}", str(layer.count), *times, cut)
    return table


def widths(series: WidthSeries) -> Table:
    """Cost by width."""
    title = f"widths · {series.machine.processor}, {series.machine.cores} cores · {series.commit}"
    table = _table(title, "hidden size", "total", "offline", "online", "plaintext", "total / plaintext")
    for point in series.points:
        token, ratio = point.token_s, point.ratio.plaintext_total
        times = [milliseconds(seconds) for seconds in (token.total, token.offline, token.online)]
        plain = "" if token.plaintext is None else milliseconds(token.plaintext)
        table.add_row(str(point.model.hidden_size), *times, plain, "" if ratio is None else f"{ratio:.2f} ×")
    return table


def signal(series: SignalSeries) -> Table:
    """Signal to noise by width."""
    title = f"signal to noise of one encrypted layer · {series.device} · {series.commit}"
    table = _table(title, "width", "measured", "predicted", "of the largest slot", "error / predicted", "bits up / down")
    for point in series.points:
        decibels = [f"{value:.1f} dB" for value in (point.measured_db, point.predicted_db, point.largest_slot_db)]
        bits = f"{point.input_bits} / {point.result_bits}"
        table.add_row(str(point.width), *decibels, f"{point.error_ratio:.3f}", bits)
    return table


def milliseconds(seconds: float) -> str:
    """Milliseconds with three digits."""
    value = seconds * 1e3
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _spread(timing: Timing) -> str:
    return f"{timing.low_s * 1e3:.3g} … {timing.high_s * 1e3:.3g}"


def _times(ratio: float | None, what: str) -> str:
    return "" if ratio is None else f"{ratio:.2f} × {what}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=bool(columns))
    for column in columns or ("", "", ""):
        table.add_column(column)
    return table
