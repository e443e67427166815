"""Encrypted generation over the network, on the loopback interface, beside the same in one process: SmolLM2.

    python -m bench remote [--bundle FOLDER] [--part tokens|first|clients] [--out bench/results/remote-smollm2.json]

The server is a process of its own (`veil serve`), and so is each of the four clients that run at once. A part that runs
alone replaces its rows in the record, if that is of the same commit and machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from bench.processes import compiled, listening
from bench.record import Measurement, Record
from veil import HybridFHEModel
from veil.bench.generation import Times, generate
from veil.client.session import OfflineRows

ROOT = Path(__file__).parents[1]
TOKENS = 33
REPETITIONS = 3
PROMPT_ROWS = 48
CLIENTS = 4
ROUNDS = 4
PROMPTS = ["The history of the lighthouse begins", "A recipe for bread starts with", "Once upon a time", "The sun is"]
NOTHING = OfflineRows(tokens=0, prompt_rows=0)
PARTS = ("tokens", "first", "clients")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--fuse-norms", choices=["auto", "on", "off"], default="auto", help="of the bundle that it compiles")
    parser.add_argument("--part", choices=PARTS, help="only this; all by default")
    parser.add_argument("--out", type=Path, default=Path("bench/results/remote-smollm2.json"))
    parser.add_argument("--client", nargs=2, metavar=("HOST:PORT", "NUMBER"), help="be one of the clients")
    args = parser.parse_args()
    if args.client:
        client(args.client[0], int(args.client[1]), args.bundle)
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or compiled(Path(folder) / "smollm2", "--fuse-norms", args.fuse_norms)
        record = Record(benchmark="remote, smollm2", parameters=parameters(bundle))
        for part in [args.part] if args.part else PARTS:
            {"tokens": tokens, "first": first, "clients": clients}[part](bundle, record)
    keep_other_parts(record, args.out)
    record.show()
    record.write(args.out)


def parameters(bundle: Path) -> dict[str, int]:
    header = json.loads((bundle / "client" / "bundle.json").read_text())
    return {"tokens": TOKENS - 1, "prompt_rows": PROMPT_ROWS, "round_trips": len(header["manifest"])}


def keep_other_parts(record: Record, path: Path) -> None:
    """Rows of an earlier run of other parts, where nothing has changed."""
    if not path.exists():
        return
    before = Record.read(path)
    same = (before.machine, before.commit, before.parameters) == (record.machine, record.commit, record.parameters)
    names = {row.name for row in record.rows}
    if same:
        record.rows = [row for row in before.rows if row.name not in names] + record.rows


@contextmanager
def server(bundle: Path) -> Iterator[str]:
    """Where a server process of the bundle listens."""
    with listening("serve", bundle / "server", "--device", "cpu") as port:
        yield f"127.0.0.1:{port}"


@contextmanager
def remote(bundle: Path, target: str, offline_rows: OfflineRows = NOTHING) -> Iterator[HybridFHEModel]:
    """A client."""
    hybrid = HybridFHEModel.connect(target, bundle, offline_rows=offline_rows)
    try:
        yield hybrid
    finally:
        hybrid.close()


def in_process(bundle: Path) -> HybridFHEModel:
    hybrid = HybridFHEModel.load(bundle, device="cpu")
    hybrid.set_fhe_mode("execute")
    return hybrid


# What is measured ---------------------------------------------------------------------------------------------------------


def generated(hybrid: HybridFHEModel, ids: torch.Tensor, count: int = TOKENS) -> Times:
    """Generate so many tokens, and the first with them."""
    model: Any = hybrid.model
    return generate(model, ids, count - 1)


def token_seconds(
    hybrid: HybridFHEModel, ids: torch.Tensor, ready: Callable[[], None], times: int = REPETITIONS
) -> list[float]:
    """Wall seconds a token after the first, of several generations, each after ``ready``."""
    samples = []
    for _ in range(times):
        ready()
        samples.append(mean(generated(hybrid, ids).tokens_s))
    return samples


def first_token(
    hybrid: HybridFHEModel, ids: torch.Tensor, ready: Callable[[], None], times: int = REPETITIONS
) -> list[float]:
    """Wall seconds from the start to the first token."""
    samples = []
    for _ in range(times):
        ready()
        start = time.perf_counter()
        generated(hybrid, ids, 1)
        samples.append(time.perf_counter() - start)
    return samples


def leading(made: Sequence[int], wanted: Sequence[int]) -> int:
    """Equal tokens from the start: noise is fresh each time, and decides where two logits are as good as equal."""
    same = [one == other for one, other in zip(made, wanted, strict=True)]
    return same.index(False) if False in same else len(same)


def inputs(hybrid: HybridFHEModel, number: int) -> torch.Tensor:
    ids: torch.Tensor = hybrid.tokenizer(PROMPTS[number], return_tensors="pt").input_ids
    return ids


def empty(hybrid: HybridFHEModel) -> Callable[[], None]:
    """Begin anew in process, with nothing prepared."""

    def again() -> None:
        hybrid.close()
        hybrid.set_fhe_mode("execute")

    return again


Samples = Callable[[HybridFHEModel, torch.Tensor, Callable[[], None], int], list[float]]


def cold(measure: Samples, bundle: Path, target: str, ids: torch.Tensor, offline_rows: OfflineRows = NOTHING) -> list[float]:
    """Samples of new sessions, in which nothing is prepared but what the background makes meanwhile; one of each."""
    found: list[float] = []
    for _ in range(REPETITIONS):
        with remote(bundle, target, offline_rows) as hybrid:
            found += measure(hybrid, ids, lambda: None, 1)
    return found


def warm(hybrid: HybridFHEModel) -> Callable[[], None]:
    """Have rows for a generation ready, and none in the making."""
    return lambda: hybrid.reserve(rows_body=8, rows_full=TOKENS + 4)


# The parts ----------------------------------------------------------------------------------------------------------------


def tokens(bundle: Path, record: Record) -> None:
    """A token, in process and remote: rows ready, the pool refilling meanwhile, and no pool at the start."""
    local = in_process(bundle)
    ids = inputs(local, 0)
    answer = generated(local, ids).tokens
    again = leading(generated(local, ids).tokens, answer)
    rows = {"in process, a token, rows ready": token_seconds(local, ids, warm(local))}
    rows["in process, a token, rows included"] = token_seconds(local, ids, empty(local))
    local.close()
    with server(bundle) as target:
        with remote(bundle, target) as hybrid:
            equal = leading(generated(hybrid, ids).tokens, answer)
            rows["remote, a token, pool warm"] = token_seconds(hybrid, ids, warm(hybrid))
        with remote(bundle, target, OfflineRows(tokens=TOKENS + 4, prompt_rows=8)) as hybrid:

            def full() -> None:
                while hybrid.rows_ready.tokens < TOKENS + 4 or hybrid.rows_ready.prompt_rows < 8:
                    time.sleep(0.05)

            rows["remote, a token, pool warm and refilling"] = token_seconds(hybrid, ids, full)
        filling = OfflineRows(tokens=TOKENS + 4, prompt_rows=8)
        rows["remote, a token, pool cold"] = cold(token_seconds, bundle, target, ids, filling)
    add(record, rows)
    median = {row.name: row.value for row in record.rows}
    overhead = median["remote, a token, pool warm"] / median["in process, a token, rows ready"] - 1
    record.add(Measurement(name="remote online overhead, pool warm", value=100 * overhead, unit="%", target="≤ 15"))
    for name, value in (("remote, tokens equal to in process", equal), ("in process, tokens equal in two runs", again)):
        record.add(Measurement(name=f"{name} before a near tie", value=value, unit=f"of {TOKENS}"))


def first(bundle: Path, record: Record) -> None:
    """Time to the first token of a long prompt, with every row ready and with none."""
    ids = torch.arange(1000, 1000 + PROMPT_ROWS).unsqueeze(0)
    rows = {}
    with server(bundle) as target:
        with remote(bundle, target) as hybrid:
            generated(hybrid, ids, 1)
            ready = lambda: hybrid.reserve(rows_body=PROMPT_ROWS, rows_full=2)  # noqa: E731
            rows[f"remote, first token, {PROMPT_ROWS} rows, pool warm"] = first_token(hybrid, ids, ready)
        rows[f"remote, first token, {PROMPT_ROWS} rows, pool cold"] = cold(first_token, bundle, target, ids)
    add(record, rows)


def client(target: str, number: int, bundle: Path) -> None:
    """One of several clients: says that it is ready, waits for a line, generates, reports; until the input ends."""
    with remote(bundle, target) as hybrid:
        while True:
            warm(hybrid)()
            print("ready", flush=True)
            line = sys.stdin.readline()
            if not line:
                return
            made = generated(hybrid, inputs(hybrid, number if line == "go\n" else int(line)))
            print(json.dumps({"tokens": made.tokens, "seconds": made.whole_s}), flush=True)


class Client:
    """A client process."""

    def __init__(self, bundle: Path, target: str, number: int) -> None:
        command = [sys.executable, "-m", "bench.remote", "--bundle", str(bundle.resolve()), "--client", target, str(number)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.communicate(timeout=60)


def clients(bundle: Path, record: Record) -> None:
    """Tokens a second of one and of four client processes with warm pools, prompts included."""
    samples: dict[int, list[float]] = {1: [], CLIENTS: []}
    equal: list[float] = []
    with server(bundle) as target:
        alone = Client(bundle, target, 0)
        answers = []
        for number in range(CLIENTS):
            assert alone.read() == "ready\n"
            start = time.perf_counter()
            alone.write(f"{number}\n")
            answers.append(json.loads(alone.read())["tokens"])
            samples[1].append(TOKENS / (time.perf_counter() - start))
        alone.end()
        together = [Client(bundle, target, number) for number in range(CLIENTS)]
        for _ in range(ROUNDS):
            for one in together:
                assert one.read() == "ready\n"
            start = time.perf_counter()
            for one in together:
                one.write("go\n")
            for number, one in enumerate(together):
                equal.append(leading(json.loads(one.read())["tokens"], answers[number]))
            samples[CLIENTS].append(CLIENTS * TOKENS / (time.perf_counter() - start))
        for one in together:
            one.end()
    medians = {}
    for count, values in samples.items():
        row = Measurement.of(f"{count} client(s) at once, all together, pool warm", values[1:] or values, "tokens/s")
        record.add(row)
        medians[count] = row.value
    record.add(Measurement.of("tokens equal to one client's before a near tie", equal, f"of {TOKENS}"))
    share = medians[CLIENTS] / medians[1]
    record.add(Measurement(name="four clients / one", value=share, unit="×", target="≥ 1.3"))


def add(record: Record, rows: dict[str, list[float]]) -> None:
    for name, samples in rows.items():
        row = Measurement.of(name, samples, "s")
        record.add(row)
        print(f"{row.name}: {row.value:.4f} s ({row.low:.4f} … {row.high:.4f})", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
