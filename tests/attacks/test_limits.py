"""What a server or a half could make endless: batches told of twice, files, rows that do not last, dumps of a client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veil import Terms
from veil.client import remote as transports
from veil.client.connection import Address
from veil.client.session import OfflineRows
from veil.commands import pull
from veil.errors import BundleError, IncompatibleServer
from veil.server.offer import Offer
from veil.server.store import Limits, Session, SessionStore
from veil.wire.methods import FILE_CHUNK
from waiting import until

SOURCE = Path(__file__).parents[2] / "src"
WEAK = Terms(no_cryptography=True)


# A batch given back twice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [True, False])
def test_a_batch_that_is_given_back_twice_is_given_back(
    rule: bool, llama: Any, serve: Any, generated: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rule:

        def release(self: SessionStore, session: Session, batches: Any) -> None:
            with self._lock:
                self._drop(session, [number for number in batches if number in session.batches])

        monkeypatch.setattr(SessionStore, "release", release)
    with serve(llama) as server:
        remote = llama.connect(server.port)
        session, transport = remote.sides.remote.pool.session, remote.sides.remote.transport
        held = server.store.find(session).batches
        until(lambda: held)
        number = min(held)
        transport.release(session, [number, number, 10**9])
        assert generated(remote) == expected
        assert number not in held
        broken = remote.stats.reconnects
        remote.close()
    assert (broken == 0) is rule


# Files ----------------------------------------------------------------------------------------------------------------


def announce(server: Any, path: str, size: int) -> None:
    for file in server.service.described.bundles[0].files:
        if file.path == path:
            file.size = size


def fetch(server: Any) -> Path:
    return pull.cached(Address(target=f"127.0.0.1:{server.port}"), terms=WEAK, name=None)


@pytest.mark.parametrize(
    ("path", "size", "words"),
    [
        ("tokenizer/tokenizer.json", (64 << 20) + 1, "67,108,864 of such a file"),
        ("bundle.json", 1 << 62, "of such a file"),
        ("tensors.safetensors", (16 << 30) + 1, "copy it by other means"),
        ("tensors.safetensors", 1 << 63, "copy it by other means"),
    ],
)
def test_files_that_are_too_large_are_refused_before_anything_is_fetched(
    path: str, size: int, words: str, llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Any] = []
    monkeypatch.setattr(pull, "fetch_file", lambda *arguments, **_: fetched.append(arguments))
    with serve(llama, offer=True) as server:
        announce(server, path, size)
        with pytest.raises(BundleError, match=words):
            fetch(server)
    assert not fetched


def test_a_half_that_the_disk_has_no_room_for_is_refused(llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "ROOM_LEFT_BYTES", 1 << 62)
    with serve(llama, offer=True) as server, pytest.raises(BundleError, match=r"has room for 0; make room"):
        fetch(server)


def test_without_the_rule_a_file_fills_the_disk(
    llama: Any, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the attacker likes; here a little further than a vocabulary may be."""
    pieces = (pull.MOST_BYTES_OF_TEXT + (1 << 20)) // FILE_CHUNK
    written: list[int] = []
    read = Offer.read

    def endless(self: Offer, path: str) -> Iterator[bytes]:
        if path != "config.json":
            yield from read(self, path)
            return
        for _ in range(pieces):
            yield bytes(FILE_CHUNK)
        written.append(sum(file.stat().st_size for file in tmp_path.rglob("config.json.partial")))

    monkeypatch.setattr(Offer, "read", endless)
    with serve(llama, offer=True) as server:
        announce(server, "config.json", pieces * FILE_CHUNK)
        with pytest.raises(BundleError, match="of such a file"):
            fetch(server)
        assert not written
        monkeypatch.setattr(pull, "check_sizes", lambda *_: None)
        with pytest.raises(BundleError, match="does not match its digest"):
            fetch(server)
    assert written and written[0] > pull.MOST_BYTES_OF_TEXT // 2
    assert not list(tmp_path.rglob("*.partial"))


# Rows that do not last -----------------------------------------------------------------------------------------------


def test_a_server_that_forgets_rows_at_once_is_refused(llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(llama, limits=Limits(batch_ttl_s=0.0)) as server:
        with pytest.raises(IncompatibleServer, match="forgets rows after 0 s: a client would make them for ever"):
            llama.connect(server.port)
        monkeypatch.setattr(transports, "SHORTEST_TTL_S", 0)
        remote = llama.connect(server.port, offline_rows=OfflineRows(tokens=4, prompt_rows=4))
        until(lambda: remote.stats.rows_made > 40)  # eight are asked for
        remote.close()
    with serve(llama, limits=Limits(batch_ttl_s=60.0)) as server:
        llama.connect(server.port).close()


# Dumps ----------------------------------------------------------------------------------------------------------------

DUMPS = """
import ctypes, json, resource, sys
import veil.process
keep, most, rule = veil.process.keep_out_of_dumps, resource.getrlimit(resource.RLIMIT_CORE)[1], ""
veil.process.keep_out_of_dumps = lambda: keep() if rule == "with" else None
from veil.cli import main
def prctl(option, value):
    return ctypes.CDLL(None).prctl(option, value, 0, 0, 0) if sys.platform == "linux" else 0
found, commands = {}, json.loads(sys.argv[1])
for rule in ("with", "without"):
    for name, *options in commands:
        prctl(4, 1)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))
        sys.argv[1:] = [name, *options]
        try:
            main()
        except SystemExit as ended:
            assert not ended.code, ended
        found[f"{name} {rule}"] = [prctl(3, 0), resource.getrlimit(resource.RLIMIT_CORE)[0]]
print(json.dumps(found), file=sys.stderr)
"""
"""One process, as any is before each command: what it loads is most of the time."""


@pytest.mark.skipif(os.name != "posix", reason="no limits of that kind")
def test_a_client_is_not_in_dumps(llama: Any) -> None:
    options = ["--bundle", str(llama.path), "--allow-no-cryptography", "--max-new-tokens", "1"]
    commands = [["generate", "w1", *options], ["chat", *options]]
    program = [sys.executable, "-c", DUMPS, json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    result = subprocess.run(program, env=environment, input="", capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    found: dict[str, list[int]] = json.loads(result.stderr.splitlines()[-1])
    for name in ("generate", "chat"):
        assert found[f"{name} with"] == [0, 0]
        if sys.platform == "linux":
            assert found[f"{name} without"][0] == 1
