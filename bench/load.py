"""One GPU under load: `veil bench load` for the shapes of Llama-3.2-1B and GPT-2, each point in one record.

    python -m bench load [--device cuda] [--seconds 4] [--models llama-1b,gpt2] [--only prompt]
        [--out bench/results/load-gpu.json]

For Llama-1B: 1, 4, 12 and 64 clients; 8 clients alone, a prompt of 512 rows alone, and both together; and 200 clients with
20 ms of round trip added. For GPT-2: 1, 12 and 64 clients. Kernels are compiled first, by a load that is not counted. It
takes about five minutes on an H100; the record is written after each point, so that a run that is cut off leaves what it
had. Where a message's time goes is in the series beside it, ``load-gpu-MODEL.json``, which `veil bench load --from` shows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.record import Measurement, Record
from veil.bench import files
from veil.bench.load import LoadRequest, measure, serving
from veil.bench.load_record import LoadPoint, LoadSeries
from veil.errors import VeilError

TARGETS = {
    "llama-1b, 1 client, tokens/s": "at least 50",
    "llama-1b, 12 clients, tokens/s": "at least 600",
    "llama-1b, 64 clients, tokens/s": "at least 1,000",
    "gpt2, 12 clients, tokens/s": "at least 1,000",
}


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Some clients with what is beside them."""

    clients: int
    prompt_rows: int = 0
    rtt_ms: float = 0.0
    kept: int = 2

    @property
    def name(self) -> str:
        """As a row of the record is named."""
        told = [f"{self.clients} client{'s' * (self.clients != 1)}"] if self.clients else []
        told += [f"a prompt of {self.prompt_rows} rows"] if self.prompt_rows else []
        return " beside ".join(told) + (f", {self.rtt_ms:g} ms added" if self.rtt_ms else "")


SITUATIONS = {
    "llama-1b": (
        *(Situation(clients=clients) for clients in (1, 4, 12, 64)),
        Situation(clients=8),
        Situation(clients=0, prompt_rows=512),
        Situation(clients=8, prompt_rows=512),
        Situation(clients=200, rtt_ms=20.0, kept=1),
    ),
    "gpt2": tuple(Situation(clients=clients) for clients in (1, 12, 64)),
    "tiny": (Situation(clients=2), Situation(clients=2, prompt_rows=40, rtt_ms=2.0)),
}


def rows_of(model: str, situation: Situation, point: LoadPoint) -> Iterator[Measurement]:
    """What a record keeps of a point."""
    name = f"{model}, {situation.name}"
    if situation.clients:
        told = f"{name}, tokens/s"
        yield Measurement(name=told, value=point.tokens_per_s, unit="1/s", target=TARGETS.get(told, ""))
        yield Measurement(name=f"{name}, messages/s", value=point.messages_per_s, unit="1/s")
    for what, spread in (("token", point.token), ("message", point.message), ("first token", point.first)):
        if spread is not None and situation.clients:
            for part in ("median", "p95", "p99"):
                seconds = getattr(spread, f"{part}_s")
                row = Measurement(name=f"{name}, {what}, {part}", value=1e3 * seconds, unit="ms", repetitions=spread.count)
                yield row
    if point.prompt is not None:
        prompt = point.prompt
        yield Measurement(name=f"{name}, prompt, median", value=prompt.median_s, unit="s", repetitions=prompt.count)
    if point.stages is not None:
        for stage in ("check", "wait", "product", "reply", "elsewhere"):
            seconds = getattr(point.stages, f"{stage}_s")
            yield Measurement(name=f"{name}, a message's {stage}", value=1e6 * seconds, unit="µs")
        yield Measurement(name=f"{name}, rows a product", value=point.stages.rows_a_product, unit="")
    for what, share in (("server's cores", point.server_cpu), ("generator's cores", point.generator_cpu)):
        if share is not None:
            yield Measurement(name=f"{name}, {what}", value=share, unit="")
    yield Measurement(name=f"{name}, waiting for prepared rows", value=point.starved, unit="of the time")
    if point.gpu is not None:
        yield Measurement(name=f"{name}, GPU in use", value=point.gpu, unit="of the time")


def run(model: str, request: LoadRequest, record: Record, out: Path, wanted: tuple[str, ...] = ("",)) -> None:
    """A model's situations on one server, those whose names have a word of ``wanted``; what goes wrong with one is a note,
    and the next is tried.
    """
    begun = time.monotonic()
    points: list[LoadPoint] = []
    series: LoadSeries | None = None
    situations = [own for own in SITUATIONS[model] if any(word in own.name for word in wanted)]
    most = max((situation.clients for situation in situations), default=1)
    with serving(replace(request, clients=(most,)), _quiet) as (server, metrics):
        own = replace(request, server=server, metrics=metrics)
        record.notes.append(f"{model}: the server was there after {time.monotonic() - begun:.0f} s")
        _warm(own)
        record.notes.append(f"{model}: kernels were compiled after {time.monotonic() - begun:.0f} s")
        for situation in situations:
            try:
                series = measure(
                    replace(
                        own,
                        clients=(situation.clients,),
                        rtt_ms=(situation.rtt_ms,),
                        prompt_rows=situation.prompt_rows,
                        kept=situation.kept,
                    ),
                    _quiet,
                )
            except (VeilError, OSError, ValueError) as error:
                record.notes.append(f"{model}, {situation.name}: {error}")
                print(f"{model}, {situation.name}: {error}", flush=True)
                continue
            points += series.points
            for row in rows_of(model, situation, series.points[0]):
                record.add(row)
            print(f"{time.monotonic() - begun:6.1f} s  {model}, {situation.name}", flush=True)
            record.write(out)
            files.write(replace(series, points=tuple(points)), out.with_name(f"{out.stem}-{model}.json"))


def _warm(request: LoadRequest) -> None:
    """Let the server compile what products of several rows and prompts need."""
    for clients, rows in ((1, 0), (3, 0), (2, 512 if request.model != "tiny" else 40)):
        measure(replace(request, clients=(clients,), prompt_rows=rows, seconds=1.0), _quiet)


def _quiet(stage: str, done: int, total: int) -> None: ...


def main() -> None:
    """Measure, write the record and show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--models", default="llama-1b,gpt2")
    parser.add_argument("--memory-gib", type=float, default=48.0)
    parser.add_argument("--only", default="", help="situations whose names have one of these words, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("bench/results/load-gpu.json"))
    given = parser.parse_args()
    parameters = {"device": given.device, "seconds": given.seconds, "models": given.models}
    record = Record(benchmark="load", parameters=parameters)
    for model in given.models.split(","):
        request = LoadRequest(
            server=None, model=model, device=given.device, seconds=given.seconds, memory_gib=given.memory_gib
        )
        run(model, request, record, given.out, tuple(given.only.split(",")))
    record.write(given.out)
    record.show()


if __name__ == "__main__":
    main()
