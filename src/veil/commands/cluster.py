"""`veil cluster`: replicas on Ray behind a front, until it is told to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from veil.cluster.controller import Controller
from veil.cluster.front import Front
from veil.cluster.on_ray import RayReplicas, ReplicaPlan
from veil.cluster.placement import Scale
from veil.flag import Flag
from veil.network.grpc_options import LARGEST_DESCRIPTION
from veil.server.config import ServerConfig

_STEP_S = 1.0


@dataclass(frozen=True, kw_only=True)
class ClusterRequest:
    """The options of `veil cluster`. ``authority`` is the PEM file that the front trusts its replicas' certificate by."""

    plan: ReplicaPlan
    front: ServerConfig
    scale: Scale
    drain_s: float
    ray_address: str | None
    authority: Path | None = None


def run(request: ClusterRequest) -> None:
    """Start replicas and the front; return after SIGTERM or SIGINT."""
    request.front.check()
    request.front.check_ports()
    replicas = RayReplicas(request.plan, request.ray_address)
    controller = Controller(replicas, request.scale, drain_s=request.drain_s)
    front = Front(request.front, controller.choose, controller.addresses, channel_to(request))
    stop = Flag()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    front.start()
    print(f"veil: the front listens on {request.front.host}:{front.port}", file=sys.stderr, flush=True)
    there = -1
    while not stop.wait(_STEP_S if there >= 0 else 0.0):
        controller.step()
        if there != (now := len(controller.addresses())):
            there = now
            front.ready(there > 0)
            print(f"veil: {there} of {len(controller.names)} replicas take sessions", file=sys.stderr, flush=True)
    front.stop()
    controller.stop()
    replicas.close()


def channel_to(request: ClusterRequest) -> Callable[[str], grpc.Channel]:
    """How the front reaches a replica: over TLS where replicas have it."""
    authority = None if request.authority is None else request.authority.read_bytes()

    def connect(address: str) -> grpc.Channel:
        options = [("grpc.max_receive_message_length", LARGEST_DESCRIPTION), ("grpc.enable_http_proxy", 0)]
        if request.plan.config.tls is None:
            return grpc.insecure_channel(address, options)
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority), options)

    return connect
