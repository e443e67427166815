"""Round trips over a real server: two a block and two more, draft tokens, and what a link is measured to cost."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from veil import HybridFHEModel
from veil.bundle.terms import Terms
from veil.cli import app
from veil.client.connection import Address, Connection
from veil.client.link import measure_link
from veil.client.remote import RemoteTransport
from veil.commands.choice import ModelChoice
from veil.commands.model_choice import opened
from veil.errors import BundleError
from veil.network.timeouts import Timeouts
from veil.params import Params
from veil.runtime.modules import select_modules

WEAK = Terms(no_cryptography=True)

BLOCKS = 2


@pytest.fixture(scope="module")
def fused(bundle: Any, new_model: Callable[[str], Any], tiny_tokenizer: Any, tmp_path_factory: Any) -> Any:
    """The tiny Llama with fused norms, as a bundle beside the plain one of `bundle`."""
    model = new_model("llama")
    hybrid = HybridFHEModel(model, select_modules(model, "linear"))
    sample = torch.arange(1, 60).unsqueeze(0)
    hybrid.compile_model(sample, params=Params.insecure_tiny(signal_db=70.0), device="cpu", fuse_norms="on")
    path: Path = tmp_path_factory.mktemp("bundles") / "fused"
    hybrid.save(path, tokenizer=tiny_tokenizer)
    hybrid.set_fhe_mode("execute")
    return type(bundle("llama"))("fused", path, hybrid, hybrid.sides.engine)


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The group of every round trip of rows, in order."""
    seen: list[int] = []
    original = RemoteTransport.evaluate

    def evaluate(self: Any, session: str, group: int, spans: Any, data: Any, slots: int) -> Any:
        seen.append(group)
        return original(self, session, group, spans, data, slots)

    monkeypatch.setattr(RemoteTransport, "evaluate", evaluate)
    return seen


def test_two_trips_a_block_and_two_more(fused: Any, serve: Any, generated: Any, trips: list[int]) -> None:
    with serve(fused) as server:
        remote = fused.connect(server.port)
        assert generated(remote) == generated(fused.local)
        assert trips == list(range(2 * BLOCKS + 2)) * 6
        assert remote.stats.trips == len(trips)
        remote.close()


