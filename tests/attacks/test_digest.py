"""A half that is replaced by another: one digest over every file is the cache's key, announced, pinned and remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote.commands import veil
from veil import Terms
from veil.bundle import header_file
from veil.client import remote as transports
from veil.client.connection import Address
from veil.client.known import KnownServers
from veil.commands import pull
from veil.errors import BundleError
from veil.kernels.backend import kernels_for
from veil.server.hosted import build_bundles

WEAK = Terms(no_cryptography=True)
EVIL = (
    "{% for m in messages %}{{ '<user> ' * (1 + 'w1 w2 w3'.find(m['content'][:2]) ) }}{{ m['content'] }}{% endfor %}<reply>"
)
"""Writes the prompt's first word into the number of rows."""


def evil_template(half: Path) -> None:
    """Another chat template, and nothing else."""
    for file in (half / "tokenizer").rglob("*"):
        if file.name == "chat_template.jinja":
            file.write_text(EVIL)
        elif file.name == "tokenizer_config.json" and "chat_template" in (fields := json.loads(file.read_text())):
            file.write_text(json.dumps(fields | {"chat_template": EVIL}))


FILES: dict[str, Callable[[Path], object]] = {
    "template": evil_template,
    "vocabulary": lambda half: _append(half / "tokenizer" / "tokenizer.json"),
    "generation settings": lambda half: _append(half / "generation_config.json"),
    "configuration": lambda half: _append(half / "config.json"),
    "another file": lambda half: (half / "notes.txt").write_text("x"),
}


def _append(file: Path) -> None:
    file.write_text(file.read_text() + "\n")


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_a_half_is_in_its_digest(name: str, llama: Any, forged: Callable[..., Any]) -> None:
    before, after = (header_file.half_digest(half.path / "client") for half in (llama, forged(llama, FILES[name])))
    assert before != after


def row_counts(half: Path) -> list[int]:
    """Rows of three prompts of equal length, as the server would count them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(half / "tokenizer", local_files_only=True)
    turns = [[{"role": "user", "content": text}] for text in ("w1 w9", "w2 w9", "w3 w9")]
    return [len(tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]) for turn in turns]


def fetch(target: str, **changes: Any) -> Path:
    return pull.cached(Address(target=target), terms=replace(WEAK, **changes), name=None)


def test_a_second_server_does_not_replace_an_honest_servers_half(
    llama: Any, forged: Callable[..., Any], serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = forged(llama, evil_template)
    with serve(bad, offer=True) as evil, serve(llama, offer=True) as honest:
        first, second = fetch(f"127.0.0.1:{evil.port}"), fetch(f"127.0.0.1:{honest.port}")
        assert first != second
        assert len(set(row_counts(first))) == 3 and len(set(row_counts(second))) == 1

        monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "without"))
        monkeypatch.setattr(pull, "folder_name", lambda bundle: bundle.fingerprint)
        monkeypatch.setattr(Terms, "check_digest", lambda *_: None)
        fetch(f"127.0.0.1:{evil.port}")
        assert len(set(row_counts(fetch(f"127.0.0.1:{honest.port}")))) == 3, "without the rule the honest half is replaced"


def test_a_known_server_with_another_half_is_refused_with_both_digests(
    llama: Any, forged: Callable[..., Any], serve: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = forged(llama, evil_template)
    old, new = (header_file.half_digest(half.path / "client") for half in (llama, bad))
    with serve(llama, offer=True) as server:
        target = f"127.0.0.1:{server.port}"
        fetch(target)
        shown = capsys.readouterr().err
        assert f"{target} is remembered with the client half {old}" in shown
        fetch(target)
        assert "remembered" not in capsys.readouterr().err
    with serve(bad, offer=True, port=int(target.rpartition(":")[2])):
        for attempt in (
            fetch,
            lambda where: pull.run(Address(target=where), Path("x"), terms=WEAK, name=None, as_json=False),
        ):
            with pytest.raises(
                BundleError, match=rf"had the client half {old} \(llama\) and now offers {new}.*--digest {new}"
            ):
                attempt(target)
        with pytest.raises(BundleError, match=f"does not offer the client half {old}; it offers {new}"):
            fetch(target, digest=old)
        assert len(set(row_counts(fetch(target, digest=new)))) == 3, "the user asked for it by its digest"
        assert fetch(target).name == new, "and is not asked again"
    with serve(llama, offer=True, port=int(target.rpartition(":")[2])):
        with pytest.raises(BundleError, match=f"had the client half {new}"):
            fetch(target)
        monkeypatch.setattr(KnownServers, "check", lambda *_: True)
        assert fetch(target).name == old, "without the rule nobody is told"


def test_another_name_does_not_make_a_known_server_new(llama: Any, forged: Callable[..., Any], serve: Any) -> None:
    bad = replace(forged(llama, evil_template), name="other")
    with serve(llama, offer=True) as server:
        fetch(f"127.0.0.1:{server.port}")
        port = server.port
    with serve(bad, offer=True, port=port), pytest.raises(BundleError, match=r"\(llama\) and now offers \w+ \(other\)"):
        fetch(f"127.0.0.1:{port}")


def test_all_halves_of_a_new_server_are_known_then(llama: Any, bundle: Any, serve: Any) -> None:
    with serve(llama, bundle("gpt2"), offer=True) as server:
        address = Address(target=f"127.0.0.1:{server.port}")
        for name in ("llama", "gpt2", "llama"):
            pull.cached(address, terms=WEAK, name=name)
        assert sorted(KnownServers().digests(address.target).values()) == ["gpt2", "llama"]


def test_a_half_is_compared_with_the_servers_at_every_connect(
    llama: Any, forged: Callable[..., Any], serve: Any, generated: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same parameters, seed and manifest, another template: what used to pass for the same."""
    bad = forged(llama, evil_template)
    old, new = (header_file.half_digest(half.path / "client") for half in (llama, bad))
    with serve(llama) as server:
        remote = llama.connect(server.port)
        assert generated(remote) == expected
        for options in ({}, {"name": "llama"}):
            with pytest.raises(BundleError, match=f"its digest is {old}, yours {new}"):
                bad.connect(server.port, **options)
        server.service.described.bundles[0].digest = new
        server.store.close(next(iter(server.store.sessions.values())))
        with pytest.raises(BundleError, match=f"its digest is {new}, yours {old}"):
            generated(remote)
        remote.close()
        monkeypatch.setattr(transports.RemoteTransport, "check_half", lambda *_: None)
        remote = llama.connect(server.port)
        assert generated(remote) == expected, "without the rule nobody is told"
        remote.close()


