"""TLS from PEM files, read and tried at once, so that a file that does not fit is one clear error before any long work."""

from __future__ import annotations

import ssl
from pathlib import Path


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or later with a certificate chain and its key; `ValueError` for files that are not those."""
    for path, what in ((certificate, "TLS certificate"), (key, "TLS key")):
        _read(path, what)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # gRPC takes none, so nobody is asked for one
    except ssl.SSLError as error:
        raise ValueError(
            f"{certificate} and {key} are not a certificate and its key ({_reason(error)}); "
            "give the PEM files of the two, the key without a password"
        ) from None
    return context


def client_context(authority: bytes | None) -> ssl.SSLContext:
    """TLS 1.2 or later for servers that the system trusts, or only those that the authority of `read_authority` signed."""
    context = ssl.create_default_context(cadata=None if authority is None else authority.decode("ascii", "ignore"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def read_authority(path: Path) -> bytes:
    """The PEM file of an authority; `ValueError` for one that cannot be read or holds no certificate."""
    authority = _read(path, "TLS authority's certificate")
    try:
        client_context(authority)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"{path} holds no certificate in PEM ({_reason(error)}); give the authority's PEM file") from None
    return authority


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the {what} {path} cannot be read ({error.strerror}); check the path") from None


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or str(error).partition(" (_ssl")[0].removeprefix("[SSL] ")
    return reason.lower().replace("_", " ")
