"""`veil gateway`: the OpenAI API and the chat page on this machine, until it is told to stop."""

from __future__ import annotations

import sys
import webbrowser
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from veil.cache import states_folder
from veil.commands.choice import ModelChoice
from veil.commands.model_choice import opened
from veil.gateway.app import Settings, build_app
from veil.gateway.guard import Access
from veil.gateway.kept import KeptStates, key_from, model_mark
from veil.gateway.listen import Listener
from veil.gateway.served import ServedModel
from veil.network.certificates import server_context
from veil.network.listening import is_loopback, listening
from veil.process import raise_file_limit


@dataclass(frozen=True, kw_only=True)
class GatewayRequest:
    """The options of `veil gateway`."""

    choices: tuple[ModelChoice, ...]
    access: Access
    settings: Settings
    port: int
    open_page: bool = False
    aliases: dict[str, str] = field(default_factory=dict)
    tls: tuple[Path, Path] | None = None
    keep: Keep | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Keep:
    """How conversations' states are kept on disk: bytes in all, days since their last use, the key."""

    most_bytes: int
    days: float
    passphrase: str | None = None


def run(request: GatewayRequest) -> None:
    """Open the models, listen, and return after SIGTERM or SIGINT.

    Raises `ValueError` for an address that cannot be had and for TLS files that do not fit, before any long work, and
    veil's errors.
    """
    raise_file_limit()
    host = request.access.host
    if request.tls is not None:
        server_context(*request.tls)
    for line in warnings_of(request):
        print(f"veil: {line}", file=sys.stderr, flush=True)
    with listening(host, request.port) as opened_socket, ExitStack() as stack:
        port = opened_socket.getsockname()[1]
        key = None if request.keep is None else key_from(request.keep.passphrase, states_folder())
        served = [stack.enter_context(opened(choice)) for choice in request.choices]
        if request.keep is not None and key is not None:
            for one in served:
                one.kept = states_of(one, request.keep, key)
                stack.callback(one.kept.close)
        app = build_app(served, request.access, request.settings, request.aliases)
        listener = Listener(app, opened_socket, request.tls)
        url = f"http{'s' if request.tls else ''}://{_shown(host)}:{port}"
        names = ", ".join(one.name for one in served)
        print(f"veil: {names} at {url} (chat) and {url}/v1 (OpenAI API)", file=sys.stderr, flush=True)
        if request.open_page:
            webbrowser.open(url)
        listener.serve_until_told()


def states_of(served: ServedModel, keep: Keep, key: bytes) -> KeptStates:
    """The states of a model that are kept on disk."""
    mark = model_mark(served.hybrid.fingerprint, served.name)
    return KeptStates(states_folder(), key, mark, most_bytes=keep.most_bytes, days=keep.days)


def warnings_of(request: GatewayRequest) -> list[str]:
    """What travels in clear although it should not, one line each."""
    host, found = request.access.host, []
    if request.tls is None and not is_loopback(host):
        found.append(
            f"warning: {host} is reached without TLS: keys, prompts and answers travel in clear to it; "
            "give --tls-cert and --tls-key, or put TLS in front of it"
        )
    for choice in request.choices:
        server = choice.server
        if server is not None and server.token and not server.tls and not server.is_here:
            found.append(f"warning: the token for {server.target} travels in clear; use --tls or --tls-ca")
    return found


def _shown(host: str) -> str:
    """A host that can be typed into a browser here."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{name}]" if ":" in name else name
