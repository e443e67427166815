"""Whether a server can be reached at all: asked in a moment, before anything long, and again while a gateway runs."""

from __future__ import annotations

import grpc

from veil.client.connection import Address

_WITHIN_S = 2.0
_UNREACHED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def answers(server: Address, within_s: float = _WITHIN_S) -> bool:
    """Whether a server answers the standard health service over a new connection; any answer of its own will do."""
    channel = server.channel(within_s)
    try:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=within_s)
    except grpc.RpcError as error:
        return error.code() not in _UNREACHED
    finally:
        channel.close()
    return True
