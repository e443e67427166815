"""Errors on the network: each of veil's error types has a name in the trailing metadata and a gRPC status."""

from __future__ import annotations

import grpc

from veil.errors import (
    AccessDenied,
    BundleError,
    CorruptMessage,
    IncompatibleServer,
    QuotaExceeded,
    RowReused,
    ServerUnreachable,
    UnknownBatch,
    UnknownSession,
    VeilError,
    WireError,
)

ERROR_KEY = "veil-error"
_MOST_DETAILS = 400

_KINDS: dict[str, tuple[type[VeilError], grpc.StatusCode]] = {
    "corrupt": (CorruptMessage, grpc.StatusCode.DATA_LOSS),
    "unknown-session": (UnknownSession, grpc.StatusCode.NOT_FOUND),
    "unknown-batch": (UnknownBatch, grpc.StatusCode.FAILED_PRECONDITION),
    "row-reused": (RowReused, grpc.StatusCode.FAILED_PRECONDITION),
    "quota": (QuotaExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    "access": (AccessDenied, grpc.StatusCode.UNAUTHENTICATED),
    "bundle": (BundleError, grpc.StatusCode.FAILED_PRECONDITION),
    "incompatible": (IncompatibleServer, grpc.StatusCode.FAILED_PRECONDITION),
    "wire": (WireError, grpc.StatusCode.INVALID_ARGUMENT),
}


def status_of(error: VeilError) -> tuple[grpc.StatusCode, str]:
    """The gRPC status and the name that say an error to the client."""
    for name, (kind, code) in _KINDS.items():
        if isinstance(error, kind):
            return code, name
    return grpc.StatusCode.INTERNAL, "internal"


def error_from(failure: grpc.RpcError) -> VeilError:
    """The error that a failed call stands for; what has no name of veil's is `ServerUnreachable`, worth a retry."""
    details = printable(failure.details() or "")
    metadata = failure.trailing_metadata() or ()
    name = next((str(value) for key, value in metadata if key == ERROR_KEY), "")
    if name in _KINDS:
        return named(name, details)
    code = failure.code()
    return ServerUnreachable(f"{code.name.lower().replace('_', ' ')}: {details}" if code else details)


def named(name: str, details: str) -> VeilError:
    """The error of this name, in words that are said to be the server's; `ServerUnreachable` for a name that veil lacks."""
    kind = _KINDS[name][0] if name in _KINDS else ServerUnreachable
    return kind(f"the server says: {printable(details)}")


def printable(text: str) -> str:
    """A line from the other side, safe to show: no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in text[:_MOST_DETAILS])