def test_draft_tokens_share_their_trips(fused: Any, serve: Any, generated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.runtime.pace.Pace.draft_tokens", lambda self, ready, prepare_s: 3)
    with serve(fused) as server:
        remote = fused.connect(server.port)
        expected = generated(remote, 12)
        remote.stats.reset()
        with remote.speculate() as options:
            assert generated(remote, 12, **options) == expected
        stats = remote.stats
        assert stats.trips == (12 - stats.accepted) * (2 * BLOCKS + 2)
        assert stats.drafted > stats.accepted > 0
        remote.close()


def test_the_link_is_measured(llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a link of 30 ms and 1 MB/s, of which the clock alone knows."""
    now = [0.0]
    unary = Connection.unary

    def call(self: Connection, name: str, *args: Any) -> Any:
        reply = unary(self, name, *args) if name != "Close" else None
        now[0] += 0.03 + (reply.ByteSize() / 1e6 if reply is not None else 0.0)
        return reply

    with serve(llama) as server:
        address, timeouts = Address(target=f"127.0.0.1:{server.port}"), Timeouts()
        near = measure_link(address, timeouts)
        monkeypatch.setattr(Connection, "unary", call)
        far = measure_link(address, timeouts, lambda: now[0])
    assert near.rtt_s > 0
    assert far.rtt_s == pytest.approx(0.03), "as the call says: connecting took no time, so a relay stands between"
    assert far.bytes_per_s == pytest.approx(1e6)
    assert far.transfer_s(far.bytes_per_s) == pytest.approx(1.0)


def test_a_trip_is_without_the_time_of_a_call(llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from veil.client import link

    now, connect = [0.0], socket.socket.connect
    unary = Connection.unary

    def call(self: Connection, *args: Any) -> Any:
        now[0] += 5.0
        return unary(self, *args)

    def connected(self: socket.socket, *args: Any) -> None:
        now[0] += 4.5
        connect(self, *args)

    monkeypatch.setattr(Connection, "unary", call)
    monkeypatch.setattr(socket.socket, "connect", connected)
    with serve(llama) as server:
        address, timeouts = Address(target=f"localhost:{server.port}"), Timeouts()
        assert measure_link(address, timeouts, lambda: now[0]).rtt_s == 5.0, "a relay: what connected is not what answers"
        monkeypatch.setattr(link, "OF_GRPC_S", 10.0)
        assert measure_link(address, timeouts, lambda: now[0]).rtt_s == 4.5
        monkeypatch.setattr(socket, "create_connection", refuse)
        assert measure_link(address, timeouts, lambda: now[0]).rtt_s == 5.0


def refuse(*_: Any) -> None:
    raise ConnectionRefusedError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path))
    return tmp_path / "bundles"


@pytest.mark.parametrize(("choice", "rtt_s", "groups"), [("on", 0, 6), ("off", 9, 9), ("auto", 0.02, 6), ("auto", 0.0, 9)])
def test_the_bundle_that_suits_the_distance_is_fetched(
    choice: str, rtt_s: float, groups: int, fused: Any, llama: Any, serve: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from veil.commands.pull import cached
    from veil.network.link import Link

    monkeypatch.setattr("veil.commands.pull.measure_link", lambda address, timeouts: Link(rtt_s=rtt_s, bytes_per_s=1e9))
    with serve(llama, fused, offer=True) as server:
        address = Address(target=f"127.0.0.1:{server.port}")
        path = cached(address, terms=WEAK, name=None, fuse_norms=choice)
        assert len(json.loads((path / "bundle.json").read_text())["manifest"]) == groups


@pytest.mark.parametrize(("choice", "name"), [("on", "fused"), ("off", "llama")])
def test_gateway_and_chat_fetch_what_was_chosen(
    choice: str, name: str, fused: Any, llama: Any, serve: Any, cache: Path
) -> None:
    with serve(llama, fused, offer=True) as server:
        address = Address(target=f"127.0.0.1:{server.port}")
        with opened(ModelChoice(server=address, fuse_norms=choice, terms=WEAK)) as served:
            assert (served.name, served.hybrid.is_fused) == (name, choice == "on")


@pytest.mark.parametrize("command", [("generate", "w3"), ("chat",), ("gateway",)])
def test_fusing_is_chosen_where_a_half_is_fetched(command: tuple[str, ...], llama: Any) -> None:
    for options in ((), ("--bundle", str(llama.path)), ("--bundle", str(llama.path), "--server", "127.0.0.1:1")):
        found = CliRunner().invoke(app, [*command, *options, "--fuse-norms", "on"])
        assert found.exit_code == 2
        assert "'veil compile'" in found.stderr


def test_a_choice_that_is_not_offered_is_an_error(llama: Any, serve: Any, cache: Path) -> None:
    from veil.commands.pull import cached

    with serve(llama, offer=True) as server, pytest.raises(BundleError, match="no client half with fused norms"):
        cached(Address(target=f"127.0.0.1:{server.port}"), terms=WEAK, name=None, fuse_norms="on")


def test_generate_says_what_a_token_cost(fused: Any, serve: Any) -> None:
    arguments = ["generate", "w3 w4 w5 w3 w4 w5 w3 w4", "--raw", "--max-new-tokens", "6", "--bundle", str(fused.path)]
    with serve(fused) as server:
        arguments += ["--server", f"127.0.0.1:{server.port}", "--speculate", "lookup", "--allow-no-cryptography"]
        found = CliRunner().invoke(app, [*arguments, "--json"])
        assert found.exit_code == 0, found.output
        result = json.loads(found.stdout)
        shown = CliRunner().invoke(app, arguments)
    remote, draft_tokens = result["remote"], result["draft_tokens"]
    assert 0 < result["trips_per_token"] <= 2 * BLOCKS + 2
    assert remote["rtt_s"] > 0
    assert remote["trips_s"] == pytest.approx(result["trips_per_token"] * remote["rtt_s"], rel=0.01)
    assert draft_tokens["rows_for_nothing"] == draft_tokens["drafted"] - draft_tokens["accepted"]
    assert draft_tokens["passes"] + draft_tokens["accepted"] >= result["new_tokens"]
    assert "trips" in shown.stderr
    assert "Mbit/s" in shown.stderr
    assert "tokens a pass" in shown.stderr


def test_rows_are_announced_after_the_link_was_measured_and_all_are_counted(
    llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from veil.network.link import Link

    order: list[str] = []
    expect = HybridFHEModel.expect

    def measure(address: Any, timeouts: Any) -> Link:
        order.append("measured")
        return Link(rtt_s=0.001, bytes_per_s=1e9)

    def announce(hybrid: HybridFHEModel, *args: Any, **options: Any) -> None:
        order.append("announced")
        expect(hybrid, *args, **options)

    monkeypatch.setattr("veil.client.link.measure_link", measure)
    monkeypatch.setattr(HybridFHEModel, "expect", announce)
    with serve(llama) as server:
        options = [
            "--bundle",
            str(llama.path),
            "--server",
            f"127.0.0.1:{server.port}",
            "--max-new-tokens",
            "4",
            "--json",
            "--allow-no-cryptography",
        ]
        found = CliRunner().invoke(app, ["generate", "w3 w4 w5", *options])
    assert found.exit_code == 0, found.output
    assert order == ["measured", "announced"], "counters begin between the two"
    params = llama.engine.model.params
    offline_rows = (params.batch_bytes + 5) / params.T
    assert json.loads(found.stdout)["bytes_per_token"]["up_offline"] == pytest.approx(offline_rows, rel=0.02)


def test_speculation_needs_remote_layers(llama_folder: Path) -> None:
    arguments = ["generate", "w3 w4", "--model", str(llama_folder), "--mode", "torch", "--speculate", "lookup"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert "needs remote layers" in found.stderr
