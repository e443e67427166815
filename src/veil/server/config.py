"""How a server listens, and what is refused there before anything is loaded."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from veil.network.listening import is_loopback, listening
from veil.network.tokens import Tokens
from veil.server.budget import RowBudget
from veil.server.store import Limits
from veil.wire import methods


def server_limits(max_sessions: int = 64, memory_gib: float = 4.0) -> Limits:
    """The limits of a server on a network; one token may hold a quarter of the sessions."""
    return Limits(
        max_sessions=max_sessions,
        max_sessions_per_owner=max(1, max_sessions // 4),
        max_batches_per_session=64,
        memory_bytes=int(memory_gib * (1 << 30)),
        session_ttl_s=900.0,
        batch_ttl_s=3600.0,
    )


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How a server listens. ``port`` 0 takes a free one; ``tls`` are the PEM files of certificate and key.

    ``insecure`` allows an address that others can reach without TLS or without tokens. ``rows_port`` is the row lane's, None
    for no lane.
    """

    host: str = "127.0.0.1"
    port: int = methods.DEFAULT_PORT
    rows_port: int | None = 0
    tls: tuple[Path, Path] | None = None
    tokens: Tokens | None = None
    insecure: bool = False
    limits: Limits = field(default_factory=server_limits)
    metrics_port: int | None = None
    call_s: float = 120.0
    silent_s: float = 300.0
    sweep_s: float = 2.0
    most_batches: int = 2
    budget: RowBudget | None = None

    def check(self) -> None:
        """Raise `ValueError` for an address that others can reach and that is not protected."""
        if self.insecure or is_loopback(self.host):
            return
        missing = [name for name, there in (("TLS", self.tls), ("list of tokens", self.tokens)) if not there]
        if missing:
            raise ValueError(
                f"{self.host} is not a loopback address, and there is no {' and no '.join(missing)}; "
                "give --tls-cert, --tls-key and --tokens, or --insecure if the network is yours alone"
            )

    def check_ports(self) -> None:
        """Raise `ValueError` for a port that is taken or given twice, or an address that is not this machine's."""
        with ExitStack() as held:
            for option, port in (
                ("--port", self.port),
                ("--rows-port", self.rows_port),
                ("--metrics-port", self.metrics_port),
            ):
                if port:
                    held.enter_context(listening(self.host, port, option))
