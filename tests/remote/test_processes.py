"""`veil serve`, `veil pull` and `veil generate --server`: servers and their clients as separate processes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from remote import processes
from remote.commands import veil
from waiting import until

WEAK = "--allow-no-cryptography"
PROMPT = "w23 w6 w7"


def test_two_processes_answer_as_one_does(llama: Any, start: Any, tmp_path: Path) -> None:
    alone = veil("generate", PROMPT, "--bundle", llama.path, "--max-new-tokens", "4", "--json", WEAK)
    assert alone.returncode == 0, alone.stderr
    half = llama.path / "server"
    server = start("serve", half, "--offer", llama.path / "client", "--port", "0", "--metrics-port", "0")
    target = f"127.0.0.1:{server.port}"
    refused = veil("pull", target, tmp_path / "half")
    assert refused.returncode == 2 and "protect nothing" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "half").exists()
    pulled = veil("pull", target, tmp_path / "half", WEAK)
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.strip() == str(tmp_path / "half")
    assert "bundle.json" in pulled.stderr and "digest" in pulled.stderr
    again = veil("pull", target, tmp_path / "half", WEAK)
    assert again.returncode == 2 and "exists already" in again.stderr
    options = ("--server", target, "--max-new-tokens", "4", "--json", WEAK)
    for bundle in (("--bundle", tmp_path / "half"), ()):
        run = processes.veil if bundle else veil
        result = run("generate", PROMPT, *options, *bundle, VEIL_CACHE_DIR=str(tmp_path / "cache"))
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["text"] == json.loads(alone.stdout)["text"]
        assert answer["remote"]["rows"] == answer["prompt_tokens"] + 3
    assert server.end() == 0
    assert server.lines[-1] == "modules []\n", "the server loaded something that only a client needs"
    events = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert {"opened", "evaluated", "closed", "stopped"} <= {entry["event"] for entry in events}
    assert "prepared" not in {entry["event"] for entry in events}, "no line for each batch of rows"
    assert {entry["peer"] for entry in events if entry["event"] == "opened"} == {"127.0.0.1"}


def test_a_killed_server_is_survived(llama: Any, start: Any, generated: Any, expected: list[int], own_port: int) -> None:
    command = ("serve", llama.path / "server", "--port", str(own_port))
    first = start(*command)
    remote = llama.connect(first.port)
    calls, original = [0], remote.sides.remote.transport.evaluate

    def evaluate(*arguments: Any) -> bytes:
        calls[0] += 1
        if calls[0] == 15:
            first.end(signal.SIGKILL)
            start(*command)
        reply: bytes = original(*arguments)
        return reply

    remote.sides.remote.transport.evaluate = evaluate
    assert generated(remote) == expected
    assert remote.stats.sessions_lost == 1
    remote.close()


def test_a_command_that_does_not_come_to_listen_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next test would be the one that is told of a process and a pipe that nobody closed."""
    begun: list[subprocess.Popen[str]] = []

    class Noted(subprocess.Popen[str]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            begun.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(AssertionError):
        processes.Listening("--version")
    (process,) = begun
    assert process.returncode is not None and process.stderr is not None and process.stderr.closed


def test_options_that_do_not_fit_are_one_line(llama: Any, tmp_path: Path) -> None:
    half = llama.path / "server"
    for arguments, words in (
        ((llama.path,), "did you mean"),
        ((tmp_path,), "not a half of a bundle"),
        ((half, "--host", "0.0.0.0"), "--insecure"),
        ((half, "--tls-cert", tmp_path / "c"), "go together"),
        ((half, half), "NAME=PATH"),
        ((half, "--offer", f"other={llama.path / 'client'}"), "not served"),
        ((llama.path / "client",), "expected the server half"),
    ):
        result = veil("serve", *arguments, "--port", "0")
        assert result.returncode == 2, result.stderr
        assert words in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_a_port_that_is_taken_is_told_before_the_hint_is_built(llama: Any) -> None:
    half = llama.path / "server"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments in (("--port", port), ("--port", "0", "--rows-port", port), ("--port", "0", "--metrics-port", port)):
            result = veil("serve", half, *arguments)
            assert result.returncode == 2
            assert f"127.0.0.1:{port}" in result.stderr and arguments[-2] in result.stderr.splitlines()[-1]
            assert "hint" not in result.stderr
    result = veil("serve", half, "--host", "192.0.2.1", "--port", "8471", "--insecure")
    assert result.returncode == 2 and "cannot listen on 192.0.2.1:8471" in result.stderr


def test_a_port_that_is_given_twice_is_told_before_the_hint_is_built(llama: Any, own_port: int) -> None:
    one = str(own_port)
    for arguments, option in (
        (("--port", one, "--rows-port", one), "--rows-port"),
        (("--port", "0", "--rows-port", one, "--metrics-port", one), "--metrics-port"),
    ):
        result = veil("serve", llama.path / "server", *arguments)
        assert result.returncode == 2
        assert f"choose another {option}" in result.stderr.splitlines()[-1]
        assert "hint" not in result.stderr


def test_generate_against_nobody_is_one_line(llama: Any, refusing_port: int) -> None:
    result = veil("generate", PROMPT, "--server", f"127.0.0.1:{refusing_port}", "--bundle", llama.path, WEAK)
    assert result.returncode == 2
    assert "is 'veil serve' running there" in result.stderr.splitlines()[-1]


def test_health_and_metrics(llama: Any, serve: Any, generated: Any, own_port: int) -> None:
    with serve(llama, metrics_port=own_port) as server:
        remote = llama.connect(server.port)
        generated(remote)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", "veil.v2.Veil"):
                reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
                assert reply.status == health_pb2.HealthCheckResponse.SERVING
        stats = remote.stats.copy()  # before the server's: batches go on being made
        with urllib.request.urlopen(f"http://127.0.0.1:{own_port}/metrics", timeout=5) as page:
            text = page.read().decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        made = float(values["veil_batches_total"]) * remote.sides.remote.model.params.T
        assert made >= stats.rows_made >= stats.rows
        assert float(values["veil_rows_total"]) > 0
        assert float(values['veil_seconds_total{phase="prepare"}']) > 0
        assert float(values['veil_bytes_total{direction="received"}']) > 0
        assert float(values["veil_sessions"]) == 1
        assert float(values['veil_calls_total{method="Open",result="ok"}']) == 1
        remote.close()

        def counted() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{own_port}/metrics", timeout=5) as page:
                return 'veil_calls_total{method="Rows",result="ok"} 1.0' in page.read().decode()

        until(counted, what="the row lane's stream among the calls")


def test_a_model_is_compiled_served_fetched_and_asked_with_the_usual_parameters(
    start: Any, llama_folder: Path, tmp_path: Path
) -> None:
    """As below with a model that is small: nothing is allowed that does not protect, and nothing is refused."""
    made = veil("compile", llama_folder, tmp_path / "bundle")
    assert made.returncode == 0, made.stderr
    bundle = tmp_path / "bundle"
    server = start("serve", bundle / "server", "--offer", bundle / "client", "--port", "0")
    options = ("--server", f"127.0.0.1:{server.port}", "--max-new-tokens", "3", "--json")
    result = veil("generate", PROMPT, *options, VEIL_CACHE_DIR=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["security_bits"] > 128
    assert answer["remote"]["rows"] == answer["prompt_tokens"] + 2
    assert server.end() == 0
    assert server.lines[-1] == "modules []\n"


@pytest.mark.slow
def test_smollm2_answers_over_the_network(start: Any, tmp_path: Path) -> None:
    """The built-in model, default parameters: compile, serve, fetch, generate; two processes and the Paris prompt."""
    made = processes.veil("compile", "smollm2", tmp_path / "bundle")  # gigabytes, which go with it
    assert made.returncode == 0, made.stderr
    bundle = tmp_path / "bundle"
    server = start("serve", bundle / "server", "--offer", bundle / "client", "--port", "0")
    result = processes.veil(
        "generate", "Name the capital of France.", "--server", f"127.0.0.1:{server.port}", "--max-new-tokens", "12",
        "--json", VEIL_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert "Paris" in answer["text"]
    assert answer["security_bits"] > 128
    assert server.end() == 0
    assert server.lines[-1] == "modules []\n"


def test_logs_hold_no_payload_and_no_names(llama: Any, serve: Any, generated: Any, caplog: Any) -> None:
    from veil.server.logs import LOGGER, JsonLines

    caplog.set_level("INFO", logger=LOGGER.name)
    with serve(llama) as server:
        remote = llama.connect(server.port)
        session = remote.sides.remote.pool.session
        generated(remote)
        remote.close()
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert session not in json.dumps(lines)
    allowed = {
        "time", "level", "event", "session", "bundle", "owner", "batches", "segments", "bytes", "seconds", "rows",
        "host", "port", "tls", "grace_s", "method", "error", "peer",
    }  # fmt: skip
    assert set().union(*lines) <= allowed
    assert all(not isinstance(value, str) or len(value) <= 40 for line in lines for value in line.values())


def test_a_graceful_stop_finishes_what_runs(llama: Any, serve: Any, generated: Any, expected: list[int]) -> None:
    with serve(llama) as server:
        remote = llama.connect(server.port)
        stopping: list[threading.Thread] = []
        calls, original = [0], remote.sides.remote.transport.evaluate

        def evaluate(*arguments: Any) -> bytes:
            calls[0] += 1
            if calls[0] == 3:
                stopping.append(threading.Thread(target=server.stop, args=(30.0,)))
                stopping[0].start()
            reply: bytes = original(*arguments)
            return reply

        first = remote.sides.remote
        first.reserve(body=20, full=20)
        remote.sides.remote.transport.evaluate = evaluate
        assert generated(remote) == expected, "rows and the stream were there before the stop"
        remote.close()
        stopping[0].join(10)
        assert not stopping[0].is_alive()
