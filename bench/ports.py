"""Ports to listen on that nobody else is given, so that a server can come again where it was.

A port that the kernel gave is its own again once it is closed: it may be anybody's next, as a client's too.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _LAST = 20_000, 65_535
"""Below 20,000 are known services, what browsers refuse, and the workers of Ray."""

_BLOCK = 128


def given_by_the_kernel(file: Path = _GIVEN) -> range:
    """The ports that the kernel hands out by itself; what macOS and Windows give where the ``file`` does not say."""
    try:
        first, last = map(int, file.read_text().split())
    except (OSError, ValueError):
        first, last = 49_152, 65_535
    return range(first, last + 1)


def blocks_beside(given: range) -> Sequence[int]:
    """The first ports of the blocks that have none of the ``given`` ones; of all blocks where that leaves none."""
    starts = range(_FIRST, _LAST + 2 - _BLOCK, _BLOCK)
    return [start for start in starts if not range(max(start, given.start), min(start + _BLOCK, given.stop))] or starts


def _ports() -> Iterator[int]:
    """Each port of a block after another that is this process's while it lives: it has the UDP port of the block's first."""
    for start in blocks_beside(given_by_the_kernel()):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mark:
            try:
                mark.bind(("127.0.0.1", start))
            except OSError:
                continue
            mark.detach()  # the process's end closes it
        yield from range(start, start + _BLOCK)
    raise RuntimeError("every port has been used or is somebody else's")


_LOCK, _NEXT = threading.Lock(), _ports()


def own_port(count: int = 1) -> int:
    """The first of ``count`` free ports in a row, which no other call and no other process here is given."""
    row: list[int] = []
    with _LOCK:
        while len(row) < count:
            port = next(_NEXT)
            if row and port != row[-1] + 1:
                row = []
            row = [*row, port] if _is_free(port) else []
    return row[0]


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
