"""Replicas as Ray actors: resources, restarts and nodes are Ray's; clients reach a replica's own ports."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from veil.cluster.placement import Load
from veil.errors import VeilError
from veil.server.config import ServerConfig
from veil.server.hosted import build_bundles
from veil.server.listen import Server
from veil.server.store import SessionStore

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

_LOG = logging.getLogger("veil.server")
_ANSWER_S = 5.0


class RayUnavailable(VeilError):
    """Ray is not installed, or its cluster cannot be reached."""


@dataclass(frozen=True, kw_only=True)
class ReplicaPlan:
    """What each replica serves and what it asks of its node. Paths have to be there on every node.

    ``host`` is the name or address that clients reach it by; None for its node's.
    """

    halves: dict[str, Path]
    offers: dict[str, Path]
    config: ServerConfig
    device: str = "cpu"
    gpus: int = 1
    cpus: float = 1.0
    host: str | None = None


class Replica:
    """One server inside an actor."""

    def __init__(self, plan: ReplicaPlan) -> None:
        import ray

        from veil.kernels.backend import kernels_for
        from veil.priority import let_helpers_sleep
        from veil.server.gpus import find_gpus

        let_helpers_sleep()
        self._host = plan.host or ray.util.get_node_ip_address()
        self._store = SessionStore(plan.config.limits)
        gpus = find_gpus(plan.device, plan.gpus) if plan.gpus > 1 else []
        kernels = kernels_for(plan.device)
        bundles = build_bundles(plan.halves, plan.offers, kernels, gpus=gpus, memory_bytes=plan.config.limits.memory_bytes)
        self._server = Server(bundles, self._store, replace(plan.config, port=0, rows_port=0, metrics_port=None))
        self._server.start()
        self._most = plan.config.limits.max_sessions

    def load(self) -> Load:
        """See `veil.cluster.placement.Load`."""
        store = self._store
        return Load(
            address=f"{self._host}:{self._server.port}",
            sessions=store.count,
            most_sessions=self._most,
            used_bytes=store.used_bytes,
            memory_bytes=store.limits.memory_bytes,
            queued=self._server.queued,
        )

    def drain(self) -> None:
        """Refuse new sessions."""
        self._store.drain()

    def stop(self) -> None:
        """End sessions and listen no more."""
        self._server.stop(1.0)


class RayReplicas:
    """`veil.cluster.controller.Replicas` on the cluster at ``address``; None starts one on this machine."""

    def __init__(self, plan: ReplicaPlan, address: str | None = None, **options: object) -> None:
        try:
            import ray
        except ImportError:
            raise RayUnavailable("a cluster needs Ray; run `pip install 'veil-llm[cluster]'`") from None
        self._ray, self._plan = ray, plan
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RayUnavailable(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from None
        self._actors: dict[str, ActorHandle] = {}
        self._waiting: dict[str, ObjectRef] = {}
        self._made = 0

    def start(self) -> str:
        """See `Replicas.start`."""
        self._made += 1
        name = f"replica-{self._made}"
        on_gpu = self._plan.device == "cuda"
        options = {"num_cpus": self._plan.cpus, "num_gpus": self._plan.gpus if on_gpu else 0}
        actor = self._ray.remote(Replica).options(max_restarts=-1, max_concurrency=4, **options)
        self._actors[name] = actor.remote(self._plan)
        return name

    def load(self, name: str) -> Load | None:
        """See `Replicas.load`. A replica that is starting is asked once and heard later."""
        waiting = self._waiting.pop(name, None) or self._actors[name].load.remote()
        try:
            done, _ = self._ray.wait([waiting], timeout=_ANSWER_S if not self._waiting else 0.1)
            if not done:
                self._waiting[name] = waiting
                return None
            found: Load = self._ray.get(waiting)
            return found
        except self._ray.exceptions.RayError as error:
            _LOG.warning("%s does not answer: %s", name, type(error).__name__)
            return None

    def drain(self, name: str) -> None:
        """See `Replicas.drain`."""
        self._actors[name].drain.remote()

    def end(self, name: str) -> None:
        """See `Replicas.end`."""
        actor = self._actors.pop(name)
        self._waiting.pop(name, None)
        try:
            self._ray.get(actor.stop.remote(), timeout=_ANSWER_S)
        except (self._ray.exceptions.RayError, TimeoutError):
            _LOG.info("%s was gone already", name)
        self._ray.kill(actor)

    def break_down(self, name: str) -> None:
        """Let its process die as by an accident; Ray restarts it."""
        self._ray.kill(self._actors[name], no_restart=False)

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()
