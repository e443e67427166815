"""What the options of `veil gateway` make: models with names, and warnings of what would travel in clear."""

from __future__ import annotations

import json
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from veil.cli.models import aliases_of, model_choices
from veil.cli.options import Consent, Device, FuseNorms, ServerAccess
from veil.client.connection import Address
from veil.commands.choice import ModelChoice
from veil.commands.gateway import GatewayRequest, warnings_of
from veil.commands.model_choice import said_name
from veil.gateway.app import Settings
from veil.gateway.guard import Access


@pytest.fixture(autouse=True)
def reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.cli.reach.try_to_reach", lambda *_, **__: None)


def choices(models: Any = (), bundles: Any = (), servers: Any = (), name: str | None = None) -> tuple[ModelChoice, ...]:
    access = ServerAccess(allow_no_tls=True)
    return model_choices(models, bundles, servers, name, FuseNorms.auto, Device.cpu, access, Consent())


def test_models_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.cli.options.check_bundle", lambda *_: None)  # the halves here are none
    (only,) = choices()
    assert (only.name, only.model, only.server) == (None, "smollm2", None)
    odd = tmp_path / "a=b"
    odd.mkdir()
    made = choices(["smollm2", "q=openai-community/gpt2", str(odd)], servers=["big=10.0.0.1:8471", "10.0.0.2"])
    assert [(one.name, one.model, one.server and one.server.target) for one in made] == [
        (None, "smollm2", None),
        ("q", "openai-community/gpt2", None),
        (None, str(odd), None),
        ("big", "smollm2", "10.0.0.1:8471"),
        (None, "smollm2", "10.0.0.2:8471"),
    ]
    for half in (tmp_path / "x" / "client", tmp_path / "y"):
        half.mkdir(parents=True)
        (half / "bundle.json").write_text("{}")
    x, y = tmp_path / "x", tmp_path / "y"
    pair = choices(bundles=[str(x / "client"), str(y)], servers=["a=10.0.0.1", "10.0.0.2"])
    assert [(one.name, one.bundle) for one in pair] == [("a", x / "client"), (None, y)]
    assert [(one.name, one.bundle) for one in choices(bundles=[f"n={x}", str(y)])] == [("n", x), (None, y)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bundles": ["a"], "servers": ["h", "i"]}, "once for each"),
        ({"models": ["a"], "bundles": ["b"]}, "leave out --model"),
        ({"servers": ["h", "i"], "name": "x"}, "for one --server"),
        ({"models": ["=a"]}, "NAME=MODEL"),
        ({"models": ["./nothing"]}, "check the path"),
    ],
    ids=str,
)
def test_choices_that_do_not_fit(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) if words != "check the path" else pytest.raises(Exception, match=words):
        choices(**options)


def test_aliases() -> None:
    assert aliases_of(["gpt-4o=smollm2", "b=openai-community/gpt2"]) == {"gpt-4o": "smollm2", "b": "openai-community/gpt2"}
    for wrong in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(ValueError, match="--alias"):
            aliases_of(wrong)


def test_what_would_travel_in_clear_is_said() -> None:
    safe = GatewayRequest(choices=choices(), access=Access(api_key="k"), settings=Settings(), port=0)
    assert warnings_of(safe) == []
    (said,) = warnings_of(replace(safe, access=Access(host="0.0.0.0", api_key="k")))
    assert "without TLS" in said and "--tls-cert" in said
    far = ModelChoice(server=Address(target="10.0.0.1", token="t", allow_no_tls=True))
    near = ModelChoice(server=Address(target="127.0.0.1", token="t"))
    (said,) = warnings_of(replace(safe, choices=(far, near)))
    assert "10.0.0.1:8471" in said and "token" in said


def test_a_bundle_says_what_its_model_is_called(tmp_path: Path) -> None:
    half = tmp_path / "client"
    half.mkdir()
    for header, expected in (
        ({"model": "openai-community/gpt2"}, "openai-community/gpt2"),
        ({"model": ""}, None),
        ({}, None),
        ([], None),
        ({"model": 5}, None),
        ({"model": "a\x1b[31m"}, "a [31m"),
    ):
        (half / "bundle.json").write_text(json.dumps(header))
        assert said_name(half) == said_name(tmp_path) == expected
    assert said_name(tmp_path / "nothing") is None


def test_tls(byte_served: Any, tls_files: tuple[Path, Path]) -> None:
    import threading

    import httpx

    from veil.gateway.app import build_app
    from veil.gateway.listen import Listener
    from veil.network.listening import listening

    with listening("127.0.0.1", 0) as opened:
        listener = Listener(build_app(byte_served), opened, tls_files)
        thread = threading.Thread(target=listener.serve_until_told)
        thread.start()
        try:
            url = f"https://localhost:{opened.getsockname()[1]}/health"
            trusting = ssl.create_default_context(cafile=str(tls_files[0]))
            assert httpx.get(url, verify=trusting).json() == {"status": "ok"}
            with pytest.raises(httpx.ConnectError):
                httpx.get(url)
        finally:
            listener.should_exit = True
            thread.join(20)
