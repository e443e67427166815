"""Tokens are kept as digests, compared whole, and never repeated in an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from veil.errors import AccessDenied
from veil.network.listening import is_loopback
from veil.network.tokens import Tokens, digest_of, fresh_token
from veil.server.config import ServerConfig


def test_a_file_of_digests(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# mine\n\n{digest_of('one')} laptop\n{digest_of('two').upper()}  # phone\n")
    tokens = Tokens.read(path)
    assert tokens.owner("one") == digest_of("one")
    assert tokens.owner("two") == digest_of("two")
    for wrong in ("three", digest_of("one"), "one ", "ONE"):
        with pytest.raises(AccessDenied, match="does not accept"):
            tokens.owner(wrong)
    with pytest.raises(AccessDenied, match="wants a token"):
        tokens.owner("")


def test_a_token_by_mistake_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("my-secret-token\n")
    with pytest.raises(ValueError, match="line 1 is not the SHA-256") as caught:
        Tokens.read(path)
    assert "my-secret-token" not in str(caught.value)
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="no token"):
        Tokens.read(path)


def test_tokens_are_long_and_new() -> None:
    assert len({fresh_token() for _ in range(100)}) == 100
    assert len(fresh_token()) >= 43


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_addresses(host: str) -> None:
    assert is_loopback(host)
    ServerConfig(host=host).check()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_other_addresses_need_tls_and_tokens(host: str, tmp_path: Path) -> None:
    tokens, tls = Tokens([digest_of("x")]), (tmp_path / "c", tmp_path / "k")
    assert not is_loopback(host)
    for config in (
        ServerConfig(host=host),
        ServerConfig(host=host, tls=tls),
        ServerConfig(host=host, tokens=tokens),
    ):
        with pytest.raises(ValueError, match=r"(no TLS|no list of tokens|no TLS and no list of tokens); .*--insecure"):
            config.check()
    ServerConfig(host=host, tls=tls, tokens=tokens).check()
    ServerConfig(host=host, insecure=True).check()
