"""A file from a server: whole with the digest that was announced, or not there at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veil.client.files import fetch_file
from veil.errors import BundleError, ServerUnreachable, VeilError
from veil.wire import veil_pb2 as pb

DATA = b"public tables " * 100
DIGEST = hashlib.sha256(DATA).hexdigest()


class Server:
    """A connection whose server sends these pieces, then ends or breaks."""

    def __init__(self, *pieces: bytes, breaks: bool = False) -> None:
        self.pieces, self.breaks, self.sent = pieces, breaks, 0

    def download(self, name: str, request: Any, reply: Any, timeout_s: float) -> Iterator[Any]:
        assert (name, request.bundle, request.path) == ("Fetch", "llama", "tables")
        for piece in self.pieces:
            self.sent += 1
            yield pb.FetchReply(data=piece)
        if self.breaks:
            raise ServerUnreachable("gone")


def fetch(server: Any, target: Path) -> None:
    fetch_file(server, "llama", "tables", target, size=len(DATA), sha256=DIGEST)


def test_pieces_become_the_file(tmp_path: Path) -> None:
    fetch(Server(DATA[:100], b"", DATA[100:]), tmp_path / "tables")
    assert (tmp_path / "tables").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]


WRONG: dict[str, tuple[Server, type[VeilError], str]] = {
    "another digest": (Server(DATA[:-1] + b"?"), BundleError, "does not match its digest"),
    "too few": (Server(DATA[:-1]), ServerUnreachable, f"ended after {len(DATA) - 1} of {len(DATA)} bytes"),
    "none": (Server(), ServerUnreachable, "ended after 0"),
    "a broken connection": (Server(DATA[:100], breaks=True), ServerUnreachable, "gone"),
    "too many": (Server(DATA, b"!", *[DATA] * 50), BundleError, "longer than"),
}


@pytest.mark.parametrize("name", WRONG)
def test_anything_else_leaves_nothing(name: str, tmp_path: Path) -> None:
    server, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        fetch(server, tmp_path / "tables")
    assert list(tmp_path.iterdir()) == []
    assert server.sent <= 2, "no more is read than was announced"
