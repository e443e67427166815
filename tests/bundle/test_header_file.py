"""Both halves on disk: what is written is read, and what is damaged, foreign or not agreed to is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from veil.bundle import header_file
from veil.bundle.client_half import REMOTE, TABLES, load_constants, load_tables, save_arrays
from veil.bundle.compiled import Compiled
from veil.bundle.constants import GroupConstants
from veil.bundle.fingerprint import fingerprint_of
from veil.bundle.header_file import HEADER, read_client, read_header, write_header
from veil.bundle.server_half import WEIGHTS, client_digest, load_server, save_server
from veil.bundle.terms import Terms
from veil.errors import BundleError, InsecureParameters
from veil.params import Params
from veil.seed import PublicSeed

WEAK = Terms(no_cryptography=True)
SEED = PublicSeed(bytes(range(32)))


@pytest.fixture
def halves(pair: Any, tmp_path: Path) -> tuple[Path, Path, Any]:
    """The folders of a client half and a server half of the tiny pair."""
    constants = tuple(
        GroupConstants(np.full(len(own), 0.5, np.float32), np.arange(len(own), dtype=np.float32), 3.0)
        for own in pair.weights
    )
    compiled = Compiled(pair.params, pair.seed, pair.manifest, constants, pair.weights)
    client, server = tmp_path / "client", tmp_path / "server"
    client.mkdir()
    save_arrays(client, compiled, pair.client_model.tables)
    write_header(client, "client", header_file.common_fields(pair.params, pair.seed, pair.manifest))
    save_server(server, pair.server_model, header_file.half_digest(client))
    return client, server, compiled


def test_both_halves_come_back(halves: tuple[Path, Path, Any], pair: Any) -> None:
    client, server, compiled = halves
    _, params, seed, manifest = read_client(client, WEAK)
    assert (params, seed.seed, manifest) == (pair.params, pair.seed.seed, pair.manifest)
    for mine, found in zip(compiled.constants, load_constants(client, manifest, [(3.0, None)] * 3), strict=True):
        assert np.array_equal(mine.scale, found.scale) and np.array_equal(mine.bias, found.bias)
    for name, table in load_tables(client, params, manifest).items():
        assert np.array_equal(table, pair.client_model.tables[name])
    model = load_server(server)
    assert all(np.array_equal(mine, found) for mine, found in zip(pair.weights, model.weights, strict=True))
    assert client_digest(server) == header_file.half_digest(client)


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        header = json.loads((folder / HEADER).read_text()) | changes
        (folder / HEADER).write_text(json.dumps({name: value for name, value in header.items() if value is not None}))

    return change


def flip(folder: Path) -> None:
    data = bytearray((folder / TABLES).read_bytes())
    data[-1] ^= 1
    (folder / TABLES).write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no header": (lambda folder: (folder / HEADER).unlink(), "is missing.*veil compile"),
    "no JSON": (lambda folder: (folder / HEADER).write_text("{"), "is damaged"),
    "a list": (lambda folder: (folder / HEADER).write_text("[]"), "is damaged"),
    "nested without end": (lambda folder: (folder / HEADER).write_text("[" * 100_000), "is damaged"),
    "digests by place": (edit(sha256=[]), "is damaged: the digests are not by name"),
    "another format": (edit(format=2), "is of format 2, this veil reads 3; compile"),
    "the other half": (edit(half="server"), "is the server half of a bundle, expected the client half"),
    "a file that changed": (flip, "does not match its digest"),
    "a file too many": (lambda folder: (folder / "more").write_text(""), "more is missing, or does not belong there"),
    "a file too few": (lambda folder: (folder / TABLES).unlink(), f"{TABLES} is missing, or does not belong"),
    "no parameters": (edit(params=None), "does not fit"),
    "a seed of other length": (edit(seed="00"), "does not fit"),
    "no manifest": (edit(manifest=[1]), "not what this version writes"),
    "leaks that are no words": (edit(experts={"mlp": 3}), "does not say what its experts show"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_refused(name: str, halves: tuple[Path, Path, Any]) -> None:
    change, words = DAMAGES[name]
    change(halves[0])
    with pytest.raises(BundleError, match=words):
        read_client(halves[0], WEAK)


def test_a_header_is_read_up_to_a_size(halves: tuple[Path, Path, Any]) -> None:
    with (halves[0] / HEADER).open("ab") as file:
        file.truncate(17 << 20)
    with pytest.raises(BundleError, match="is larger than"):
        read_header(halves[0], "client")


def test_an_optional_file_may_be_absent_and_not_wrong(halves: tuple[Path, Path, Any]) -> None:
    flip(halves[0])
    with pytest.raises(BundleError, match="digest"):
        read_client(halves[0], WEAK, optional=(TABLES,))
    (halves[0] / TABLES).unlink()
    read_client(halves[0], WEAK, optional=(TABLES,))


def test_parameters_without_security_need_the_users_word(halves: tuple[Path, Path, Any]) -> None:
    with pytest.raises(InsecureParameters, match="protect nothing"):
        read_client(halves[0], Terms())


def rewritten(path: Path, **changes: Any) -> None:
    arrays = {name: value for name, value in (load_file(path) | changes).items() if value is not None}
    save_file(arrays, path)


@pytest.mark.parametrize("wrong", [np.zeros(5, np.float32), np.zeros(51, np.float64)], ids=["size", "type"])
def test_constants_that_do_not_fit_are_refused(halves: tuple[Path, Path, Any], pair: Any, wrong: Any) -> None:
    rewritten(halves[0] / REMOTE, **{"scale.0": wrong})
    with pytest.raises(BundleError, match="group 0 does not have 51 float32 values of scale"):
        load_constants(halves[0], pair.manifest, [(3.0, None)] * 3)


@pytest.mark.parametrize("divisor", [0.0, -1.0, np.inf, np.nan])
def test_inputs_are_divided_by_something_positive(halves: tuple[Path, Path, Any], pair: Any, divisor: float) -> None:
    divisors = np.ones(70, np.float32)
    divisors[3] = divisor
    rewritten(halves[0] / REMOTE, **{"divisors.0": divisors})
    with pytest.raises(BundleError, match="divides its inputs by something that is not positive"):
        load_constants(halves[0], pair.manifest, [(3.0, None)] * 3)


@pytest.mark.parametrize("wrong", [None, np.zeros((51, 71), np.int8), np.zeros((51, 70), np.uint8)])
def test_weights_that_do_not_fit_are_refused(halves: tuple[Path, Path, Any], wrong: Any) -> None:
    rewritten(halves[1] / WEIGHTS, **{"group.0": wrong})
    with pytest.raises(BundleError, match=r"group.0 is not int8 of shape \[51, 70\]"):
        load_server(halves[1], verify=False)


def test_weights_that_cannot_be_read_are_one_error(halves: tuple[Path, Path, Any]) -> None:
    (halves[1] / WEIGHTS).write_bytes(b"short")
    with pytest.raises(BundleError, match="cannot be read"):
        load_server(halves[1], verify=False)
    edit(client="no digest")(halves[1])
    with pytest.raises(BundleError, match="does not say which client half goes with it"):
        client_digest(halves[1])


def test_a_fingerprint_tells_bundles_apart(pair: Any) -> None:
    mine = fingerprint_of(pair.params, SEED, pair.manifest)
    assert mine == fingerprint_of(pair.params, PublicSeed(SEED.seed), pair.manifest)
    others = [
        fingerprint_of(pair.params, PublicSeed(bytes(32)), pair.manifest),
        fingerprint_of(Params.insecure_tiny(signal_db=61.0), SEED, pair.manifest),
        fingerprint_of(pair.params, SEED, type(pair.manifest)(pair.manifest.groups[1:])),
    ]
    assert len({mine, *others}) == 4
