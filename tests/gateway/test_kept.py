"""States on disk: found again after a restart, under their key only, bounded in size and time."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from typer.testing import CliRunner

from veil.commands.gateway import Keep, states_of
from veil.gateway.kept import KeptStates, key_from

KEY = bytes(range(32))
BODY = {"model": "tiny", "max_tokens": 2, "temperature": 0}
DOCUMENT = " ".join(f"w{index % 50}" for index in range(60))


def state(length: int) -> DynamicCache:
    made = DynamicCache()
    for layer in range(2):
        made.update(torch.randn(1, 2, length, 4), torch.randn(1, 2, length, 4), layer)
    return made


def opened(folder: Path, key: bytes = KEY, model: str = "m", **options: Any) -> KeptStates:
    return KeptStates(folder, key, model, **{"most_bytes": 1 << 20, "days": 7.0} | options)


def test_a_state_is_found_again_by_who_may(tmp_path: Path) -> None:
    ids, original = list(range(50)), state(49)
    first = opened(tmp_path)
    first.keep(ids, original, "anna")
    first.keep(ids[:20], state(20), "anna")
    first.close()
    (file,) = tmp_path.glob("*.kv")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = opened(tmp_path)
    found = again.best([*ids[:40], 99, 98], "anna", 0)
    assert found is not None and found[0] == 40
    assert torch.equal(found[1].layers[1].values, original.layers[1].values[:, :, :40])
    assert again.best(ids[:40], "anna", 0) is not None and again.best(ids[:40], "anna", 39) is None
    assert again.best(ids, "bert", 0) is None, "another key's"
    assert again.best([5, *ids], "anna", 0) is None
    assert opened(tmp_path, model="other").best(ids, "anna", 0) is None
    assert opened(tmp_path, key=bytes(32)).best(ids, "anna", 0) is None
    again.close()


def test_nothing_can_be_read_or_changed_without_the_key(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    kept.keep([77] * 50, state(50), "anna-the-owner")
    kept.close()
    (file,) = tmp_path.glob("*.kv")
    data = file.read_bytes()
    assert b"anna" not in data and b"77, 77" not in data and b'"k0"' not in data
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    changed = opened(tmp_path)
    assert changed.best([77] * 60, "anna-the-owner", 0) is None and changed.best([77] * 60, "anna-the-owner", 0) is None
    file.write_bytes(data)
    file.rename(tmp_path / f"{'0' * 32}.kv")
    assert opened(tmp_path).best([77] * 60, "anna-the-owner", 0) is None, "a file under another name"


def test_size_and_time_are_bounded_and_longer_ones_replace(tmp_path: Path) -> None:
    now = [1e9]
    kept = opened(tmp_path, most_bytes=30_000, clock=lambda: now[0])

    def keep(ids: list[int]) -> None:
        kept.keep(ids, state(len(ids)), "")
        kept._writer.submit(lambda: None).result()
        now[0] += 60

    keep(list(range(40)))
    keep(list(range(60)))
    assert len(list(tmp_path.glob("*.kv"))) == 1, "the longer one has the shorter in it"
    keep(list(range(50)))
    assert len(list(tmp_path.glob("*.kv"))) == 1
    for start in range(1, 6):
        keep(list(range(start * 100, start * 100 + 60)))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.kv")) <= 30_000
    assert kept.best(list(range(500, 570)), "", 0) is not None and kept.best(list(range(60)), "", 0) is None
    now[0] += 8 * 86400
    assert kept.best(list(range(500, 570)), "", 0) is None
    kept.close()
    opened(tmp_path, clock=lambda: now[0]).close()
    assert list(tmp_path.glob("*.kv")) == []


def test_a_documents_rows_go_up_once_though_the_gateway_is_restarted(served: Any, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from veil.gateway.app import build_app

    rows = []
    try:
        for question in ("w51", "w52", "w53"):
            served.kept = opened(tmp_path)
            http = TestClient(build_app(served), base_url="http://127.0.0.1")  # a gateway that has just begun
            messages = [{"role": "user", "content": f"{DOCUMENT} {question}"}]
            used = http.post("/v1/chat/completions", json=BODY | {"messages": messages}).json()["usage"]
            rows.append(used["veil"]["rows"])
            served.kept.close()
    finally:
        served.kept = None
    assert rows[0] > 60 and max(rows[1:]) < 8, rows


def test_states_are_of_one_compiled_model(served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path))
    kept = states_of(served, Keep(most_bytes=1 << 20, days=1.0), KEY)
    kept.keep(list(range(50)), state(49), "anna")
    kept.close()
    again = states_of(served, Keep(most_bytes=1 << 20, days=1.0), KEY)
    assert again.best([*range(40), 99], "anna", 0) is not None
    again.close()
    assert len(served.hybrid.fingerprint) == 64
    assert opened(tmp_path / "states", model="another").best([*range(40), 99], "anna", 0) is None


class Keyring:
    """A system's keyring."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service_name: str, username: str) -> str | None:
        return self.held.get((service_name, username))

    def set_password(self, service_name: str, username: str, password: str) -> None:
        self.held[service_name, username] = password


def test_keys(tmp_path: Path) -> None:
    assert key_from("words", tmp_path) == key_from("words", tmp_path) != key_from("other", tmp_path)
    assert key_from("words", tmp_path / "elsewhere") != key_from("words", tmp_path), "the salt is its own"
    keyring = Keyring()
    assert key_from(None, tmp_path, keyring) == key_from(None, tmp_path, keyring) != key_from(None, tmp_path, Keyring())

    class Broken(Keyring):
        def get_password(self, service_name: str, username: str) -> str:
            raise RuntimeError("locked")

    with pytest.raises(ValueError, match="VEIL_CACHE_PASSPHRASE"):
        key_from(None, tmp_path, Broken())


def test_the_command_lists_and_clears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from veil.cli import app

    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path))
    assert "0 states" in CliRunner().invoke(app, ["cache"]).stdout
    kept = opened(tmp_path / "states")
    kept.keep(list(range(50)), state(50), "")
    kept.close()
    assert "1 states" in CliRunner().invoke(app, ["cache"]).stdout
    assert "removed 1 states" in CliRunner().invoke(app, ["cache", "--clear"]).stdout
    assert list((tmp_path / "states").glob("*.kv")) == []
