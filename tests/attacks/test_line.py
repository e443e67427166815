"""Somebody on the way to the server: what goes in clear, and to whom, is never by accident."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from veil.cli import app
from veil.client import connection
from veil.client.connection import Address, Connection
from veil.errors import ServerUnreachable
from veil.network.grpc_options import client_options
from veil.network.timeouts import Timeouts
from veil.network.tokens import Tokens, digest_of

QUICK = Timeouts(connect_s=1.0)


def describe(address: Address) -> None:
    talk = Connection(address, QUICK)
    try:
        talk.describe()
    finally:
        talk.close()


@pytest.mark.parametrize(
    "host", ["example.org", "192.0.2.1", "0.0.0.0", "[2001:db8::1]", "[::]", "localhost.example", "10.1"]
)
@pytest.mark.parametrize("token", [None, "secret"])
def test_a_server_elsewhere_needs_tls(host: str, token: str | None) -> None:
    with pytest.raises(ValueError, match=r"is not this machine, and there is no TLS.*--tls or --tls-ca, or --allow-no-tls"):
        Address(target=f"{host}:8471", token=token)
    Address(target=f"{host}:8471", token=token, tls=True)
    Address(target=f"{host}:8471", token=token, allow_no_tls=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "[::1]"])
def test_this_machine_does_not(host: str) -> None:
    Address(target=f"{host}:8471", token="secret")


def test_without_the_rule_a_recorder_reads_the_token(
    llama: Any, serve: Any, recorder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(llama, tokens=Tokens([digest_of("sesame-opens")])) as server:
        between = recorder(server.port)
        with pytest.raises(ValueError, match="there is no TLS"):
            describe(Address(target=f"0.0.0.0:{between.port}", token="sesame-opens"))
        assert not between.seen
        monkeypatch.setattr(connection, "is_loopback", lambda host: True)
        describe(Address(target=f"0.0.0.0:{between.port}", token="sesame-opens"))
        assert b"sesame-opens" in between.seen


def test_a_proxy_of_the_environment_sees_nothing_in_clear(
    llama: Any, serve: Any, recorder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = recorder()
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    with serve(llama) as server:
        describe(Address(target=f"127.0.0.1:{server.port}", token="sesame-opens"))
        assert not proxy.seen
        options = client_options
        monkeypatch.setattr(connection, "client_options", lambda keepalive_s: _Fixed(options(keepalive_s)))
        with pytest.raises(ServerUnreachable):
            describe(Address(target=f"127.0.0.1:{server.port}", token="sesame-opens"))
        assert proxy.seen.startswith(b"CONNECT "), "without the rule the proxy is asked"


class _Fixed(list[Any]):
    """Options that nothing is added to."""

    def append(self, option: Any) -> None: ...


# One old option that meant two things ----------------------------------------------------------------------------------

COMMANDS: dict[str, Any] = dict(vars(typer.main.get_command(app))["commands"])
COMMANDS |= {f"bench {name}": command for name, command in COMMANDS["bench"].commands.items()}
HAD_IT = ["chat", "gateway", "generate", "pull"]


def options_of(name: str) -> set[str]:
    return {option for parameter in COMMANDS[name].params for option in parameter.opts}


def test_no_option_allows_both_no_tls_and_no_cryptography() -> None:
    """`--insecure` did; a server's is about its own address. Who reads a half has the one, who sends has the other."""
    for name in COMMANDS:
        own = options_of(name)
        assert ("--insecure" in own) is (name in ("serve", "cluster")), name
        assert ("--allow-no-cryptography" in own) is ("--digest" in own), name
        sends = name == "pull" or ("--server" in own and name != "doctor")  # which only looks whether somebody is there
        assert ("--allow-no-tls" in own) is sends, name
    for name in HAD_IT:
        assert {"--allow-no-tls", "--allow-no-cryptography"} <= options_of(name), name


@pytest.mark.parametrize("name", [*HAD_IT, "check", "finetune", "bench load"])
def test_the_old_option_is_refused(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split(), "--insecure"])
    assert result.exit_code == 2 and "No such option: --insecure" in result.output


@pytest.mark.parametrize("start", [("generate", "w1"), ("chat",), ("gateway",), ("pull", "half")], ids=str)
def test_to_allow_no_cryptography_does_not_allow_no_tls(start: tuple[str, ...]) -> None:
    """The other way round: `test_half.py`."""
    name, *rest = start
    server = ["192.0.2.1:8471", *rest] if name == "pull" else [*rest, "--server", "192.0.2.1:8471"]
    result = CliRunner().invoke(app, [name, *server, "--allow-no-cryptography"])
    assert result.exit_code == 2 and "there is no TLS" in result.output
