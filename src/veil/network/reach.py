"""Whether somebody listens at an address: a connection that is made and hung up."""

from __future__ import annotations

import socket
import time

from veil.errors import ServerUnreachable

_WITHIN_S = 3.0


def connecting_s(target: str, within_s: float = _WITHIN_S) -> float:
    """Seconds that a connection to ``HOST:PORT`` took; `ServerUnreachable`, with the reason, where there is none."""
    host, _, port = target.rpartition(":")
    begun = time.perf_counter()
    try:
        socket.create_connection((host.strip("[]"), int(port)), within_s).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
        raise ServerUnreachable(
            f"no usable answer from {target} ({reason.lower()}); is 'veil serve' running there, "
            "and are address and TLS right?"
        ) from None
    return time.perf_counter() - begun
