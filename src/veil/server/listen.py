"""A running server: listening, health, metrics, expiry and a shutdown that finishes what runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2

from veil.given import path_given, text_given
from veil.kernels.backend import kernels_for
from veil.network.grpc_options import server_options
from veil.params import packed_bytes
from veil.process import raise_file_limit
from veil.progress import Progress
from veil.server.admission import Admission
from veil.server.arrivals import room_for
from veil.server.config import ServerConfig
from veil.server.hosted import HostedBundle, build_bundles, name_of, server_half
from veil.server.lane import RowLane
from veil.server.logs import event
from veil.server.loops import RowLoops
from veil.server.metrics import Metrics
from veil.server.scheduler import PreparationWorker
from veil.server.service import Service, Shared
from veil.server.stages import Stages
from veil.server.store import SessionStore
from veil.server.unproven import FIRST_S
from veil.wire import methods


def _against_floods(threads: int) -> list[tuple[str, int]]:
    """gRPC's options against connections that are there to be many; some files are left for everything else."""
    return [
        ("grpc.server_handshake_timeout_ms", int(1000 * FIRST_S)),
        ("grpc.max_connection_idle_ms", 600_000),
        ("grpc.max_concurrent_streams", 100),
        ("grpc.max_allowed_incoming_connections", max(64, raise_file_limit() - 2 * threads - 256)),
    ]


