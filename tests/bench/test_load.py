"""The load generator against a server of the tiny shapes: what it counts, and what it says where it cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from veil.bench import files, load_report
from veil.bench.load_driver import Driver, LoadPlan
from veil.bench.load_record import LoadSeries, Percentiles
from veil.bench.load_shapes import MODELS, manifest_of, random_model
from veil.bench.load_user import LoadTraffic, User
from veil.bundle.header_file import common_fields
from veil.cli import app
from veil.kernels.backend import kernels_for
from veil.server.config import ServerConfig, server_limits
from veil.server.engine import Engine
from veil.server.hosted import HostedBundle
from veil.server.listen import Server
from veil.server.store import SessionStore

PLAIN: dict[str, Any] = {"token": None, "tls": False, "allow_no_tls": False, "bundle": "", "rtt_s": 0.0}


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "load", *map(str, arguments)])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    limits = server_limits(16, 1.0)
    store = SessionStore(limits)
    engine = Engine.build(random_model("tiny"), kernels_for("cpu"))
    server = Server({"tiny": HostedBundle(engine, "0" * 64)}, store, ServerConfig(port=0, limits=limits, metrics_port=None))
    with server:
        options: dict[str, Any] = PLAIN | {"seconds": 0.1}
        warming = LoadPlan(server=f"127.0.0.1:{server.port}", clients=3, rows=1, prompts=1, prompt_rows=20, **options)
        Driver(warming).run(lambda: None, lambda: True)  # kernels may be compiled now, not while a test measures
        yield server


def traffic(rows: int, kept: int = 2) -> LoadTraffic:
    model = random_model("tiny")
    return LoadTraffic.of("tiny", "f" * 64, common_fields(model.params, model.seed, model.manifest), rows, kept)


def test_a_run_with_clients_and_a_prompt(server: Server, tmp_path: Path) -> None:
    out, plot = tmp_path / "load.json", tmp_path / "load.svg"
    target = ("--server", f"127.0.0.1:{server.port}", "--clients", "1,3", "--rtt", "0,2", "--seconds", "0.4")
    result = invoke(*target, "--beside-prompt", "20", "--processes", "2", "--json", out, "--plot", plot)
    assert result.exit_code == 0, result.output
    made = files.read(out, LoadSeries)
    assert [(point.clients, point.rtt_s) for point in made.points] == [(1, 0.0), (3, 0.0), (1, 0.002), (3, 0.002)]
    for point in made.points:
        assert point.message and point.token and point.first and point.prompt
        assert point.message.median_s > point.rtt_s and point.token.median_s > made.round_trips * point.rtt_s
        assert point.tokens_per_s == pytest.approx(point.messages_per_s / made.round_trips, rel=1e-3)
        assert point.first.count == point.clients and point.starved < 1.0
    assert server.store.count == 0, "every client said goodbye"
    assert "tokens/s" in result.stdout and plot.read_text().startswith("<?xml")
    assert invoke("--from", out).exit_code == 0


def test_a_driver_counts_what_the_server_answered(server: Server) -> None:
    before = server.metrics.registry.get_sample_value("veil_messages_total") or 0.0
    options: dict[str, Any] = PLAIN | {"seconds": 0.2}
    seen = Driver(LoadPlan(server=f"127.0.0.1:{server.port}", clients=2, rows=3, **options)).run(lambda: None, lambda: True)
    server._stages.flush()
    answered = (server.metrics.registry.get_sample_value("veil_messages_total") or 0.0) - before
    assert 0 < len(seen.message_s) <= answered
    assert len(seen.pass_s) * seen.messages_a_pass <= len(seen.message_s) + 2 * seen.messages_a_pass


def test_what_the_server_refuses_is_said(server: Server) -> None:
    result = invoke("--server", f"127.0.0.1:{server.port}", "--bundle", "other", "--clients", "1", "--seconds", "0.1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no bundle named 'other'" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "value"), [("--rtt", "-1"), ("--clients", "x"), ("--model", "gpt9"), ("--plot", "a.pdf")]
)
def test_options_that_do_not_fit_are_refused(option: str, value: str) -> None:
    result = invoke(option, value)
    assert (result.exit_code, result.stdout) == (2, "") and value.strip("-") in result.stderr


@pytest.mark.parametrize("rows", [1, 3, 8, 20])
def test_a_user_spends_every_row_once_and_gives_batches_up_when_they_are_used(rows: int) -> None:
    own = traffic(rows, kept=4)
    user, spent, released = User(own, "s"), set[tuple[int, int]](), 0
    for _ in range(12):
        if count := user.wants:
            user.ready.extend(user.upload(count)[0])
        assert user.can_begin and len(user.ready) <= max(own.kept, own.batches)
        for span in user._spans(0, rows):
            for row in range(span.first, span.first + span.count):
                assert row < own.params.T and (span.batch, row) not in spent
                spent.add((span.batch, row))
        user._end_pass()
        released += len(user._used)
        user._used = []
    assert released + len(user.ready) == user.asked


def test_spreads_and_tables() -> None:
    assert Percentiles.of([]) is None
    spread = Percentiles.of([float(number) for number in range(100)])
    assert spread is not None and (spread.median_s, spread.p95_s, spread.p99_s, spread.count) == (50.0, 95.0, 99.0, 100)
    assert load_report._ms(None, "median_s") == ""
    trips = {name: len(shapes.body) + 1 for name, shapes in MODELS.items()}
    assert (trips["gpt2"], trips["llama-1b"], trips["smollm2"]) == (49, 65, 121)
    shapes = MODELS["llama-70b"]
    assert manifest_of(shapes.params, [*shapes.body, shapes.head]).total_slots > 5_000_000
