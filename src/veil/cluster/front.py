"""The front of a cluster: describes what the replicas serve and says where a session is opened. No row comes here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from veil.errors import IncompatibleServer, QuotaExceeded, ServerUnreachable, VeilError
from veil.network.grpc_options import server_options
from veil.network.listening import listening
from veil.server.config import ServerConfig
from veil.server.logs import event
from veil.wire import failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal

_FORWARD_S = 30.0
_THREADS = 32


class Front:
    """Listens with the protection of ``config``. ``choose`` names the replica for a session, ``addresses`` are all of them.

    ``channel(address)`` connects to a replica, for descriptions and for files that it offers.
    """

    def __init__(
        self,
        config: ServerConfig,
        choose: Callable[[], str | None],
        addresses: Callable[[], Iterable[str]],
        channel: Callable[[str], grpc.Channel],
    ) -> None:
        config.check()
        self._config, self._choose, self._addresses, self._channel = config, choose, addresses, channel
        handlers = {
            "Describe": grpc.unary_unary_rpc_method_handler(self._describe),
            "Fetch": grpc.unary_stream_rpc_method_handler(partial(self._forward, "Fetch")),
            "Open": grpc.unary_unary_rpc_method_handler(self._open),
        }
        self._health = health.HealthServicer()
        self._grpc = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="veil-front"),
            handlers=[grpc.method_handlers_generic_handler(methods.SERVICE, handlers)],
            options=[*server_options(methods.SMALL_MESSAGE), ("grpc.server_handshake_timeout_ms", 5_000)],
            maximum_concurrent_rpcs=4 * _THREADS,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        self.port = self._listen()

    def start(self) -> None:
        """Begin to answer; `ready` says when there is a replica."""
        self._grpc.start()

    def ready(self, there: bool) -> None:
        """Whether sessions can be opened, for health checks."""
        status = health_pb2.HealthCheckResponse.SERVING if there else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", methods.SERVICE):
            self._health.set(name, status)

    def stop(self, grace_s: float = 1.0) -> None:
        """Take no new calls."""
        self._health.enter_graceful_shutdown()
        self._grpc.stop(grace_s).wait()

    def _listen(self) -> int:
        listening(self._config.host, self._config.port).close()  # so that an error names the option
        address = f"{self._config.host}:{self._config.port}"
        if self._config.tls is None:
            return int(self._grpc.add_insecure_port(address))
        certificate, key = (path.read_bytes() for path in self._config.tls)
        return int(self._grpc.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)])))

    def _owner(self, context: grpc.ServicerContext) -> None:
        if self._config.tokens is not None:
            given = dict(context.invocation_metadata()).get("authorization", "")
            self._config.tokens.owner(str(given).removeprefix("Bearer ").strip())

    def _open(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            self._owner(context)
            request = unseal(data, pb.OpenRequest)
            if request.protocol != methods.PROTOCOL:
                raise IncompatibleServer(f"the cluster speaks protocol {methods.PROTOCOL}; update the older one")
            address = self._choose()
            if address is None:
                raise QuotaExceeded("every replica of the cluster has its most sessions; try again later")
            event("placed", server=address, bundle=request.bundle)
            return seal(pb.OpenReply(server=address))
        except VeilError as error:
            self._fail(context, error)

    def _describe(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        return next(self._forward("Describe", data, context))

    def _forward(self, name: str, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """The same call at any replica; what its client may do there is checked there."""
        metadata = [pair for pair in context.invocation_metadata() if pair[0] == "authorization"]
        for address in self._addresses():
            with self._channel(address) as channel:
                call = channel.unary_stream(f"/{methods.SERVICE}/{name}")(data, timeout=_FORWARD_S, metadata=metadata)
                try:
                    first = next(call)
                except grpc.RpcError as error:
                    if error.code() == grpc.StatusCode.UNAVAILABLE:
                        continue
                    context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
                    context.abort(error.code(), error.details())
                yield first
                yield from call
                return
        self._fail(context, ServerUnreachable("no replica of the cluster answers now; try again later"))

    def _fail(self, context: grpc.ServicerContext, error: VeilError) -> NoReturn:
        code, name = failures.status_of(error)
        context.set_trailing_metadata(((failures.ERROR_KEY, name),))
        context.abort(code, str(error))
        raise AssertionError
