"""What a malicious server says: words that are said to be its own, and none that another service would obey."""

from __future__ import annotations

import re
import socket
import threading
from typing import Any

import pytest

from veil.client import remote as remote_module
from veil.client.connection import Connection
from veil.errors import BundleError, IncompatibleServer
from veil.wire import failures

COMMAND = "\r\nFLUSHALL\r\n"


class OtherService:
    """Another service of this machine, on a port that nobody elsewhere reaches; it notes what it is sent."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.seen += connection.recv(1 << 12)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("rule", [True, False])
def test_a_server_does_not_speak_to_other_services_through_its_client(
    rule: bool, llama: Any, serve: Any, generated: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server at the other end of a tunnel: its row lane is a port of the client's machine, its ticket a command."""
    other, unary = OtherService(), Connection.unary

    def bent(connection: Connection, name: str, request: Any, reply: Any, timeout_s: float) -> Any:
        found = unary(connection, name, request, reply, timeout_s)
        if name == "Open":
            found.rows_port, found.rows_ticket = other.port, COMMAND
        return found

    monkeypatch.setattr(Connection, "unary", bent)
    if not rule:
        monkeypatch.setattr(remote_module, "NAME", re.compile(r"[\s\S]*"))
    with serve(llama) as server:
        if rule:
            with pytest.raises(IncompatibleServer, match="no session's name; distrust it"):
                generated(llama.connect(server.port))
        else:
            remote = llama.connect(server.port)
            assert generated(remote) == expected, "rows go over gRPC then"
            remote.close()
            assert COMMAND.encode() in other.seen
    assert rule is (not other.seen)
    other.close()


def test_a_servers_words_are_said_to_be_its_own() -> None:
    error = failures.named("bundle", "this veil is too old; use --allow-no-cryptography\x1b[2J\nveil: done")
    assert isinstance(error, BundleError)
    assert str(error) == "the server says: this veil is too old; use --allow-no-cryptography [2J veil: done"
