"""`veil.Server` and `veil.connect`: a server and its client in a program, by public names only."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

import veil
from veil import HybridFHEModel, Params, Server, ServerConfig, Terms, linear_modules

TERMS = Terms(no_cryptography=True)
IDS = torch.arange(3, 9)[None]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    source = veil.load_model(str(llama_folder))
    hybrid = HybridFHEModel(source.model, linear_modules(source.model))
    hybrid.compile_model(IDS, params=Params.insecure_tiny())
    folder = tmp_path_factory.mktemp("public") / "small"
    hybrid.save(folder, source.tokenizer)
    return folder


def test_a_server_and_a_client_in_ten_lines(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client half is fetched from the server, and answers come close to those of the integers in clear."""
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path))
    clear = HybridFHEModel.load(bundle, terms=TERMS)(IDS).logits
    with Server.open(bundle) as server:
        assert server.address == f"127.0.0.1:{server.port}"
        hybrid = veil.connect(server.address, terms=TERMS)
        logits = hybrid(IDS).logits
        hybrid.close()
        assert (tmp_path / "bundles").is_dir()
    assert (logits - clear).abs().max() < 0.1 * clear.abs().max()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 5)


def test_several_bundles_by_name_and_no_offer(bundle: Path) -> None:
    with Server.open({"one": bundle, "two": bundle / "server"}, offer=False) as server:
        with pytest.raises(veil.BundleError, match="offers 0 client halves of 'one', 'two'"):
            veil.connect(server.address, terms=TERMS)
        hybrid = veil.connect(server.address, bundle, name="two", terms=TERMS)
        assert hybrid.fhe_mode == "remote"
        hybrid.close()


def test_an_address_that_others_reach_is_refused_before_the_work(bundle: Path) -> None:
    with pytest.raises(ValueError, match="not a loopback address"):
        Server.open(bundle / "nothing", ServerConfig(host="0.0.0.0", port=0))
    with pytest.raises(veil.BundleError, match="holds no bundle"):
        Server.open(bundle / "nothing")
