"""The server that `veil bench load --model` starts: shapes with random weights, on a free port of the loopback interface.

    python -m veil.bench.load_server gpt2 cpu 64 16 [GPUS] [cut|copies] [SESSION_TTL_S]

Prints its port and that of its metrics; it ends with its input.
"""

from __future__ import annotations

import json
import sys


def main(
    model: str,
    device: str,
    max_sessions: str,
    memory_gib: str,
    gpus: str = "1",
    spread: str = "cut",
    session_ttl_s: str = "900",
) -> None:
    """Serve one model's shapes until standard input ends."""
    from dataclasses import replace

    from veil.bench.load_shapes import random_model
    from veil.kernels.backend import kernels_for
    from veil.network.listening import listening
    from veil.priority import let_helpers_sleep
    from veil.server.config import ServerConfig, server_limits
    from veil.server.engine import Engine
    from veil.server.gpus import SpreadEngine, find_gpus
    from veil.server.hosted import HostedBundle
    from veil.server.listen import Server
    from veil.server.store import SessionStore

    let_helpers_sleep()
    limits = replace(server_limits(int(max_sessions), float(memory_gib)), session_ttl_s=float(session_ttl_s))
    half = random_model(model)
    if int(gpus) == 1:
        made: list[Engine] = [Engine.build(half, kernels_for(device))]
    else:
        devices = [gpu.kernels for gpu in find_gpus(device, int(gpus))]
        cut = spread == "cut"
        made = [SpreadEngine.over(half, devices)] if cut else [Engine.build(half, own) for own in devices]
    hosted = HostedBundle(made[0], "0" * 64, None, tuple(made[1:]))
    with listening("127.0.0.1", 0, "--metrics-port") as free:
        metrics_port = int(free.getsockname()[1])
    config = ServerConfig(port=0, limits=limits, metrics_port=metrics_port)
    server = Server({model: hosted}, SessionStore(limits), config)
    server.start()
    print(json.dumps({"port": server.port, "metrics_port": metrics_port}), flush=True)
    sys.stdin.read()
    server.stop(1.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
