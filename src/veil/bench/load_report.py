"""What `veil bench load` measured, as tables and a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from veil.bench.load_record import LoadPoint, LoadSeries, Percentiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tables(series: LoadSeries) -> list[Table]:
    """Speed, times and, where the server's metrics were given, where a message's time went."""
    made = [_speeds(series), _times(series)]
    if any(point.stages for point in series.points):
        made.append(_stages(series))
    return made


def _speeds(series: LoadSeries) -> Table:
    where = f"{series.bundle}, {series.round_trips} trips a token · {series.server}"
    columns = ("tokens/s", "messages/s", "starved", "server", "generator", "GPU")
    table = _table(f"{where} · {series.machine} · {series.commit}", *columns)
    for point in series.points:
        cells = [f"{point.tokens_per_s:.1f}", f"{point.messages_per_s:,.0f}", f"{point.starved:.0%}"]
        table.add_row(*_place(point), *cells, _cores(point.server_cpu), _cores(point.generator_cpu), _share(point.gpu))
    return table


def _times(series: LoadSeries) -> Table:
    columns = ("message", "p95", "p99", "token", "p95", "first", "prompt")
    table = _table("a message, a token, the first token, a prompt, in ms", *columns)
    for point in series.points:
        message = [_ms(point.message, name) for name in ("median_s", "p95_s", "p99_s")]
        token = [_ms(point.token, name) for name in ("median_s", "p95_s")]
        table.add_row(*_place(point), *message, *token, _ms(point.first, "median_s"), _ms(point.prompt, "median_s"))
    return table


def _stages(series: LoadSeries) -> Table:
    names = ("check", "wait", "product", "reply", "elsewhere", "rows a product")
    table = _table("where a message's time goes, µs, the mean", *names)
    for point in series.points:
        if point.stages is not None:
            own = point.stages
            times = (own.check_s, own.wait_s, own.product_s, own.reply_s, own.elsewhere_s)
            table.add_row(*_place(point), *(f"{1e6 * seconds:,.0f}" for seconds in times), f"{own.rows_a_product:.2f}")
    return table


def figure(series: LoadSeries) -> Figure:
    """Tokens a second, and the median and 95th percentile of a token, by clients; a line for each added round trip."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.0, 3.6), layout="constrained")
    speed, times = drawn.subplots(1, 2)
    for rtt_s in sorted({point.rtt_s for point in series.points}):
        points = sorted((one for one in series.points if one.rtt_s == rtt_s and one.token), key=_clients_of)
        clients = [point.clients for point in points]
        label = f"{1e3 * rtt_s:g} ms added" if rtt_s else "no time added"
        (line,) = speed.plot(clients, [point.tokens_per_s for point in points], marker="o", label=label)
        medians = [1e3 * point.token.median_s for point in points if point.token]
        late = [1e3 * point.token.p95_s for point in points if point.token]
        times.plot(clients, medians, marker="o", color=line.get_color(), label=f"{label}, median")
        times.plot(clients, late, marker="o", linestyle="--", color=line.get_color(), label="95th percentile")
    speed.set_ylabel("tokens/s together")
    times.set_ylabel("a token, ms")
    for axes in (speed, times):
        axes.set_xlabel("clients")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, frameon=False)
    drawn.suptitle(f"{series.bundle} · {series.machine}", fontsize=9)
    return drawn


def _clients_of(point: LoadPoint) -> int:
    return point.clients


def _place(point: LoadPoint) -> tuple[str, str]:
    return str(point.clients), f"{1e3 * point.rtt_s:g} ms"


def _ms(spread: Percentiles | None, name: str) -> str:
    return "" if spread is None else f"{1e3 * float(getattr(spread, name)):,.2f}"


def _cores(share: float | None) -> str:
    return "" if share is None else f"{share:.2f} cores"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("clients", "added", *columns):
        table.add_column(name, justify="right")
    return table
