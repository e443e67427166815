"""Files for TLS and tokens that do not fit: one line that names the file, before any long work."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from remote.processes import veil
from veil.cli import app
from veil.client.connection import Address
from veil.network.certificates import server_context
from veil.network.tokens import Tokens


def line_of(*arguments: str | Path) -> str:
    """The one line of a command that was refused, at once."""
    start = time.monotonic()
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 2, found.output
    assert time.monotonic() - start < 60
    (line,) = found.stderr.splitlines()
    return line


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A folder that passes for a half of a bundle until it is read."""
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "bundle.json").write_text("{}")
    return folder


def test_a_tokens_file_that_cannot_be_read(half: Path, tmp_path: Path) -> None:
    missing = line_of("serve", half, "--tokens", tmp_path / "none")
    assert str(tmp_path / "none") in missing and "No such file" in missing
    assert "directory" in line_of("serve", half, "--tokens", tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "line 1" in line_of("serve", half, "--tokens", tmp_path / "binary")


def test_a_servers_certificate_is_tried_before_the_hint_is_built(
    certificate: tuple[Path, Path], half: Path, tmp_path: Path
) -> None:
    good, key = certificate
    text = tmp_path / "text"
    text.write_text("not PEM")
    for cert, of_key, words in (
        (tmp_path / "none", key, "none cannot be read (No such file"),
        (good, tmp_path / "none", "none cannot be read (No such file"),
        (tmp_path, key, "cannot be read (Is a directory"),
        (text, key, "not a certificate and its key"),
        (good, text, "not a certificate and its key"),
        (key, good, "not a certificate and its key"),
    ):
        assert words in line_of("serve", half, "--tls-cert", cert, "--tls-key", of_key)
    server_context(good, key)


def test_nobody_is_asked_for_the_password_of_a_key(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(certificate[1].read_bytes(), None)
    sealed = serialization.BestAvailableEncryption(b"secret")
    (tmp_path / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed))
    with pytest.raises(ValueError, match="without a password"):
        server_context(certificate[0], tmp_path / "key")


def test_an_authority_that_does_not_fit(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not PEM")
    options = ("generate", "w3", "--server", "127.0.0.1:1", "--tls-ca")
    assert "cannot be read" in line_of(*options, tmp_path / "none")
    assert "no certificate in PEM" in line_of(*options, text)
    assert "no certificate in PEM" in line_of(*options, certificate[1])
    text.write_bytes("# für Bücher\n".encode() + certificate[0].read_bytes())
    Address(target="localhost:1", tls=text)


def test_a_tokens_file_is_what_veil_token_wrote(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["token"])
    assert made.exit_code == 0
    (tmp_path / "tokens").write_text(made.stderr)
    Tokens.read(tmp_path / "tokens").owner(made.stdout.strip())


def test_tls_to_a_server_without_it_is_one_line(other_grpc_server: int, certificate: tuple[Path, Path]) -> None:
    """A process, since gRPC's own log is written by its core, past Python."""
    found = veil("pull", f"localhost:{other_grpc_server}", "never", "--tls-ca", certificate[0])
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert "answers without TLS" in line