@pytest.mark.parametrize("digest", ["", "0" * 63, "Z" * 64, "../" + "0" * 61, "0" * 64 + "\n"])
def test_a_digest_that_is_none_is_one_error(digest: str, llama: Any, serve: Any) -> None:
    with serve(llama, offer=True) as server:
        server.service.described.bundles[0].digest = digest
        for attempt in (llama.connect, lambda port: fetch(f"127.0.0.1:{port}")):
            with pytest.raises(BundleError, match="something that is not a digest"):
                attempt(server.port)


def test_what_is_fetched_has_to_be_what_was_announced(
    llama: Any, forged: Callable[..., Any], serve: Any, tmp_path: Path
) -> None:
    bad = forged(llama, evil_template)
    with serve(bad, offer=True) as server:
        server.service.described.bundles[0].digest = header_file.half_digest(llama.path / "client")
        with pytest.raises(BundleError, match="has the digest"):
            fetch(f"127.0.0.1:{server.port}")
    assert not list((tmp_path / "cache").rglob("*.json")) and not (tmp_path / "data").exists()


def test_a_half_in_the_cache_that_was_changed_is_refused(llama: Any, serve: Any) -> None:
    with serve(llama, offer=True) as server:
        target = f"127.0.0.1:{server.port}"
        _append(fetch(target) / header_file.HEADER)
        with pytest.raises(BundleError, match="has the digest"):
            fetch(target)


def test_a_pinned_half_is_the_only_one_that_is_taken(llama: Any, serve: Any) -> None:
    right, wrong = header_file.half_digest(llama.path / "client"), "0" * 64
    with serve(llama, offer=True) as server:
        llama.connect(server.port, terms=replace(WEAK, digest=right)).close()
        with pytest.raises(BundleError, match=f"has the digest {right}, and {wrong} was asked for"):
            llama.connect(server.port, terms=replace(WEAK, digest=wrong))
        with pytest.raises(BundleError, match=f"does not offer the client half {wrong}; it offers {right}"):
            fetch(f"127.0.0.1:{server.port}", digest=wrong)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        Terms(digest="abc")


def test_the_commands_pin_and_refuse(llama: Any, serve: Any, tmp_path: Path) -> None:
    right = header_file.half_digest(llama.path / "client")
    options = ("w1 w2", "--max-new-tokens", "2", "--json", "--allow-no-cryptography")
    with serve(llama, offer=True) as server:
        target = ("--server", f"127.0.0.1:{server.port}")
        result = veil("generate", *options, *target, "--digest", right)
        assert result.returncode == 0, result.stderr
        (tmp_path / "data" / "known_servers").write_text(f"{target[1]} {'0' * 64} llama\n")
        result = veil("generate", *options, *target)
        assert result.returncode == 2
        assert "0" * 64 in result.stderr and right in result.stderr and "--digest" in result.stderr
    result = veil("generate", "w1", "--digest", right)
    assert result.returncode == 2 and "are about a --bundle or a --server's" in result.stderr


@pytest.mark.parametrize("text", ["nonsense\n", "host:1 00 name\n", b"\xff\xfe", "host:1 " + "g" * 64 + " name\n"])
def test_a_damaged_list_is_not_guessed_at(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "known"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleError, match="remove it to meet"):
        KnownServers(path).check("host:1", "0" * 64, "name", None)


def test_a_server_does_not_start_with_a_half_that_is_another_bundles(llama: Any, forged: Callable[..., Any]) -> None:
    bad = forged(llama, evil_template)
    with pytest.raises(BundleError, match="is not the client half that was compiled with"):
        build_bundles({"llama": llama.path / "server"}, {"llama": bad.path / "client"}, kernels_for("cpu"))
