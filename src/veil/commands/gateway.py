"""`veil gateway`: the OpenAI API and the chat page on this machine, until it is told to stop."""

from __future__ import annotations

import sys
import webbrowser
from dataclasses import dataclass

from veil.commands.served import ModelChoice, opened
from veil.gateway.app import Settings, build_app
from veil.gateway.guard import Access
from veil.gateway.listen import Listener
from veil.process import raise_file_limit
from veil.wire.listening import listening


@dataclass(frozen=True, kw_only=True)
class GatewayRequest:
    """The options of `veil gateway`."""

    choice: ModelChoice
    access: Access
    settings: Settings
    port: int
    open_page: bool = False


def run(request: GatewayRequest) -> None:
    """Open the model, listen, and return after SIGTERM or SIGINT.

    Raises `ValueError` for an address that cannot be had, before any long work, and veil's errors.
    """
    raise_file_limit()
    host = request.access.host
    with listening(host, request.port) as opened_socket:
        port = opened_socket.getsockname()[1]
        with opened(request.choice) as served:
            listener = Listener(build_app(served, request.access, request.settings), opened_socket)
            url = f"http://{_shown(host)}:{port}"
            print(f"veil: {served.name} at {url} (chat) and {url}/v1 (OpenAI API)", file=sys.stderr, flush=True)
            if request.open_page:
                webbrowser.open(url)
            listener.serve_until_told()


def _shown(host: str) -> str:
    """A host that can be typed into a browser here."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]" if ":" in name else name
