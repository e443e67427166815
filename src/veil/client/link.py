"""What the way to a server costs: round-trip time and bandwidth, measured with what the server does no work for."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from veil.client.connection import Address, Connection
from veil.errors import UnknownSession
from veil.network.link import Link
from veil.network.timeouts import Timeouts
from veil.wire import methods
from veil.wire import veil_pb2 as pb

_TRIES = 3
_FAST_BYTES_PER_S = 1.25e9
OF_GRPC_S = 0.001
"""The most that a call takes beyond its round trip where nothing stands between; 0.2 to 0.5 ms on a loopback interface."""


def measure_link(address: Address, timeouts: Timeouts, clock: Callable[[], float] = time.perf_counter) -> Link:
    """Measure over connections of its own, in about twelve round trips.

    The round-trip time is the least that TCP took to connect: rows go over the row lane, without a call's own time. Where
    the least of three calls that close a session which never was takes much longer, something near connects for a server
    further away (a relay, a tunnel), and the call's time it is. The bandwidth follows from what the server's description of
    its bundles, the largest reply that costs it nothing, takes longer than such a call. Where that is less than can be told
    apart, the bandwidth is given as 10 Gbit/s.
    """
    connection = Connection(address, timeouts)
    try:
        connection.describe()
        called_s = min(_empty(connection, timeouts, clock) for _ in range(_TRIES))
        longest, size = 0.0, 0
        for _ in range(_TRIES):
            start = clock()
            reply = connection.unary(
                "Describe", pb.DescribeRequest(protocol=methods.PROTOCOL), pb.DescribeReply, timeouts.connect_s
            )
            taken, size = clock() - start, reply.ByteSize()
            longest = taken if not longest else min(longest, taken)
    finally:
        connection.close()
    extra = longest - called_s
    connected_s = min(called_s, _connected(address, timeouts.connect_s, clock))
    rtt_s = connected_s if called_s - connected_s < OF_GRPC_S else called_s
    return Link(rtt_s=rtt_s, bytes_per_s=min(_FAST_BYTES_PER_S, size / extra) if extra > 0 else _FAST_BYTES_PER_S)


def _empty(connection: Connection, timeouts: Timeouts, clock: Callable[[], float]) -> float:
    start = clock()
    with contextlib.suppress(UnknownSession):
        connection.unary("Close", pb.CloseRequest(session=""), pb.CloseReply, timeouts.connect_s)
    return clock() - start


def _connected(address: Address, within_s: float, clock: Callable[[], float]) -> float:
    """The least time that TCP takes to connect; infinite where it cannot, as behind a proxy that gRPC was told of."""
    host, _, port = address.target.rpartition(":")
    least = float("inf")
    with contextlib.suppress(OSError):
        with socket.create_connection((host.strip("[]"), int(port)), within_s) as first:
            family, place = first.family, first.getpeername()
        for _ in range(_TRIES):
            with socket.socket(family, socket.SOCK_STREAM) as another:
                another.settimeout(within_s)
                start = clock()
                another.connect(place)
                least = min(least, clock() - start)
    return least
