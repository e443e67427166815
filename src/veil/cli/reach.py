"""Before anything heavy is loaded: whether a server is there at all, and a first sign of life."""

from __future__ import annotations

import os
import sys

from veil.network.reach import connecting_s

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


def try_to_reach(target: str, *, proxied: bool) -> None:
    """Connect to ``HOST:PORT`` and hang up; `ServerUnreachable` where that fails.

    Nothing is tried where the way may lead over a proxy that the environment names (``proxied``).
    """
    if proxied and any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    connecting_s(target)


def sign_of_life() -> None:
    """Say that the command has begun: loading the libraries takes seconds, and the first time longer."""
    if "torch" in sys.modules:
        return  # there is nothing to wait for
    print("veil: starting", file=sys.stderr, flush=True)
