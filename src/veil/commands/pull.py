"""`veil pull`: fetch the client half of a bundle from a server that offers it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import typer
from rich.table import Table
from rich.text import Text

from veil.bundle import header_file
from veil.bundle.fields import Header
from veil.bundle.fingerprint import fingerprint_of
from veil.bundle.manifest import Manifest
from veil.bundle.terms import Terms
from veil.cache import cache_folder
from veil.client.connection import Address, Connection, OfferedBundle
from veil.client.files import fetch_file
from veil.client.known import KnownServers
from veil.client.link import measure_link
from veil.commands.terminal import Reporter, error_console
from veil.disk import writing
from veil.errors import BundleError
from veil.network.timeouts import Timeouts
from veil.params import Params
from veil.seed import PublicSeed

_MOST_FILES = 1000
_SUFFIXES = frozenset(
    {".json", ".safetensors", ".txt", ".model", ".jinja", ".codes", ".bpe", ".spm", ".tiktoken", ".tokenizer"}
)
"""What a client half is made of: settings, tensors, vocabularies and a chat's template. Nothing that Python would run."""

_MOST_BYTES, MOST_BYTES_OF_TEXT = 16 << 30, 64 << 20
"""Of a half, and of a file in it that holds no tensors; the largest vocabularies have half of that."""

ROOM_LEFT_BYTES = 1 << 30
"""Bytes of the disk that a half does not take."""

_WORTH_FUSING_S = 0.0005
"""A round trip that takes longer than the arithmetic that fusing adds for each trip it saves, on two cores."""


