"""Encrypted generation over the network, on the loopback interface, beside the same in one process: SmolLM2.

    python bench/remote.py [--bundle FOLDER] [--out bench/results/remote-smollm2.json]

The server is a process of its own (`veil serve`), and so is each of the four clients that run at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from record import Measurement, Record
from veil import HybridFHEModel
from veil.client.session import Ahead

TOKENS = 33
REPETITIONS = 5
PROMPT_ROWS = 48
CLIENTS = 4
PROMPTS = ["The history of the lighthouse begins", "A recipe for bread starts with", "Once upon a time", "The sun is"]
SERVE = "from veil.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench/results/remote-smollm2.json"))
    parser.add_argument("--client", nargs=2, metavar=("HOST:PORT", "NUMBER"), help="be one of the clients")
    args = parser.parse_args()
    if args.client:
        client(args.client[0], int(args.client[1]), args.bundle)
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or compiled(Path(folder) / "smollm2")
        record = Record(benchmark="remote, smollm2", parameters={"tokens": TOKENS - 1, "prompt_rows": PROMPT_ROWS})
        answers = in_process(bundle, record)
        with server(bundle) as target:
            over_the_network(bundle, target, answers, record)
            clients(bundle, target, answers, record)
    compare(record)
    record.show()
    record.write(args.out)


def compiled(path: Path) -> Path:
    subprocess.run([sys.executable, "-c", SERVE, "compile", "smollm2", str(path)], check=True, capture_output=True)
    return path


@contextmanager
def server(bundle: Path) -> Iterator[str]:
    """A server process on a free port."""
    command = [sys.executable, "-c", SERVE, "serve", str(bundle / "server"), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("veil: listening on "))
        with tempfile.TemporaryFile("w") as log, subprocess.Popen(["cat"], stdin=process.stderr, stdout=log) as drain:
            yield line.split()[3].rstrip(",")
            process.terminate()
            process.wait(40)
            drain.wait(5)


class Clock:
    """A streamer that keeps the time of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


def generate(hybrid: HybridFHEModel, ids: torch.Tensor, tokens: int = TOKENS) -> tuple[list[int], list[float]]:
    """The new tokens, and the time of the start and of each."""
    clock = Clock()
    output = hybrid.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
        do_sample=False, streamer=clock, pad_token_id=0,
    )  # fmt: skip
    return output[0, ids.shape[1] :].tolist(), clock.times


def token_seconds(hybrid: HybridFHEModel, ids: torch.Tensor, ready: Callable[[], None]) -> list[float]:
    """Wall seconds a token after the first, of several generations, each after ``ready``."""
    samples = []
    for _ in range(REPETITIONS):
        ready()
        _, times = generate(hybrid, ids)
        samples.append((times[-1] - times[1]) / (TOKENS - 1))
    return samples


def first_token(hybrid: HybridFHEModel, ids: torch.Tensor, ready: Callable[[], None]) -> list[float]:
    """Wall seconds from the start to the first token."""
    samples = []
    for _ in range(REPETITIONS):
        ready()
        start = time.perf_counter()
        generate(hybrid, ids, 1)
        samples.append(time.perf_counter() - start)
    return samples


def inputs(hybrid: HybridFHEModel, number: int) -> torch.Tensor:
    ids: torch.Tensor = hybrid.tokenizer(PROMPTS[number], return_tensors="pt").input_ids
    return ids


def long_prompt() -> torch.Tensor:
    return torch.arange(1000, 1000 + PROMPT_ROWS).unsqueeze(0)


def in_process(bundle: Path, record: Record) -> list[list[int]]:
    """The same generation without a network; the answers of all prompts."""
    hybrid = HybridFHEModel.load(bundle, device="cpu")
    hybrid.set_fhe_mode("execute")
    ids = inputs(hybrid, 0)
    session = hybrid._session
    assert session is not None

    def warm() -> None:
        session.reserve(full=TOKENS + 8)

    def warm_prompt() -> None:
        session.reserve(body=PROMPT_ROWS, full=2)

    answers = [generate(hybrid, inputs(hybrid, number))[0] for number in range(CLIENTS)]
    add(record, "in process, a token, masks ready", token_seconds(hybrid, ids, warm))
    add(record, "in process, a token, masks included", token_seconds(hybrid, ids, session._pool.clear))
    add(record, "in process, first token, 48 rows, masks ready", first_token(hybrid, long_prompt(), warm_prompt))
    add(record, "in process, first token, 48 rows, no masks", first_token(hybrid, long_prompt(), session._pool.clear))
    return answers


