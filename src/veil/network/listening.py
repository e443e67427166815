"""A socket that listens: the row lane's, the gateway's, and those that are tried before long work."""

from __future__ import annotations

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether only this machine is meant by the address; a name other than ``localhost`` counts as another's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listening(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket that listens on a name, or an address of either family, in brackets or not; port 0 takes a free one.

    Raises `ValueError`, which names the ``option`` to choose another with, for an address that cannot be had.
    """
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        raise ValueError(f"cannot listen on {host}:{port} ({reason}); choose another {option} or --host") from None