def run(address: Address, out: Path, *, terms: Terms, name: str | None, as_json: bool) -> None:
    """Fetch into the new folder ``out``, check every digest, and show them.

    Raises `ValueError` when ``out`` exists, `BundleError` for an offer that does not fit, another half than the server had
    before, or digests that do not fit.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; remove it, or choose another folder")
    timeouts = Timeouts()
    connection = Connection(address, timeouts)
    try:
        served = connection.retrying(connection.describe, timeouts.retries(timeouts.connect_s))
        bundle = _choose(served, name, terms)
        with _known(address, bundle, served, terms):
            _fetch_all(connection, bundle, out, terms)
    finally:
        connection.close()
    if as_json:
        files = {path: sha256 for path, _, sha256 in bundle.files}
        typer.echo(json.dumps({"path": str(out), "name": bundle.name, "digest": bundle.digest, "files": files}))
    else:
        typer.echo(str(out))


def cached(address: Address, *, terms: Terms, name: str | None, fuse_norms: str = "auto") -> Path:
    """The client half that a server offers, from the user's cache; fetched, checked and shown the first time.

    Of two halves of one model, with fused norms and without, ``fuse_norms`` chooses: on, off, or auto by the distance.
    """
    timeouts = Timeouts()
    connection = Connection(address, timeouts)
    try:
        served = connection.retrying(connection.describe, timeouts.retries(timeouts.connect_s))
        suitable = served if terms.digest else _suitable(served, name, fuse_norms, address)
        bundle = _choose(suitable, name, terms)
        out = cache_folder() / "bundles" / folder_name(bundle)
        with _known(address, bundle, served, terms):
            if not out.exists():
                out.parent.mkdir(parents=True, exist_ok=True)
                _fetch_all(connection, bundle, out, terms)
            _read(out, bundle, terms, verify=False)  # files are checked when the half is loaded
        return out
    finally:
        connection.close()


def _fetch_all(connection: Connection, bundle: OfferedBundle, out: Path, terms: Terms) -> None:
    if len(bundle.files) > _MOST_FILES:
        raise BundleError(f"the server offers {len(bundle.files)} files, more than {_MOST_FILES}")
    targets = [safe_path(path) for path, _, _ in bundle.files]
    check_sizes(bundle, out)
    _show(bundle)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with Reporter() as reporter, writing(out):
            for index, (path, size, sha256) in enumerate(bundle.files):
                reporter.report("fetching", index, len(bundle.files))
                target = partial / targets[index]
                target.parent.mkdir(parents=True, exist_ok=True)
                fetch_file(connection, bundle.name, path, target, size=size, sha256=sha256)
            reporter.report("fetching", len(bundle.files), len(bundle.files))
        if fingerprint_of(*_read(partial, bundle, terms)[1:]) != bundle.fingerprint:
            raise BundleError("the client half is not of the bundle that the server serves; distrust the server")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _known(address: Address, bundle: OfferedBundle, served: list[OfferedBundle], terms: Terms) -> Iterator[None]:
    """Refuse a half that a known server never had; what a new server has is remembered once the block is through."""
    known = KnownServers()
    is_known = known.check(address.target, bundle.digest, bundle.name, terms.digest)
    yield
    if not is_known:
        met = [bundle] if known.digests(address.target) else [bundle, *served]
        known.remember(address.target, [(one.digest, one.name) for one in met])
        line = f"veil: {address.target} is remembered with the client half {bundle.digest}; compare it with its operator's"
        error_console().print(line, markup=False, highlight=False, soft_wrap=True)


def folder_name(bundle: OfferedBundle) -> str:
    """What a fetched half is called in the cache."""
    return bundle.digest


def _read(
    half: Path, bundle: OfferedBundle, terms: Terms, *, verify: bool = True
) -> tuple[Header, Params, PublicSeed, Manifest]:
    """A fetched half, which has to be the one that the server named."""
    return header_file.read_client(half, replace(terms, digest=bundle.digest), verify=verify)


def _choose(served: list[OfferedBundle], name: str | None, terms: Terms) -> OfferedBundle:
    offered = {bundle.name: bundle for bundle in served if bundle.files}
    if terms.digest is not None:
        found = {one.name: one for one in offered.values() if one.digest == terms.digest}
        if not found:
            others = ", ".join(f"{one.digest} ({one.name})" for one in offered.values()) or "none"
            raise BundleError(f"the server does not offer the client half {terms.digest}; it offers {others}")
        offered = found
    names = ", ".join(repr(bundle.name) for bundle in served) or "nothing"
    if name is None and len(offered) == 1:
        return next(iter(offered.values()))
    if name is None:
        raise BundleError(f"the server offers {len(offered)} client halves of {names}; choose one with --name")
    if name not in offered:
        raise BundleError(f"the server does not offer {name!r}; it serves {names}")
    return offered[name]


def _suitable(served: list[OfferedBundle], name: str | None, fuse_norms: str, address: Address) -> list[OfferedBundle]:
    """All bundles, or of an unfused and a fused one of the same layers the one that suits."""
    offered = [bundle for bundle in served if bundle.files]
    if name is not None or (fuse_norms == "auto" and len(offered) != 2):
        return served
    manifests = [header_file.parse_common(bundle.header)[2] for bundle in offered]
    fused = [any(group.fusion for group in manifest.groups) for manifest in manifests]
    if fuse_norms == "auto":
        if fused[0] == fused[1] or _layers(manifests[0]) != _layers(manifests[1]):
            return served
        wanted = measure_link(address, Timeouts()).rtt_s >= _WORTH_FUSING_S
    else:
        wanted = fuse_norms == "on"
    chosen = [bundle for bundle, is_fused in zip(offered, fused, strict=True) if is_fused == wanted]
    if not chosen:
        raise BundleError(f"the server offers no client half {'with' if wanted else 'without'} fused norms")
    return chosen


def _layers(manifest: Manifest) -> set[tuple[str, int, int]]:
    return {(layer.name, layer.in_features, layer.out_features) for group in manifest.forward for layer in group.layers}


def _show(bundle: OfferedBundle) -> None:
    table = Table(title=Text(f"client half of {bundle.name}, digest {bundle.digest}"), title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("SHA-256", overflow="fold")
    for path, size, sha256 in bundle.files:
        table.add_row(Text(repr(path)[1:-1]), f"{size:,}", Text(repr(sha256)[1:-1]))
    error_console().print(table)


def check_sizes(bundle: OfferedBundle, out: Path) -> None:
    """Refuse a half before anything of it is fetched that is larger than one can be, or than there is room for."""
    for path, size, _ in bundle.files:
        if size > MOST_BYTES_OF_TEXT and PurePosixPath(path).suffix != ".safetensors":
            raise BundleError(
                f"the server's {path!r} has {size:,} bytes, more than the {MOST_BYTES_OF_TEXT:,} of such a file"
            )
    total = sum(size for _, size, _ in bundle.files)
    if total > _MOST_BYTES:
        raise BundleError(
            f"the server's client half has {total:,} bytes, more than the {_MOST_BYTES:,} that veil fetches; if it is "
            "right, copy it by other means and give its folder"
        )
    free = shutil.disk_usage(out.parent).free - ROOM_LEFT_BYTES
    if total > free:
        raise BundleError(f"the client half has {total:,} bytes and {out.parent} has room for {max(0, free):,}; make room")


def safe_path(path: str) -> Path:
    """A relative path below the folder of a kind of file that belongs there, from a server that need not be honest."""
    parts = PurePosixPath(path).parts
    plain = all(part not in ("", ".", "..") and not set(part) & set('\\:*?"<>|\0') for part in parts)
    if not parts or path.startswith("/") or not plain or not path.isprintable() or len(path) > 200:
        raise BundleError(f"the server offers a file with the path {path!r}, which veil does not write")
    if PurePosixPath(path).suffix not in _SUFFIXES:
        raise BundleError(
            f"the server offers the file {path!r}, which does not belong in a client half ({', '.join(sorted(_SUFFIXES))}); "
            "distrust the server"
        )
    return Path(*parts)
