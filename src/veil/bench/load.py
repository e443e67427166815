"""`veil bench load`: many clients of one server, in some processes, and what they saw together."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from veil.bench import machine
from veil.bench.load_driver import LoadPlan, Seen
from veil.bench.load_meter import GpuUse, read_account, stages_of
from veil.bench.load_record import LoadPoint, LoadSeries, Percentiles
from veil.bench.load_user import LoadFailed
from veil.priority import cores
from veil.progress import Progress


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """What is measured: each number of ``clients`` at each round-trip time. Without ``server`` one with ``model``'s shapes
    is started.

    With ``prompt_rows`` one more client sends prompts of so many rows beside them, and alone where a number is 0.
    """

    server: str | None
    model: str = "gpt2"
    device: str = "cpu"
    token: str | None = None
    tls: bool | str = False
    allow_no_tls: bool = False
    bundle: str = ""
    metrics: str | None = None
    clients: tuple[int, ...] = (1, 4, 16, 64)
    rows: int = 1
    rtt_ms: tuple[float, ...] = (0.0,)
    seconds: float = 5.0
    kept: int = 2
    processes: int = 0
    prompt_rows: int = 0
    memory_gib: float = 8.0
    serve_options: tuple[str, ...] = ()


def measure(request: LoadRequest, progress: Progress) -> LoadSeries:
    """Every point, one after the other; `LoadFailed` with what the server said, `ValueError` where there are no metrics."""
    with serving(request, progress) as (server, metrics):
        points, trips, bundle = [], 0, request.bundle
        steps = [(clients, rtt) for rtt in request.rtt_ms for clients in request.clients]
        for done, (clients, rtt_ms) in enumerate(steps):
            progress(f"{clients} clients, {rtt_ms:g} ms added", done, len(steps))
            own = replace(request, server=server, metrics=metrics)
            point, seen = _point(own, clients, rtt_ms / 1e3)
            points.append(point)
            trips, bundle = seen.groups, seen.bundle
        progress("measured", len(steps), len(steps))
    return LoadSeries(
        commit=machine.commit(),
        versions=machine.versions(),
        machine=machine.name(),
        bundle=bundle,
        round_trips=trips,
        server=request.server or f"{request.model} on {request.device}, started for it",
        processes=_processes(request, max(request.clients)),
        points=tuple(points),
    )


def _processes(request: LoadRequest, clients: int) -> int:
    """Processes of the generator: one for each two cores, or as many as asked for, and no more than clients."""
    return max(1, min(request.processes or max(1, cores() // 2), clients))


@contextlib.contextmanager
def serving(request: LoadRequest, progress: Progress) -> Iterator[tuple[str, str | None]]:
    """The server to measure, and where its metrics are: the one that was named, or one that runs while the block does."""
    if request.server is not None:
        yield request.server, request.metrics
        return
    progress(f"a server of {request.model}'s shapes", 0, 1)
    sessions = str(2 * max(request.clients) + 8)
    command = [sys.executable, "-m", "veil.bench.load_server", request.model, request.device, sessions]
    command += [str(request.memory_gib), *request.serve_options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise LoadFailed("the server's process ended; its own message is above")
        ports = json.loads(line)
        yield f"127.0.0.1:{ports['port']}", f"127.0.0.1:{ports['metrics_port']}"
    finally:
        process.stdin.close()
        try:
            process.wait(30.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _point(request: LoadRequest, clients: int, rtt_s: float) -> tuple[LoadPoint, Seen]:
    assert request.server is not None
    plan = LoadPlan(
        server=request.server,
        token=request.token,
        tls=request.tls,
        allow_no_tls=request.allow_no_tls,
        bundle=request.bundle,
        clients=clients,
        rows=request.rows,
        rtt_s=rtt_s,
        seconds=request.seconds,
        kept=request.kept,
        prompt_rows=request.prompt_rows,
    )
    with Drivers(_shared_out(plan, _processes(request, clients))) as drivers:
        drivers.wait_until_warm()
        before = read_account(request.metrics) if request.metrics else None
        with GpuUse() as gpu:
            seen = drivers.measure()
        after = read_account(request.metrics) if request.metrics else None
    together = _together(seen)
    measured = max(own.measured_s for own in seen)
    messages = len(together.message_s)
    return LoadPoint(
        clients=clients,
        rtt_s=rtt_s,
        rows=request.rows,
        seconds=measured,
        tokens_per_s=request.rows * messages / together.messages_a_pass / measured,
        messages_per_s=messages / measured,
        starved=together.starved_s / (measured * max(1, clients + bool(request.prompt_rows))),
        generator_cpu=together.cpu_s / measured,
        message=Percentiles.of(together.message_s),
        token=Percentiles.of(together.pass_s),
        first=Percentiles.of(together.first_s),
        prompt=Percentiles.of(together.prompt_s),
        prompt_rows=request.prompt_rows,
        stages=stages_of(before, after, sum(together.message_s) / max(1, messages) - rtt_s) if before and after else None,
        server_cpu=(after.cpu_s - before.cpu_s) / measured if before and after else None,
        gpu=gpu.share,
    ), together


def _shared_out(plan: LoadPlan, processes: int) -> list[LoadPlan]:
    """The plan's users in so many parts; the prompts' user is in the last."""
    parts = []
    for place in range(processes):
        clients = plan.clients // processes + (place < plan.clients % processes)
        prompts = int(plan.prompt_rows > 0 and place == processes - 1)
        parts.append(replace(plan, clients=clients, prompts=prompts))
    return parts


def _together(seen: Sequence[Seen]) -> Seen:
    made = replace(seen[0], message_s=[], pass_s=[], first_s=[], prompt_s=[], starved_s=0.0, cpu_s=0.0)
    for own in seen:
        for name in ("message_s", "pass_s", "first_s", "prompt_s"):
            getattr(made, name).extend(getattr(own, name))
        made.starved_s += own.starved_s
        made.cpu_s += own.cpu_s
    return made


class Drivers:
    """The generator's processes while one point is measured."""

    def __init__(self, plans: Sequence[LoadPlan]) -> None:
        self._plans = plans
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Drivers:
        command = [sys.executable, "-m", "veil.bench.load_driver"]
        for plan in self._plans:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._processes.append(process)
            _tell(process, json.dumps(asdict(plan)))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            if process.poll() is None:
                process.terminate()
            process.wait()

    def wait_until_warm(self) -> None:
        """Until each client has had its first token."""
        for process in self._processes:
            line = _heard(process)
            if line != "warm":
                _fail(line)

    def measure(self) -> list[Seen]:
        """Let all measure at once; what each saw."""
        for process in self._processes:
            _tell(process, "measure")
        return [_fail(_heard(process)) for process in self._processes]


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _fail(line: str) -> Seen:
    """What a driver saw; `LoadFailed` with its error, or where it ended without a word."""
    answer = json.loads(line) if line.startswith("{") else {"error": "a driver of the load ended"}
    if "error" in answer:
        raise LoadFailed(answer["error"])
    return Seen(**answer)
