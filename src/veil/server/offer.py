"""The client half of a bundle as files to fetch: listed and hashed once, and streamed. Only which half it is, is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from veil.bundle.header_file import half_digest, read_header
from veil.disk import digest
from veil.errors import WireError
from veil.wire.methods import FILE_CHUNK


@dataclass(frozen=True)
class OfferedFile:
    """A file's path below the folder, its bytes and its SHA-256."""

    path: str
    size: int
    sha256: str


class Offer:
    """The files below a client half's folder, as they were when the server started; links are left out.

    Raises `BundleError` for a folder that is none, above all for a server half, whose weights would go to everybody.
    """

    def __init__(self, folder: Path) -> None:
        read_header(folder, "client", verify=False)
        self._folder = folder
        self.digest = half_digest(folder)
        found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        self.files = [OfferedFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest(path)) for path in found]

    def read(self, path: str) -> Iterator[bytes]:
        """The bytes of a listed file in pieces; `WireError` for any other path."""
        if path not in {file.path for file in self.files}:
            raise WireError("the server offers no file of that name")
        with (self._folder / path).open("rb") as file:
            while piece := file.read(FILE_CHUNK):
                yield piece
