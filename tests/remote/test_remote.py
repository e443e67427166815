"""A model whose remote layers run behind a real server: the same tokens, and clear errors."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from veil import HybridFHEModel
from veil.bundle.terms import Terms
from veil.client.session import OfflineRows
from veil.errors import AccessDenied, BundleError, IncompatibleServer, NotCompiled, QuotaExceeded, ServerUnreachable
from veil.network.timeouts import Timeouts
from veil.network.tokens import Tokens, digest_of
from veil.server.offer import Offer
from veil.server.store import Limits
from veil.wire import methods
from waiting import until

WEAK = Terms(no_cryptography=True)

BRIEF = Timeouts(connect_s=0.5, reply_s=1.0, retry_s=0.5, pause_s=0.02)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_remote_output_equals_in_process_output(name: str, bundle: Any, serve: Any, generated: Any) -> None:
    model = bundle(name)
    with serve(model) as server:
        remote = model.connect(server.port)
        assert generated(remote) == generated(model.local)
        torch.manual_seed(7)
        sampled = generated(remote, do_sample=True, temperature=1.5)
        torch.manual_seed(7)
        assert sampled == generated(model.local, do_sample=True, temperature=1.5)
        remote.close()
        assert server.store.count == 0


def test_several_bundles_are_served_by_name(bundle: Any, serve: Any, generated: Any) -> None:
    llama, gpt2 = bundle("llama"), bundle("gpt2")
    with serve(llama, gpt2) as server:
        for model in (llama, gpt2):
            named, found = model.connect(server.port, name=model.name), model.connect(server.port)
            assert generated(named) == generated(found) == generated(model.local)
            named.close()
            found.close()
        with pytest.raises(BundleError, match="no bundle named 'other'; it serves 'llama', 'gpt2'"):
            llama.connect(server.port, name="other")
        with pytest.raises(BundleError, match="veil pull"):
            llama.connect(server.port, name="gpt2")


def test_a_server_without_the_other_half_says_so(bundle: Any, serve: Any) -> None:
    with serve(bundle("gpt2")) as server, pytest.raises(BundleError, match="none of the server's bundles"):
        bundle("llama").connect(server.port)


def test_prompt_rows_do_not_prepare_the_head(llama: Any, serve: Any, generated: Any) -> None:
    with serve(llama) as server:
        remote = llama.connect(server.port, offline_rows=OfflineRows(tokens=0, prompt_rows=0))
        body: list[int] = []
        transport = remote.sides.remote.transport
        original = transport.prepare

        def prepare(session: str, uploads: Any, segments: tuple[str, ...]) -> Any:
            body.extend(upload.number for upload in uploads if "head" not in segments)
            return original(session, uploads, segments)

        transport.prepare = prepare
        generated(remote, 1)
        assert len(body) == 1, "a batch of eight rows"
        remote.close()


def test_a_warm_pool_has_every_row_ready(llama: Any, serve: Any, generated: Any, expected: list[int]) -> None:
    with serve(llama) as server:
        remote = llama.connect(server.port, offline_rows=OfflineRows(tokens=12, prompt_rows=12))
        background = remote.sides.remote.background
        until(lambda: background.full)
        assert generated(remote) == expected
        assert remote.stats.rows_ready == remote.stats.rows == 9 + len(expected) - 1
        assert remote.stats.seconds["wait"] == 0.0
        remote.close()


def test_the_pool_respects_its_memory_limit(llama: Any, serve: Any) -> None:
    with serve(llama) as server:
        remote = llama.connect(server.port, offline_rows=OfflineRows(tokens=1 << 20, prompt_rows=1 << 20, memory_mib=1))
        session = remote.sides.remote
        until(lambda: session.background.full)
        batches = (session.ready.tokens + session.ready.prompt_rows) // session.model.params.T
        assert 1 << 19 < batches * session.maker.batches.batch_bytes <= 1 << 20
        remote.close()


def test_four_clients_at_once_each_get_their_own_answer(llama: Any, serve: Any, generated: Any) -> None:
    answers: dict[int, tuple[list[int], list[int]]] = {}

    alone = {number: generated(llama.local, suppress_tokens=[27 + number]) for number in range(4)}
    lock = threading.Lock()

    def run(number: int, port: int) -> None:
        remote = llama.connect(port)
        result = generated(remote, suppress_tokens=[27 + number])
        with lock:
            answers[number] = (result, alone[number])
        remote.close()

    with serve(llama) as server:
        threads = [threading.Thread(target=run, args=(number, server.port)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(answers) == 4
    assert all(result == wanted for result, wanted in answers.values())


# Errors that say what to do ------------------------------------------------------------------------------------------------


def test_nobody_listens(llama: Any, refusing_port: int) -> None:
    start = time.monotonic()
    with pytest.raises(ServerUnreachable, match=rf"127.0.0.1:{refusing_port}.*is 'veil serve' running"):
        llama.connect(refusing_port, timeouts=BRIEF)
    assert time.monotonic() - start < 60


def test_a_token_is_asked_for_and_checked(llama: Any, serve: Any, generated: Any, expected: list[int]) -> None:
    with serve(llama, tokens=Tokens([digest_of("right"), digest_of("other")])) as server:
        with pytest.raises(AccessDenied, match="VEIL_TOKEN"):
            llama.connect(server.port)
        with pytest.raises(AccessDenied, match="does not accept"):
            llama.connect(server.port, token="wrong")
        remote = llama.connect(server.port, token="right")
        assert generated(remote) == expected
        remote.close()


def test_the_session_quota_is_reported(llama: Any, serve: Any) -> None:
    limits = Limits(max_sessions=1)
    with serve(llama, limits=limits) as server:
        first = llama.connect(server.port)
        with pytest.raises(QuotaExceeded, match="the server has its most sessions"):
            llama.connect(server.port)
        first.close()
        llama.connect(server.port).close()


def test_a_prompt_beyond_the_batch_quota_is_refused(llama: Any, serve: Any, generated: Any) -> None:
    with serve(llama, limits=Limits(max_batches_per_session=1)) as server:
        remote = llama.connect(server.port, offline_rows=OfflineRows(tokens=1, prompt_rows=0))
        with pytest.raises(QuotaExceeded, match="shorter prompt"):
            generated(remote)
        remote.close()


def test_a_server_without_memory_for_batches_says_so(llama: Any, serve: Any, generated: Any) -> None:
    with serve(llama, limits=Limits(memory_bytes=20_000)) as server:
        remote = llama.connect(server.port)
        with pytest.raises(QuotaExceeded, match="memory for them"):
            generated(remote)
        remote.close()


def test_another_protocol_version_is_named(
    llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch, describe_as: Callable[[Any, int], None]
) -> None:
    with serve(llama) as server:
        describe_as(server, 9)
        with pytest.raises(IncompatibleServer, match="the server speaks protocol 9"):
            llama.connect(server.port)


def test_a_grpc_server_of_another_kind_is_recognised(llama: Any, other_grpc_server: int) -> None:
    with pytest.raises(IncompatibleServer, match="not a veil server"):
        llama.connect(other_grpc_server, timeouts=BRIEF)


def test_a_token_does_not_travel_in_clear(llama: Any) -> None:
    with pytest.raises(ValueError, match="there is no TLS"):
        llama.connect("192.0.2.1:1", token="secret")
    with pytest.raises(ValueError, match="HOST:PORT"):
        llama.connect("host:port:what")


def test_mode_remote_needs_connect(llama: Any) -> None:
    with pytest.raises(NotCompiled, match="connect"):
        llama.local.set_fhe_mode("remote")


def test_tls_with_a_private_authority(
    llama: Any, serve: Any, generated: Any, expected: list[int], certificate: tuple[Path, Path]
) -> None:
    tokens = Tokens([digest_of("right")])
    with serve(llama, tls=certificate, tokens=tokens) as server:
        remote = llama.connect(f"localhost:{server.port}", token="right", tls=certificate[0])
        assert generated(remote) == expected
        remote.close()
        with pytest.raises(ServerUnreachable, match="TLS"):
            llama.connect(f"localhost:{server.port}", timeouts=BRIEF)
        with pytest.raises(ServerUnreachable, match="TLS"):
            llama.connect(f"localhost:{server.port}", tls=True, timeouts=BRIEF)


def test_the_largest_message_follows_from_the_bundles(llama: Any) -> None:
    model = llama.engine.model
    assert methods.largest_message([(model.params, model.manifest)]) < 8 << 20


def test_an_announced_generation_finds_every_row_ready(llama: Any, serve: Any, generated: Any, expected: list[int]) -> None:
    with serve(llama) as server:
        remote = llama.connect(server.port, offline_rows=OfflineRows(tokens=0, prompt_rows=0))
        assert (remote.rows_ready.prompt_rows, remote.rows_ready.tokens) == (0, 0)
        remote.expect(prompt_rows=9, new_tokens=len(expected))
        until(lambda: (remote.rows_ready.prompt_rows, remote.rows_ready.tokens) == (8, 8))
        assert generated(remote) == expected
        assert remote.stats.rows_ready == remote.stats.rows
        assert remote.stats.rows_made == 16, "none was made that nobody asked for"
        with pytest.raises(ValueError, match="expected 0 or more"):
            remote.expect(prompt_rows=-1, new_tokens=0)
        remote.close()


def test_a_half_without_its_tables_fetches_them_once(llama: Any, serve: Any, generated: Any, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(llama.path / "client", half)
    tables = (half / "tables.safetensors").read_bytes()
    (half / "tables.safetensors").unlink()
    with serve(llama) as server, pytest.raises(BundleError, match="the server does not offer it; pull the whole"):
        HybridFHEModel.connect(f"127.0.0.1:{server.port}", half, terms=WEAK)
    with serve(llama, offer=True) as server:
        remote = HybridFHEModel.connect(f"127.0.0.1:{server.port}", half, terms=WEAK)
        assert generated(remote) == generated(llama.local)
        remote.close()
    assert (half / "tables.safetensors").read_bytes() == tables
    assert not list(half.glob("*.partial"))


def test_tables_that_are_not_the_ones_of_the_header_are_not_kept(
    llama: Any, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half"
    shutil.copytree(llama.path / "client", half)
    (half / "tables.safetensors").unlink()
    monkeypatch.setattr(Offer, "read", lambda self, path: iter([bytes(100)]))
    with serve(llama, offer=True) as server, pytest.raises(ServerUnreachable, match="ended after 100"):
        HybridFHEModel.connect(f"127.0.0.1:{server.port}", half, terms=WEAK)
    size = (llama.path / "client" / "tables.safetensors").stat().st_size
    monkeypatch.setattr(Offer, "read", lambda self, path: iter([bytes(size)]))
    with serve(llama, offer=True) as server, pytest.raises(BundleError, match="does not match its digest"):
        HybridFHEModel.connect(f"127.0.0.1:{server.port}", half, terms=WEAK)
    monkeypatch.setattr(Offer, "read", lambda self, path: iter([bytes(1 << 20)] * 64))
    with serve(llama, offer=True) as server, pytest.raises(BundleError, match="longer than"):
        HybridFHEModel.connect(f"127.0.0.1:{server.port}", half, terms=WEAK)
    assert not [path for path in half.iterdir() if "tables" in path.name]
