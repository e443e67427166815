"""Errors over the network: each keeps its type, and the other side's words are only words."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from veil import errors
from veil.wire.failures import ERROR_KEY, error_from, named, printable, status_of


class Failed(grpc.RpcError):  # type: ignore[misc]
    def __init__(self, code: Any, details: str | None, *metadata: tuple[str, str]) -> None:
        self.code, self.details, self.trailing_metadata = (lambda: code), (lambda: details), (lambda: metadata)


KINDS = [
    errors.CorruptMessage,
    errors.UnknownSession,
    errors.UnknownBatch,
    errors.RowReused,
    errors.QuotaExceeded,
    errors.AccessDenied,
    errors.BundleError,
    errors.IncompatibleServer,
    errors.WireError,
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_as_itself(kind: type[errors.VeilError]) -> None:
    code, name = status_of(kind("row 3 was used"))
    found = error_from(Failed(code, "row 3 was used", ("other", "x"), (ERROR_KEY, name)))
    assert type(found) is kind and str(found) == "the server says: row 3 was used"
    assert type(named(name, "row 3 was used")) is kind


def test_an_error_that_clients_need_not_tell_apart_is_internal() -> None:
    assert status_of(errors.NotFiniteActivation("x")) == (grpc.StatusCode.INTERNAL, "internal")


@pytest.mark.parametrize("metadata", [(), ((ERROR_KEY, "no-such-error"),), (("else", "row-reused"),)])
def test_a_failure_without_a_name_is_worth_a_retry(metadata: Any) -> None:
    found = error_from(Failed(grpc.StatusCode.DEADLINE_EXCEEDED, "late", *metadata))
    assert type(found) is errors.ServerUnreachable and str(found) == "deadline exceeded: late"
    assert type(named("no-such-error", "late")) is errors.ServerUnreachable


def test_a_failure_that_says_nothing_is_an_error_too() -> None:
    assert type(error_from(Failed(None, None))) is errors.ServerUnreachable


def test_the_other_sides_words_cannot_drive_a_terminal() -> None:
    assert printable("a\x1b[2Jb\r\nc\u202ed") == "a [2Jb  c d"
    assert len(printable("x" * 10_000)) == 400
