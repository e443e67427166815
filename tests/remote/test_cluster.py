"""A cluster of three replicas on Ray, on this machine: clients at work, one replica killed, one drained, one added."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

import veil
from veil.cluster.controller import Controller
from veil.cluster.front import Front
from veil.cluster.on_ray import RayReplicas, ReplicaPlan
from veil.cluster.placement import Scale
from veil.network.timeouts import Timeouts
from veil.server.config import ServerConfig, server_limits
from waiting import until

pytest.importorskip("ray")

TIMEOUTS = Timeouts(connect_s=20.0, reply_s=20.0, prepare_s=40.0, retry_s=90.0, pause_s=0.05, keepalive_s=5.0)


@pytest.mark.filterwarnings("default")  # Ray's own
def test_every_text_is_the_undisturbed_one(
    llama: Any, generated: Callable[..., list[int]], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from remote.test_front import Sent

    source = str(Path(veil.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # what else runs here is not its business
    config = ServerConfig(port=0, limits=server_limits(8, 0.5))
    plan = ReplicaPlan(halves={"llama": llama.path / "server"}, offers={}, config=config, cpus=1.0, host="127.0.0.1")
    over = threading.Event()
    failures: list[BaseException] = []

    with ExitStack() as started:
        replicas = RayReplicas(plan, num_cpus=5, object_store_memory=80 << 20, _node_ip_address="127.0.0.1")
        started.callback(replicas.close)
        controller = Controller(replicas, Scale(least=3, most=5), drain_s=0.0)
        started.callback(controller.stop)
        front = Front(ServerConfig(port=0), controller.choose, controller.addresses, grpc.insecure_channel)
        started.callback(front.stop)
        started.callback(over.set)

        def step_until(there: int, other_than: frozenset[str] = frozenset(), within_s: float = 180.0) -> None:
            end = time.monotonic() + within_s
            while len(controller.addresses()) != there or other_than == set(controller.addresses()):
                assert time.monotonic() < end, controller.addresses()
                controller.step()

        front.start()
        step_until(3)
        clients = [llama.connect(front.port, timeouts=TIMEOUTS) for _ in range(3)]
        sent = [Sent(client) for client in clients]
        texts: list[list[list[int]]] = [[] for _ in clients]

        def work(place: int) -> None:
            try:
                with torch.random.fork_rng():
                    while not over.is_set():
                        texts[place].append(generated(clients[place]))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(3)]
        for thread in threads:
            thread.start()

        def until_each_wrote(more: int) -> None:
            goal = [len(own) + more for own in texts]
            until(lambda: failures or all(len(own) >= wanted for own, wanted in zip(texts, goal, strict=True)), 120)
            assert not failures

        until_each_wrote(1)
        before = frozenset(controller.addresses())
        first, second, _ = controller.names
        replicas.break_down(first)
        until_each_wrote(2)
        step_until(3, other_than=before)  # Ray restarts it, on another port
        before = frozenset(controller.addresses())
        controller.drain(second)
        step_until(3, other_than=before)  # the controller adds one
        until_each_wrote(2)
        over.set()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert all(text == expected for own in texts for text in own)
        assert sum(len(own.sessions) for own in sent) >= 5
        for own in sent:
            own.check()
        for client in clients:
            client.close()
