"""Where a client's sessions are: at the server that it was told of, or at one of a cluster's that the front named."""

from __future__ import annotations

from veil.client.connection import Address
from veil.errors import IncompatibleServer, UnknownSession

_MOST_FAILURES = 3


class Place:
    """One server. Behind a front (``moved``) one that fails again and again is given up, with the session on it.

    Giving up is safe at any time: the next session has fresh keys, and rows that were under way are encrypted anew.
    """

    def __init__(self, target: str, *, moved: bool = False) -> None:
        self.target, self.moved = target, moved
        self._failures = 0

    def worked(self) -> None:
        """It answered."""
        self._failures = 0

    def failed(self) -> None:
        """It did not; raises `UnknownSession` where another server of the cluster is to be asked for."""
        self._failures += 1
        if self.moved and self._failures >= _MOST_FAILURES:
            raise UnknownSession("the server that had the session is gone; open a new one with fresh keys")


def placed_at(front: Address, target: str) -> Address:
    """The address that a front named; `IncompatibleServer` for one that this client would not go to by itself."""
    try:
        return front.elsewhere(target)
    except ValueError as error:
        raise IncompatibleServer(f"the front of the cluster names a server that cannot be used: {error}") from None