def over_the_network(bundle: Path, target: str, answers: list[list[int]], record: Record) -> None:
    """One client: warm (no mask is made meanwhile), as it comes (the pool refills), cold."""
    hybrid = HybridFHEModel.connect(target, bundle, ahead=Ahead(tokens=TOKENS + 8, prompt_rows=PROMPT_ROWS))
    ids = inputs(hybrid, 0)
    assert generate(hybrid, ids)[0] == answers[0], "remote and in-process output differ"
    filler, pool = hybrid._remote._filler, hybrid._remote._pool  # type: ignore[union-attr]
    assert filler is not None
    wanted = filler._tokens, filler._prompt_rows

    def fill() -> None:
        filler._tokens, filler._prompt_rows = wanted
        filler.forward()
        while not filler.full:
            time.sleep(0.05)
        time.sleep(0.2)

    def warm() -> None:
        fill()
        filler._tokens = filler._prompt_rows = 0

    def cold() -> None:
        filler._tokens = filler._prompt_rows = 0
        time.sleep(1.0)
        pool.clear()
        filler._tokens = wanted[0]

    def empty() -> None:
        filler._tokens = filler._prompt_rows = 0
        time.sleep(1.0)
        pool.clear()

    add(record, "remote, a token, pool warm", token_seconds(hybrid, ids, warm))
    add(record, "remote, a token, pool warm and refilling", token_seconds(hybrid, ids, fill))
    add(record, "remote, a token, pool cold", token_seconds(hybrid, ids, cold))
    add(record, "remote, first token, 48 rows, pool warm", first_token(hybrid, long_prompt(), warm))
    add(record, "remote, first token, 48 rows, pool cold", first_token(hybrid, long_prompt(), empty))
    hybrid.close()


def client(target: str, number: int, bundle: Path) -> None:
    """One of several clients: says that it is ready, waits for a line, generates, reports; until the input ends."""
    hybrid = HybridFHEModel.connect(target, bundle, ahead=Ahead(tokens=TOKENS + 8, prompt_rows=0))
    ids = inputs(hybrid, number)
    filler = hybrid._remote._filler  # type: ignore[union-attr]
    assert filler is not None
    for _ in range(3):
        while not filler.full:
            time.sleep(0.05)
        print("ready", flush=True)
        if not sys.stdin.readline():
            break
        tokens, times = generate(hybrid, ids)
        print(json.dumps({"tokens": tokens, "seconds": times[-1] - times[0]}), flush=True)
    hybrid.close()


def clients(bundle: Path, target: str, answers: list[list[int]], record: Record) -> None:
    """Tokens a second of one and of four client processes, prompts and refilling included."""
    rates = {}
    for count in (1, CLIENTS):
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--bundle", str(bundle), "--client", target, str(number)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for number in range(count)
        ]  # fmt: skip
        samples = []
        for _ in range(2):
            for process in processes:
                assert line_of(process) == "ready\n"
            start = time.perf_counter()
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            for number, process in enumerate(processes):
                assert json.loads(line_of(process))["tokens"] == answers[number], f"client {number} got another answer"
            samples.append(count * TOKENS / (time.perf_counter() - start))
        for process in processes:
            process.communicate(timeout=60)
        rates[count] = max(samples)
        record.add(Measurement.of(f"{count} client(s) at once, all together", samples, "tokens/s"))
    share = rates[CLIENTS] / rates[1]
    record.add(Measurement(name="four clients / one", value=share, unit="×", target="≥ 1.3"))


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def add(record: Record, name: str, samples: list[float]) -> None:
    row = Measurement.of(name, samples, "s")
    record.add(row)
    print(f"{row.name}: {row.value:.4f} s ({row.low:.4f} … {row.high:.4f})", flush=True)


def compare(record: Record) -> None:
    """The overhead of the network on a token whose mask is ready."""
    found = {row.name: row.value for row in record.rows}
    overhead = found["remote, a token, pool warm"] / found["in process, a token, masks ready"] - 1
    record.add(Measurement(name="remote online overhead, pool warm", value=100 * overhead, unit="%", target="≤ 15"))


if __name__ == "__main__":
    with torch.no_grad():
        main()
