"""Servers that were met, and servers that were caught: files that are believed whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from veil.client.caught import CaughtServers
from veil.client.known import KnownServers
from veil.errors import BundleError, WrongAnswer

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


@pytest.fixture
def known(tmp_path: Path) -> KnownServers:
    return KnownServers(tmp_path / "known_servers")


def test_a_new_server_is_taken_at_its_word_once(known: KnownServers) -> None:
    assert not known.check("Host:1", ONE, "llama", None)
    known.remember("Host:1", [(ONE, "llama"), (TWO, "gpt2")])
    assert known.check("host:1", ONE, "llama", None) and known.check("HOST:1", TWO, "gpt2", None)
    assert not known.check("host:2", THREE, "llama", None), "another server is another"
    with pytest.raises(BundleError, match=rf"had the client half {ONE} \(llama\) and now offers {THREE}"):
        known.check("host:1", THREE, "llama", None)
    with pytest.raises(BundleError, match=f"{THREE}"):
        known.check("host:1", THREE, "llama", TWO)
    assert not known.check("host:1", THREE, "llama", THREE), "the user says that it is right"


def test_a_half_that_replaces_another_forgets_it(known: KnownServers) -> None:
    known.remember("a:1", [(ONE, "llama")])
    known.remember("b:1", [(ONE, "llama")])
    known.remember("a:1", [(TWO, "llama"), (THREE, "two  words\n")])
    assert known.digests("a:1") == {TWO: "llama", THREE: "two words"}
    assert known.digests("b:1") == {ONE: "llama"}


def test_one_server_cannot_fill_the_file(known: KnownServers) -> None:
    known.remember("a:1", [(f"{number:064x}", str(number)) for number in range(1000)])
    assert len(known.digests("a:1")) == 64


@pytest.mark.parametrize("line", ["a:1", f"a:1 {ONE[:-1]} llama", f"a:1 {ONE.replace('1', 'A')} llama", f" {ONE} llama"])
def test_a_damaged_file_is_not_guessed(line: str, tmp_path: Path) -> None:
    (tmp_path / "known").write_text(f"b:1 {TWO} gpt2\n{line}\n")
    with pytest.raises(BundleError, match=r"line 2 of .* is not a server, a digest and a name"):
        KnownServers(tmp_path / "known").check("b:1", TWO, "gpt2", None)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "known").mkdir()
    with pytest.raises(BundleError, match="cannot be read"):
        KnownServers(tmp_path / "known").check("a:1", ONE, "llama", None)
    with pytest.raises(BundleError, match="cannot be read"):
        CaughtServers(tmp_path / "known").check("a:1")


def test_a_caught_server_is_not_asked_until_it_is_forgiven(tmp_path: Path) -> None:
    caught = CaughtServers(tmp_path / "caught")
    caught.check("Host:1")
    caught.add("Host:1")
    caught.add("other:1")
    with pytest.raises(WrongAnswer, match=r"gave wrong answers on \d{4}-\d\d-\d\d .* veil check --forgive HOST:1"):
        CaughtServers(tmp_path / "caught").check("HOST:1")
    assert caught.forgive("host:1") and not caught.forgive("host:1")
    caught.check("host:1")
    with pytest.raises(WrongAnswer):
        caught.check("other:1")
    (tmp_path / "caught").write_text("other:1\n")
    with pytest.raises(BundleError, match=r"line 1 of .* is not a server and a day"):
        caught.check("host:1")
