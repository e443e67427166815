"""Streams of rows: requests go out, replies come back in order, each within a deadline. Two kinds, used alike."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import grpc

from veil.client.connection import Connection
from veil.errors import CorruptMessage, VeilError
from veil.flag import Flag
from veil.network.frames import Frames
from veil.network.timeouts import Timeouts
from veil.wire import failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal

_REACH_S = 2.0


class RowStream(Protocol):
    """What carries rows until its first failure; then it is closed and another one has to be opened."""

    def exchange(self, requests: Sequence[bytes], sequences: Sequence[int]) -> list[bytes]:
        """The rows of the replies to sealed requests; raises what the server said, or `ServerUnreachable`."""

    def end(self) -> None:
        """End the exchange that is under way, and the stream with it, from any thread."""

    def close(self) -> None:
        """End the stream and free it; for the thread that uses it."""


class _Deadline:
    """Calls ``end`` from a thread of its own, and is ``late``, when what was begun is not done in time."""

    def __init__(self, end: Callable[[], object], shortest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.late = False
        self._clock = clock
        self._end, self._look_s = end, min(1.0, shortest_s / 4)
        self._at = float("inf")
        self._over = Flag()
        threading.Thread(target=self._watch, name="veil-deadline", daemon=True).start()

    def begin(self, within_s: float) -> None:
        """Something begins that may take so long."""
        self._at = self._clock() + within_s

    def done(self) -> None:
        """It is done."""
        self._at = float("inf")

    def close(self) -> None:
        """End the thread."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(self._look_s):
            if self._clock() > self._at:
                self.late = True
                self._end()
                return


class GrpcStream:
    """A stream until its first failure; then it is closed and another one has to be opened.

    gRPC carries it in a thread of its own, which Ctrl-C does not reach: a call that is cut off as it begins is one that
    its channel waits for, for ever, when it is closed.
    """

    def __init__(self, connection: Connection, reply_s: float) -> None:
        self._reply_s = reply_s
        self._connection = connection
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one reply each, so that no others are kept
        self._replies: queue.SimpleQueue[bytes | VeilError] = queue.SimpleQueue()
        self._call: grpc.Call | None = None
        self._ended = False
        threading.Thread(target=self._carry, name="veil-stream", daemon=True).start()

    def exchange(self, requests: Sequence[bytes], sequences: Sequence[int]) -> list[bytes]:
        """The rows of the replies to sealed requests; raises what the server said, or `ServerUnreachable`."""
        for request in requests:
            self._requests.put(request)
        rows = []
        for sequence in sequences:
            self._asked.put(True)
            try:
                came = self._replies.get(timeout=self._reply_s)
            except queue.Empty:
                raise self._connection.unreachable(f"no reply within {self._reply_s:g} s") from None
            if isinstance(came, VeilError):
                raise came
            reply = unseal(came, pb.EvaluateReply)
            if reply.sequence != sequence:
                raise CorruptMessage(f"reply {reply.sequence} came where {sequence} was expected")
            rows.append(reply.rows)
        return rows

    def end(self) -> None:
        """End the exchange that is under way, and the stream with it, from any thread."""
        self._ended = True
        call = self._call
        if call is not None:
            call.cancel()

    def close(self) -> None:
        """End the stream."""
        self._requests.put(None)
        self._asked.put(False)
        self.end()

    def _carry(self) -> None:
        try:
            self._call = call = self._connection.both_ways("Evaluate", iter(self._requests.get, None))
            if self._ended:
                call.cancel()
            while self._asked.get():
                self._replies.put(next(call))
        except StopIteration:
            self._replies.put(self._connection.unreachable("the server ended the stream"))
        except grpc.RpcError as error:
            self._replies.put(self._connection.error_from(error))
            error.__traceback__ = None  # it is the call: with its frames it would be garbage, collected in any thread
        except VeilError as error:
            self._replies.put(error)
        finally:
            self._call = None


class LaneStream:
    """The server's row lane: a plain connection that the calling thread reads and writes itself."""

    def __init__(
        self,
        connection: Connection,
        session: str,
        lane: tuple[int, str],
        timeouts: Timeouts,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        port, ticket = lane
        self._connection = connection
        self._within_s = min(timeouts.connect_s, _REACH_S)
        self._frames = Frames(connection.address.socket(port, self._within_s), limit)
        self._deadline = _Deadline(self.end, min(self._within_s, timeouts.reply_s), clock)
        try:
            hello = pb.LaneHello(protocol=methods.PROTOCOL, session=session, ticket=ticket)
            self.exchange([seal(hello)], [0])
        except BaseException:
            self.close()
            raise
        self._within_s = timeouts.reply_s
        self._frames.connection.settimeout(timeouts.reply_s)  # of each read; the deadline is of them all
        self._frames.busy_poll = True

    def exchange(self, requests: Sequence[bytes], sequences: Sequence[int]) -> list[bytes]:
        """The rows of the replies to sealed requests; raises what the server said, or `ServerUnreachable`."""
        rows = []
        try:
            for request, sequence in zip(requests, sequences, strict=True):
                self._deadline.begin(self._within_s)
                self._frames.send(request)
                reply = unseal(self._frames.receive(), pb.EvaluateReply)
                if reply.error:
                    raise failures.named(reply.error, reply.details)
                if reply.sequence != sequence:
                    raise CorruptMessage(f"reply {reply.sequence} came where {sequence} was expected")
                rows.append(reply.rows)
        except (OSError, CorruptMessage) as error:
            if self._deadline.late or isinstance(error, TimeoutError):
                raise self._connection.unreachable(f"no reply within {self._within_s:g} s") from None
            if isinstance(error, CorruptMessage):
                raise
            raise self._connection.unreachable(f"the connection for rows broke: {error}") from None
        self._deadline.done()
        return rows

    def end(self) -> None:
        """End the exchange that is under way, and the stream with it, from any thread."""
        self._frames.end()

    def close(self) -> None:
        """End the connection."""
        self._deadline.close()
        self._frames.close()
