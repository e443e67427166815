"""`veil serve`: the server, until it is told to stop."""

from __future__ import annotations

import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from veil.cache import data_folder
from veil.commands.halves import named
from veil.commands.terminal import Reporter
from veil.flag import Flag
from veil.kernels.backend import kernels_for
from veil.network.certificates import server_context
from veil.network.tokens import Tokens
from veil.priority import let_helpers_sleep
from veil.server.budget import RowBudget
from veil.server.config import ServerConfig, server_limits
from veil.server.gpus import find_gpus
from veil.server.hosted import build_bundles
from veil.server.listen import Server
from veil.server.logs import LOGGER, JsonLines
from veil.server.store import SessionStore

_GRACE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """The options of `veil serve`; bundles and offers are ``PATH`` or ``NAME=PATH``."""

    bundles: list[str]
    offers: list[str]
    host: str
    port: int
    rows_port: int | None
    device: str
    tls_cert: Path | None
    tls_key: Path | None
    tokens: Path | None
    insecure: bool
    max_sessions: int
    memory_gib: float
    metrics_port: int | None
    rows_per_day: int = 0
    rows_file: Path | None = None
    gpus: int = 1


def run(request: ServeRequest) -> None:
    """Load the bundles, listen, and return after SIGTERM or SIGINT when what ran is finished.

    Raises `ValueError` for options that do not fit, before any long work, and `BundleError`.
    """
    if (request.tls_cert is None) != (request.tls_key is None):
        raise ValueError("--tls-cert and --tls-key go together")
    tls = None if request.tls_cert is None or request.tls_key is None else (request.tls_cert, request.tls_key)
    if tls is not None:
        server_context(*tls)
    limits = server_limits(request.max_sessions, request.memory_gib)
    config = ServerConfig(
        host=request.host,
        port=request.port,
        rows_port=_rows_port(request),
        tls=tls,
        tokens=None if request.tokens is None else Tokens.read(request.tokens),
        insecure=request.insecure,
        limits=limits,
        metrics_port=request.metrics_port,
        budget=_budget(request),
    )
    config.check()
    config.check_ports()
    let_helpers_sleep()
    kernels = kernels_for(request.device)
    gpus = find_gpus(request.device, request.gpus) if request.gpus > 1 else []
    _log_to_stderr()
    store = SessionStore(limits)
    with Reporter() as reporter:
        halves, offers = named(request.bundles), named(request.offers)
        bundles = build_bundles(halves, offers, kernels, reporter.report, gpus=gpus, memory_bytes=limits.memory_bytes)
    for name, served in bundles.items():
        if served.placed:
            print(f"veil: {name} is {served.placed}", file=sys.stderr, flush=True)
    server = Server(bundles, store, config)
    stop = Flag()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    print(f"veil: listening on {request.host}:{server.port}, serving {', '.join(bundles)}", file=sys.stderr, flush=True)
    while not stop.wait(1.0):
        pass
    server.stop(_GRACE_S)


def _budget(request: ServeRequest) -> RowBudget | None:
    if not request.rows_per_day:
        if request.rows_file is not None:
            raise ValueError("--rows-file is where the rows of --rows-per-day are counted; give both")
        return None
    return RowBudget(request.rows_per_day, request.rows_file or data_folder() / f"rows-of-{request.port}.json")


def _rows_port(request: ServeRequest) -> int | None:
    if request.rows_port == 0:
        return None
    if request.rows_port is None:
        return request.port + 1 if 0 < request.port < 65535 else 0
    return request.rows_port


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
