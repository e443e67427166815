"""The server's calls over gRPC: check, hand over to the engine, say what went wrong. See ``veil/wire/veil.proto``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn

import grpc
import numpy as np
from google.protobuf.message import Message

from veil import __version__
from veil.bundle.fingerprint import fingerprint_of, header_of
from veil.errors import BundleError, IncompatibleServer, ServerUnreachable, VeilError, WireError
from veil.network.tokens import Tokens
from veil.server.admission import Admission
from veil.server.budget import RowBudget
from veil.server.calls import OpenCall, OpenCalls
from veil.server.hosted import HostedBundle
from veil.server.logs import alias, event
from veil.server.metrics import Metrics
from veil.server.rows import Products, RowAnswers
from veil.server.scheduler import PreparationWorker
from veil.server.store import SessionStore
from veil.server.unproven import address_of
from veil.wire import failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import M, seal, unseal
from veil.wire.messages import BatchUpload, Upload

Call = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]
_LOG = logging.getLogger("veil.server")


@dataclass(frozen=True, eq=False)
class Shared:
    """What all calls use."""

    bundles: dict[str, HostedBundle]
    admission: Admission
    worker: PreparationWorker
    loop: Products
    metrics: Metrics
    tokens: Tokens | None
    message_bytes: int
    call_s: float
    most_streams: int
    """Of one owner, at once."""

    most_waiting: int = 16
    """Calls before their first message."""

    budget: RowBudget | None = None

    @property
    def store(self) -> SessionStore:
        """All sessions."""
        return self.admission.store


class Service:
    """Handlers of the calls; they take and return sealed bytes."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.calls = OpenCalls(shared.most_streams, shared.most_waiting)
        self.rows_port = 0
        self.described = self._describe()

    def handler(self) -> grpc.GenericRpcHandler:
        """All calls by name, for ``grpc.server``.

        All are streams to gRPC, which would read a message of the others before anybody is asked for a token.
        """
        table = {
            "Describe": self._unary("Describe", pb.DescribeRequest, self.describe),
            "Open": self._open,
            "Prepare": self._upload,
            "Evaluate": self._rows,
            "Close": self._unary("Close", pb.CloseRequest, self.close),
            "Fetch": self._file,
        }
        handlers = {name: grpc.stream_stream_rpc_method_handler(call) for name, call in table.items()}
        return grpc.method_handlers_generic_handler(methods.SERVICE, handlers)

    def health_handler(self, check: Callable[[bytes, grpc.ServicerContext], bytes]) -> grpc.GenericRpcHandler:
        """The standard health service's ``Check``, by whoever asks; no ``Watch``, which would stay open for ever."""

        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            yield check(self.calls.first(messages, context), context)

        handlers = {"Check": grpc.stream_stream_rpc_method_handler(call)}
        return grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)

    # Calls ---------------------------------------------------------------------------------------------------------------

    def describe(self, request: object, owner: str) -> Message:
        """What is served; another protocol version gets the answer too, and can see that it is another."""
        return self.described

    def open(self, request: pb.OpenRequest, owner: str, peer: str = "") -> Message:
        """A new session for the bundle that the client, at the address ``peer``, has the other half of."""
        if request.protocol != methods.PROTOCOL:
            raise IncompatibleServer(
                f"the server speaks protocol {methods.PROTOCOL}, the client {request.protocol}; update the older one"
            )
        served = self._bundle(request.bundle)
        model = served.engine.model
        if request.fingerprint != fingerprint_of(model.params, model.seed, model.manifest):
            raise BundleError(
                f"the client's half is not of the bundle that the server has as {request.bundle!r}; "
                "fetch it again with 'veil pull', or name another bundle"
            )
        limits = self.shared.store.limits
        store = self.shared.store
        session = store.open(owner, store.least_used((served.engine, *served.copies)))
        event("opened", session=alias(session.name), bundle=request.bundle, owner=owner[:8], peer=peer)
        return pb.OpenReply(
            session=session.name,
            session_ttl_s=_whole(limits.session_ttl_s),
            batch_ttl_s=_whole(limits.batch_ttl_s),
            most_batches=_whole(limits.max_batches_per_session),
            message_bytes=self.shared.message_bytes,
            rows_port=self.rows_port,
            rows_ticket=session.ticket if self.rows_port else "",
        )

    def close(self, request: pb.CloseRequest, owner: str) -> Message:
        """Forget a session."""
        session = self.shared.store.find(request.session, owner)
        self.shared.store.close(session)
        event("closed", session=alias(session.name))
        return pb.CloseReply()

    def prepare(self, messages: Iterator[bytes], owner: str) -> Message:
        """Receive one upload, checked piece by piece, and wait until its rows are usable."""
        header = _part(next(messages, b""), "header").header
        session = self.shared.store.find(header.session, owner)
        segments = tuple(header.segments)
        self.shared.admission.check_header(session, segments, header.batches)
        received = 0
        batches: list[BatchUpload] = []
        for data in messages:
            received += len(data)
            part = _part(data, "batch").batch
            if len(batches) == header.batches:
                raise WireError(f"more batches than the {header.batches} that were announced")
            batches.append(BatchUpload(part.number, np.frombuffer(part.data, dtype=np.uint8)))
        if len(batches) != header.batches:
            raise WireError(f"{len(batches)} batches came, {header.batches} were announced")
        upload = Upload(tuple(batches), segments)
        start = time.perf_counter()
        done = self.shared.worker.submit(self.shared.admission.admit(session, upload))
        try:
            done.result(self.shared.call_s)
        except TimeoutError:
            raise ServerUnreachable(f"preparing took longer than {self.shared.call_s:g} s; the server is busy") from None
        self.shared.metrics.moved(received, 0)
        event(
            "prepared",
            logging.DEBUG,  # one for each batch of rows, while tokens are made: the metrics count them
            session=alias(session.name),
            batches=len(batches),
            segments=list(segments),
            bytes=received,
            seconds=round(time.perf_counter() - start, 4),
        )
        return pb.PrepareReply(batches=len(batches))

    def evaluate(self, messages: Iterator[bytes], owner: str, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer rows in order; a new stream of a session ends its older one."""
        stream = self.stream(owner, context.cancel)
        try:
            for data in messages:
                yield stream.answer(data)
        finally:
            stream.end()

    def stream(self, owner: str, cancel: Callable[[], object]) -> RowAnswers:
        """A new stream of rows of an owner."""
        shared = self.shared
        return RowAnswers(shared.admission, shared.loop, shared.metrics, owner, cancel, shared.budget)

    def lane_stream(self, session: str, ticket: str, cancel: Callable[[], object]) -> RowAnswers:
        """A stream of rows on the row lane for a session that ``ticket`` belongs to; `UnknownSession` for another."""
        stream = self.stream(self.shared.store.admit(session, ticket).owner, cancel)
        stream.adopt(session)
        return stream

    def fetch(self, request: pb.FetchRequest, owner: str) -> Iterator[bytes]:
        """The bytes of one offered file."""
        offer = self._bundle(request.bundle).offer
        if offer is None:
            raise BundleError(f"the server does not offer the client's half of {request.bundle!r}")
        for piece in offer.read(request.path):
            self.shared.metrics.moved(0, len(piece))
            yield seal(pb.FetchReply(data=piece))

    # Around every call ---------------------------------------------------------------------------------------------------

    def _unary(self, name: str, kind: type[M], method: Callable[[M, str], Message]) -> Call:
        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            with self._told(name, context):
                owner = self._owner(context)
                yield seal(method(unseal(self.calls.first(messages, context), kind), owner))

        return call

    def _open(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with self._told("Open", context):
            owner = self._owner(context)
            request = unseal(self.calls.first(messages, context), pb.OpenRequest)
            yield seal(self.open(request, owner, address_of(context.peer())))

    def _upload(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with self._watched("Prepare", messages, context) as (call, every):
            yield seal(self.prepare(call.each(every), call.owner))

    def _rows(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with self._watched("Evaluate", messages, context) as (call, every):
            yield from self.evaluate(call.each(every), call.owner, context)

    def _file(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with self._watched("Fetch", messages, context) as (call, every):
            yield from call.each(self.fetch(unseal(next(every), pb.FetchRequest), call.owner))

    @contextmanager
    def _watched(
        self, name: str, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[tuple[OpenCall, Iterator[bytes]]]:
        """A stream that is open while the block runs, with its messages: who makes it is known before the first is read."""
        with self._told(name, context):
            owner = self._owner(context)
            first = self.calls.first(messages, context)
            with self.calls.watch(context, owner) as call:
                yield call, chain((first,), messages)

    @contextmanager
    def _told(self, name: str, context: grpc.ServicerContext) -> Iterator[None]:
        """How a call ended is told to its client and counted; what is no error of veil's is logged, not told."""
        try:
            yield
        except VeilError as error:
            self._fail(context, name, error)
        except grpc.RpcError:
            raise
        except Exception:
            _LOG.exception("a call failed")
            self._fail(context, name, VeilError("the server failed; its log says why"))
        self.shared.metrics.ended(name, "ok")

    def _owner(self, context: grpc.ServicerContext) -> str:
        if self.shared.tokens is None:
            return ""
        given = dict(context.invocation_metadata()).get("authorization", "")
        text = given.decode(errors="replace") if isinstance(given, bytes) else given
        return self.shared.tokens.owner(text.removeprefix("Bearer ").strip())

    def _fail(self, context: grpc.ServicerContext, method: str, error: VeilError) -> NoReturn:
        code, name = failures.status_of(error)
        self.shared.metrics.ended(method, name)
        event("refused", method=method, error=name, peer=address_of(context.peer()))
        context.set_trailing_metadata(((failures.ERROR_KEY, name),))
        context.abort(code, str(error))
        raise AssertionError

    def _bundle(self, name: str) -> HostedBundle:
        served = self.shared.bundles.get(name)
        if served is None:
            raise BundleError(f"the server has no bundle of that name; it has {', '.join(self.shared.bundles)}")
        return served

    def _describe(self) -> Message:
        reply = pb.DescribeReply(protocol=methods.PROTOCOL, version=__version__)
        for name, served in self.shared.bundles.items():
            model = served.engine.model
            files = served.offer.files if served.offer else []
            reply.bundles.add(
                name=name,
                fingerprint=fingerprint_of(model.params, model.seed, model.manifest),
                header=header_of(model.params, model.seed, model.manifest),
                digest=served.digest,
                files=[pb.File(path=file.path, size=file.size, sha256=file.sha256) for file in files],
            )
        return reply


def _part(data: bytes, kind: str) -> pb.PrepareRequest:
    request = unseal(data, pb.PrepareRequest)
    if request.WhichOneof("part") != kind:
        raise WireError(f"an upload goes header, then batches; expected the {kind}")
    return request


def _whole(value: float) -> int:
    return int(min(value, (1 << 32) - 1))
