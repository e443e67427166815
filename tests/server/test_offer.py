"""What a server offers of a client half: its regular files, as they were, and nothing beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from veil.errors import BundleError, WireError
from veil.server.offer import Offer
from veil.wire.methods import FILE_CHUNK

LARGE = bytes(range(256)) * (FILE_CHUNK // 256) + b"rest"


@pytest.fixture
def half(tmp_path: Path) -> Path:
    folder = tmp_path / "client"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "bundle.json").write_text(json.dumps({"format": 3, "half": "client", "sha256": {}}))
    (folder / "tokenizer" / "large").write_bytes(LARGE)
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    return folder


def test_files_are_listed_with_size_and_digest_and_links_are_not(half: Path) -> None:
    offer = Offer(half)
    assert [file.path for file in offer.files] == ["bundle.json", "tokenizer/large"]
    large = offer.files[1]
    assert (large.size, large.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    assert offer.digest == offer.files[0].sha256


def test_a_file_comes_in_pieces(half: Path) -> None:
    pieces = list(Offer(half).read("tokenizer/large"))
    assert b"".join(pieces) == LARGE and max(map(len, pieces)) == FILE_CHUNK


@pytest.mark.parametrize("path", ["link", "../secret", "tokenizer", "", "/etc/hostname", "./bundle.json", "later"])
def test_nothing_else_is_read(half: Path, path: str) -> None:
    offer = Offer(half)
    (half / "later").write_text("added after the start")
    with pytest.raises(WireError, match="offers no file of that name"):
        next(offer.read(path))


def test_a_server_half_is_refused(half: Path) -> None:
    (half / "bundle.json").write_text(json.dumps({"format": 3, "half": "server", "sha256": {}}))
    with pytest.raises(BundleError, match="is the server half of a bundle, expected the client half"):
        Offer(half)
