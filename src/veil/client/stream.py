"""One bidirectional stream of rows: requests go out at once, replies come back in order, each within a deadline."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

import grpc

from veil.client.connection import Connection
from veil.errors import CorruptMessage
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import unseal


class RowStream:
    """A stream until its first failure; then it is closed and another one has to be opened."""

    def __init__(self, connection: Connection, reply_s: float) -> None:
        self._reply_s = reply_s
        self._connection = connection
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call = connection.both_ways("Evaluate", iter(self._requests.get, None))
        self._deadline = float("inf")
        self._late = False
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="veil-deadline", daemon=True).start()

    def exchange(self, requests: Sequence[bytes], sequences: Sequence[int]) -> list[bytes]:
        """The rows of the replies to sealed requests; raises what the server said, or `ServerUnreachable`."""
        for request in requests:
            self._requests.put(request)
        rows = []
        try:
            for sequence in sequences:
                self._deadline = time.monotonic() + self._reply_s
                reply = unseal(next(self._call), pb.EvaluateReply)
                if reply.sequence != sequence:
                    raise CorruptMessage(f"reply {reply.sequence} came where {sequence} was expected")
                rows.append(reply.rows)
        except grpc.RpcError as error:
            if self._late:
                raise self._connection.unreachable(f"no reply within {self._reply_s:g} s") from None
            raise self._connection.error_from(error) from None
        except StopIteration:
            raise self._connection.unreachable("the server ended the stream") from None
        self._deadline = float("inf")
        return rows

    def close(self) -> None:
        """End the stream."""
        self._closed.set()
        self._requests.put(None)
        self._call.cancel()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._reply_s / 4)):
            if time.monotonic() > self._deadline:
                self._late = True
                self._call.cancel()
                return