class Server:
    """A server for some bundles. `start`, then `stop`; ``port`` is the one that it listens on.

    `open` makes one from folders. Used in a ``with`` statement it starts, and stops at the block's end.
    """

    def __init__(self, bundles: dict[str, HostedBundle], store: SessionStore, config: ServerConfig) -> None:
        config.check()
        self.config = config
        self.store = store
        self.metrics = Metrics()
        admission = Admission(store)
        self._worker = PreparationWorker(admission, config.most_batches, self.metrics.computed)
        models = [served.engine.model for served in bundles.values()]
        message_bytes = methods.largest_message((model.params, model.manifest) for model in models)
        threads = 4 * min(config.limits.max_sessions, 64) + 16
        most_streams = threads // 4 if config.tokens else 3 * threads // 4  # a session has two at most; others have the rest
        self._stages = Stages(self.metrics.staged)
        self.metrics.before_reading(self._stages.flush)
        row_bytes = max(packed_bytes(own.width, own.input_bits) for model in models for own in model.manifest.groups)
        places, room = 0 if config.rows_port is None else threads, min(room_for(row_bytes), message_bytes)
        self._loops = RowLoops(list(bundles.values()), store, self._stages, places=places, room=room)
        self.service = Service(
            Shared(
                bundles,
                admission,
                self._worker,
                self._loops,
                self.metrics,
                config.tokens,
                message_bytes,
                config.call_s,
                most_streams,
                threads // 2,
                config.budget,
            )
        )
        self._health = health.HealthServicer()
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="veil-call")
        self._grpc = grpc.server(
            self._pool,
            handlers=[self.service.handler(), self.service.health_handler(self._check_health)],
            options=[*server_options(message_bytes), *_against_floods(threads)],
            maximum_concurrent_rpcs=4 * threads,  # a moment's crowd waits for threads
        )
        self._ended = threading.Event()
        self._stop_metrics: Callable[[], None] | None = None
        self.port = self._listen()
        self.lane = self._open_lane(message_bytes, threads)
        self._gauges()

    @classmethod
    def open(
        cls,
        bundles: str | Path | Mapping[str, str | Path],
        config: ServerConfig | None = None,
        *,
        offer: bool = True,
        device: str = "auto",
        progress: Progress | None = None,
        hints: Path | None = None,
    ) -> Server:
        """A server for the bundle in a folder, or for several by their names; `start` has it answer.

        A folder is what ``veil compile`` or `HybridFHEModel.save` made, or its ``server`` half alone. With ``offer`` the
        ``client`` half beside it can be fetched by clients. Without ``config`` it listens on a free port of this machine's
        own. The hint is built now, which takes seconds to minutes; ``hints`` is a folder where it is kept for the next time.
        Raises `BundleError`, and `ValueError` for an address that others reach and that is not protected.
        """
        config = config or ServerConfig(port=0)
        config.check()
        if not isinstance(bundles, Mapping):
            bundles = {name_of(path_given("bundles", bundles)): bundles}
        named = {text_given("a bundle's name", name): path_given(f"bundle {name!r}", path) for name, path in bundles.items()}
        halves = {name: server_half(Path(path)) for name, path in named.items()}
        beside = {name: half.with_name("client") for name, half in halves.items() if half.with_name("client").is_dir()}
        hosted = build_bundles(halves, beside if offer else {}, kernels_for(device), progress, hints)
        return cls(hosted, SessionStore(config.limits), config)

    @property
    def address(self) -> str:
        """``HOST:PORT``, where it listens."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{host}:{self.port}"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to answer."""
        if self.config.metrics_port is not None:
            self._stop_metrics = self.metrics.serve(self.config.host, self.config.metrics_port)
        self._loops.start()
        self._grpc.start()
        if self.lane is not None:
            self.lane.start()
        for name in ("", methods.SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._sweeper = threading.Thread(target=self._sweep, name="veil-sweep", daemon=True)
        self._sweeper.start()
        event("listening", host=self.config.host, port=self.port, tls=self.config.tls is not None)

    def stop(self, grace_s: float = 30.0) -> None:
        """Take no new calls, let running ones finish for ``grace_s``, then end them."""
        event("stopping", grace_s=grace_s)
        self._health.enter_graceful_shutdown()
        ended = self._grpc.stop(grace_s)
        if self.lane is not None:
            self.lane.stop(grace_s)
        while not ended.wait(0.1):
            self.service.calls.cancel_idle()
        self._worker.stop()
        self._loops.stop()
        if self.lane is not None:
            self.lane.close()
        self._ended.set()
        self._pool.shutdown(wait=True)
        if self._stop_metrics is not None:
            self._stop_metrics()
        event("stopped")

    @property
    def queued(self) -> int:
        """Batches that wait to be prepared."""
        return self._worker.waiting

    def _check_health(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        reply: bytes = self._health.Check(health_pb2.HealthCheckRequest.FromString(data), context).SerializeToString()
        return reply

    def _listen(self) -> int:
        address = f"{self.config.host}:{self.config.port}"
        if ":" in self.config.host and not self.config.host.startswith("["):
            address = f"[{self.config.host}]:{self.config.port}"
        try:
            if self.config.tls is None:
                return int(self._grpc.add_insecure_port(address))
            certificate, key = (path.read_bytes() for path in self.config.tls)
            return int(self._grpc.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)])))
        except RuntimeError:
            self._worker.stop()
            raise ValueError(f"cannot listen on {address}: is the port taken, or the certificate not PEM?") from None

    def _open_lane(self, message_bytes: int, most: int) -> RowLane | None:
        config = self.config
        if config.rows_port is None:
            return None
        try:
            lane = RowLane(
                (config.host, config.rows_port),
                config.tls,
                self.service.lane_stream,
                self._loops.add,
                partial(self.metrics.ended, "Rows"),
                message_bytes=message_bytes,
                most=most,
            )
        except (OSError, ValueError) as error:
            self._worker.stop()
            raise ValueError(f"the row lane cannot start: {error}") from None
        self.service.rows_port = lane.port
        return lane

    def _gauges(self) -> None:
        readings: dict[str, tuple[str, Callable[[], float]]] = {
            "sessions": ("Open sessions", lambda: self.store.count),
            "batches_ready": ("Prepared batches that wait for their rows", lambda: self.store.batch_count),
            "batches_queued": ("Batches that wait to be prepared", lambda: self._worker.waiting),
            "batch_memory_bytes": ("Memory of prepared batches", lambda: self.store.used_bytes),
            "cpu_seconds": ("Processor seconds of this process", time.process_time),
            "streams": ("Open streams", lambda: self.service.calls.count + (self.lane.count if self.lane else 0)),
        }
        budget = self.config.budget
        if budget is not None:
            readings["budget_rows"] = ("Rows that one owner may have of a layer in a day", lambda: budget.rows_per_day)
            readings["budget_most_used"] = ("Rows that the busiest owner had of a layer today", lambda: budget.most_used)
            readings["budget_refused"] = ("Rows refused since the start, beyond a budget", lambda: budget.refused)
        for name, (text, read) in readings.items():
            self.metrics.gauge(name, text, read)

    def _sweep(self) -> None:
        while not self._ended.wait(self.config.sweep_s):
            self.store.expire()
            self._stages.flush()
            self.service.calls.cancel_silent(self.config.silent_s)
            if self.lane is not None:
                self.lane.cut_silent(self.config.silent_s)
