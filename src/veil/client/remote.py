"""The network twin of the in-process transport: deadlines, retries, and resends of identical bytes."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from veil.bundle.client_half import ClientModel
from veil.bundle.fingerprint import fingerprint_of
from veil.client.connection import Address, Connection, OfferedBundle
from veil.client.place import Place, placed_at
from veil.client.stats import Stats
from veil.client.stream import GrpcStream, LaneStream, RowStream
from veil.errors import BundleError, CorruptMessage, IncompatibleServer, ServerUnreachable, VeilError
from veil.flag import Flag
from veil.kernels.interface import Array, Kernels
from veil.network.timeouts import Retries, Timeouts
from veil.params import packed_bytes
from veil.wire import codec, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal
from veil.wire.messages import BatchUpload, Span, rows_of

GOODBYE_S = 4.0
"""Seconds for the last call; a server that does not hear it forgets the session in time."""

SHORTEST_TTL_S = 60
"""Seconds that a server has to keep batches, so that making them offline is worth its while and ends."""

NAME = re.compile("[0-9a-f]{32}")
"""What a server chooses of the first bytes to a port that it chooses, perhaps of another service: 32 digits, no command."""

_LANE_TRIES = 2
"""Retries of one exchange on the row lane before the others go over gRPC."""


class RemoteTransport:
    """A `veil.wire.transport.Transport` to the bundle on a server that is the other half of ``model``'s.

    Rows and uploads go over connections of their own, so that rows do not wait behind a batch. ``name`` chooses
    among several bundles; without it the one with the client's fingerprint is used. ``half`` is the digest of the client
    half that ``model`` comes from: the server has to name the same, each time that a session is opened.
    """

    def __init__(
        self,
        model: ClientModel,
        address: Address,
        kernels: Kernels,
        stats: Stats,
        timeouts: Timeouts,
        half: str,
        name: str | None = None,
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._stats = stats
        self._timeouts = timeouts
        self._half = half
        self._name = name
        self._fingerprint = fingerprint_of(model.params, model.seed, model.manifest)
        self._address = address
        self._place = Place(address.target)
        self._online = Connection(address, timeouts)
        self.offline = Connection(address, timeouts)
        self._lock = threading.Lock()
        self._stopping = Flag()
        self.stream: RowStream | None = None
        self._stream_of = ""
        self._sequence = 0
        self._opening = threading.Lock()  # guards what `open` replaces while rows go: these and the lane
        self._session = ""
        self._released: list[int] = []
        groups = model.manifest.groups
        self._row_sizes = [
            (packed_bytes(group.width, group.input_bits), methods.rows_in_message(model.manifest, index))
            for index, group in enumerate(groups)
        ]
        self._met = False
        self.lane: tuple[int, str] | None = None
        self._largest_reply = methods.largest_message([(model.params, model.manifest)])
        self.batch_ttl_s = float("inf")

    def open(self) -> str:
        """A new session; retries for a while, briefly if the server was never reached."""
        within = self._timeouts.retry_s if self._met else self._timeouts.connect_s
        reply = self.offline.retrying(self._open, self._timeouts.retries(within, self._stopping))
        self._met = True
        self.batch_ttl_s = float(reply.batch_ttl_s)
        with self._opening:
            self._session, self._released = str(reply.session), []
            self.lane = (reply.rows_port, reply.rows_ticket) if 0 < reply.rows_port < 65536 else None
            return self._session

    def prepare(self, session: str, batches: Sequence[BatchUpload], segments: Sequence[str]) -> None:
        """Send batches, once; returns when they are usable."""
        header = pb.PrepareHeader(session=session, batches=len(batches), segments=list(segments))
        data = [(batch.number, self._kernels.to_numpy(batch.data).tobytes()) for batch in batches]
        try:
            self.offline.upload("Prepare", _upload(header, data), pb.PrepareReply, self._timeouts.prepare_s)
        except (ServerUnreachable, CorruptMessage):
            self.offline.renew()
            self._place.failed()
            raise
        self._place.worked()

    def evaluate(self, session: str, group: int, spans: Sequence[Span], data: Array, slots: int) -> Array:
        """Send rows and wait for the results; after a broken stream the same bytes go over a new one."""
        packed, info = self._kernels.to_numpy(data), self._model.manifest.groups[group]
        with self._lock:
            sequences, requests = self._requests(session, group, spans, packed, slots)
            tries: Retries | None = None
            while True:
                try:
                    if self.stream is not None and self._stream_of != self._place.target:
                        self._drop_stream()  # the last session was on another server of the cluster
                    if self.stream is None:
                        self._stream_of = self._place.target
                        self.stream = self._open_stream(session, tries.count if tries else 1)
                    self._check_open()  # when the stream is where `stop` finds it
                    reply = b"".join(self.stream.exchange(requests, sequences))
                    self._place.worked()
                    return codec.rows_from(reply, len(packed), slots, info.result_bits)
                except (ServerUnreachable, CorruptMessage):
                    self._drop_stream()
                    self._check_open()
                    self._stats.reconnects += 1
                    self._place.failed()
                    tries = tries or self._timeouts.retries(stop=self._stopping)
                    if not tries.again():
                        raise
                    self._online.renew()
                except VeilError:
                    self._drop_stream()
                    raise

    def release(self, session: str, batches: Sequence[int]) -> None:
        """Note what the next rows' message of this session will say; nothing where another session was opened."""
        with self._opening:
            if session == self._session:
                self._released += batches

    def stop(self) -> None:
        """End what is under way, from any thread; what is left is `close`, which says goodbye where rows went."""
        self._stopping.set()
        self.offline.close()
        stream = self.stream
        if stream is not None:
            stream.end()

    def close(self, session: str) -> None:
        """End the session if the server can be reached, and the connections."""
        self.stop()
        with self._lock:
            self._drop_stream()
        try:
            request, within_s = pb.CloseRequest(session=session), min(self._timeouts.connect_s, GOODBYE_S)
            self._online.unary("Close", request, pb.CloseReply, within_s)
        except (ServerUnreachable, CorruptMessage):
            pass
        finally:
            self._online.close()

    def _check_open(self) -> None:
        if self._stopping.is_set():
            raise ServerUnreachable("the session was closed") from None

    def _open_stream(self, session: str, tried: int) -> RowStream:
        """The row lane where it works, else gRPC; a lane that cannot be reached is not tried again in this session."""
        lane = self.lane
        if lane is not None and tried <= _LANE_TRIES:
            try:
                return LaneStream(self._online, session, lane, self._timeouts, self._largest_reply)
            except (OSError, ServerUnreachable, CorruptMessage):
                with self._opening:
                    if self.lane is lane:
                        self.lane = None
        return GrpcStream(self._online, self._timeouts.reply_s)

    def _open(self) -> pb.OpenReply:
        """A session here, or where the front of a cluster would have it."""
        if self._place.moved:
            self._move(self._address)
        reply = self._open_at(self.offline)
        if reply.server:
            self._move(placed_at(self._address, reply.server))
            reply = self._open_at(self.offline)
            if reply.server:
                raise IncompatibleServer("the server that a cluster named would have the session elsewhere again")
        return reply

    def _move(self, address: Address) -> None:
        """Go on at another server, over connections of its own."""
        old = self._online, self.offline
        self._online, self.offline = Connection(address, self._timeouts), Connection(address, self._timeouts)
        self._place = Place(address.target, moved=address.target != self._address.target)
        for connection in old:
            connection.close()
        if self._stopping.is_set():
            self.offline.close()

    def _open_at(self, connection: Connection) -> pb.OpenReply:
        request = pb.OpenRequest(protocol=methods.PROTOCOL, bundle=self._choose(), fingerprint=self._fingerprint)
        reply = connection.unary("Open", request, pb.OpenReply, self._timeouts.connect_s)
        if reply.server:
            return reply
        if not (NAME.fullmatch(reply.session) and (not reply.rows_port or NAME.fullmatch(reply.rows_ticket))):
            raise IncompatibleServer("the server names a session by something that is no session's name; distrust it")
        if reply.batch_ttl_s < SHORTEST_TTL_S:
            raise IncompatibleServer(
                f"the server forgets rows after {reply.batch_ttl_s} s: a client would make them for ever; ask its operator "
                f"for {SHORTEST_TTL_S} s at least, or use another server"
            )
        return reply

    def _choose(self) -> str:
        served = self.offline.describe()
        names = ", ".join(repr(bundle.name) for bundle in served) or "nothing"
        if self._name is not None and self._name not in [bundle.name for bundle in served]:
            raise BundleError(f"the server has no bundle named {self._name!r}; it serves {names}")
        for bundle in served:
            if bundle.name == self._name or (self._name is None and bundle.fingerprint == self._fingerprint):
                self.check_half(bundle)
                return bundle.name
        raise BundleError(
            f"none of the server's bundles ({names}) is the other half of yours (digest {self._fingerprint[:16]}…); "
            "fetch its client half with 'veil pull'"
        )

    def check_half(self, bundle: OfferedBundle) -> None:
        """Raise `BundleError` if the server compiled the bundle with another client half."""
        if bundle.digest != self._half:
            raise BundleError(
                f"the server has another client half of {bundle.name!r}: its digest is {bundle.digest}, yours {self._half}; "
                "ask the operator which is right, then fetch it with 'veil pull', or name another bundle"
            )

    def _requests(
        self, session: str, group: int, spans: Sequence[Span], data: NDArray[np.uint8], slots: int
    ) -> tuple[list[int], list[bytes]]:
        _, step = self._row_sizes[group]
        sequences, requests, first = [], [], 0
        for part in _cut(spans, step):
            last = first + rows_of(part)
            self._sequence += 1
            with self._opening:
                released: list[int] = []
                if session == self._session:
                    released, self._released = self._released, released
            request = pb.EvaluateRequest(
                session=session,
                sequence=self._sequence,
                group=group,
                spans=codec.flat_spans(part),
                release=released,
                rows=data[first:last].tobytes(),
                slots=0 if slots == self._model.manifest.groups[group].rows else slots,
            )
            sequences.append(self._sequence)
            requests.append(seal(request))
            first = last
        return sequences, requests

    def _drop_stream(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def _upload(header: pb.PrepareHeader, batches: Sequence[tuple[int, bytes]]) -> Iterator[bytes]:
    yield seal(pb.PrepareRequest(header=header))
    for number, data in batches:
        yield seal(pb.PrepareRequest(batch=pb.PrepareBatch(number=number, data=data)))


def _cut(spans: Sequence[Span], step: int) -> list[list[Span]]:
    """Spans in parts of up to ``step`` rows."""
    parts: list[list[Span]] = []
    room = 0
    for span in spans:
        first, count = span.first, span.count
        while count:
            if not room:
                parts.append([])
                room = step
            own = min(count, room)
            parts[-1].append(Span(span.batch, first, own))
            first, count, room = first + own, count - own, room - own
    return parts
