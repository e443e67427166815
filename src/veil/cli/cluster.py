"""`veil cluster`: its options and help; `veil.commands.cluster` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.cli.options import Device
from veil.cli.reach import sign_of_life


def command(
    bundles: Annotated[
        list[str], typer.Argument(metavar="BUNDLE/server...", help="Server halves, as PATH or NAME=PATH, on every node.")
    ],
    offer: Annotated[
        list[str] | None, typer.Option(metavar="BUNDLE/client", help="A client half for `veil pull`; may be repeated.")
    ] = None,
    host: Annotated[str, typer.Option(help="The front's address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The front's port; 0 takes a free one.")] = 8471,
    replica_host: Annotated[
        str | None,
        typer.Option(help="The address that replicas listen on and clients reach them by.", show_default="their node's"),
    ] = None,
    least: Annotated[int, typer.Option(min=1, help="The fewest replicas.")] = 1,
    most: Annotated[int | None, typer.Option(min=1, help="The most replicas.", show_default="the fewest")] = None,
    device: Annotated[Device, typer.Option(help="Where replicas compute.")] = Device.cpu,
    gpus: Annotated[int, typer.Option(min=1, max=16, help="GPUs of each replica.")] = 1,
    cpus: Annotated[float, typer.Option(min=0.1, help="Cores that Ray keeps for each replica.")] = 2.0,
    drain_s: Annotated[float, typer.Option(min=0.0, help="How long a replica that drains keeps its sessions.")] = 300.0,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="The Ray cluster, or `auto`.", show_default="one on this machine"),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate chain, of front and replicas.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM file that the front checks replicas' certificate with.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="File of accepted tokens' SHA-256 digests, one a line.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address that other machines reach, without TLS and tokens.")
    ] = False,
    max_sessions: Annotated[int, typer.Option(min=1, help="The most sessions of one replica.")] = 64,
    memory_gib: Annotated[float, typer.Option(min=0.01, help="A replica's memory for batches of rows.")] = 4.0,
) -> None:
    """Serve bundles from replicas on a Ray cluster, behind one address.

    Who opens a session is told which replica has room, and goes there: rows and uploads pass neither the front nor Ray. A
    replica that dies is restarted; its clients open a session on another, with fresh keys, and lose no token. Replicas are
    added above three quarters of their sessions or memory, and drained below one.

    Needs `pip install "veil-llm[cluster]"`. See docs/cluster.md.
    """
    sign_of_life()
    from veil.cluster.on_ray import ReplicaPlan
    from veil.cluster.placement import Scale
    from veil.commands.cluster import ClusterRequest, run
    from veil.commands.halves import named
    from veil.network.tokens import Tokens
    from veil.server.config import ServerConfig, server_limits

    if (tls_cert is None) != (tls_key is None):
        raise ValueError("--tls-cert and --tls-key go together")
    tls = None if tls_cert is None or tls_key is None else (tls_cert.absolute(), tls_key.absolute())
    limits = server_limits(max_sessions, memory_gib)
    accepted = None if tokens is None else Tokens.read(tokens)
    front = ServerConfig(host=host, port=port, rows_port=None, tls=tls, tokens=accepted, insecure=insecure, limits=limits)
    listens = replica_host or ("127.0.0.1" if ray_address is None else "0.0.0.0")  # noqa: S104
    replica = ServerConfig(host=listens, port=0, tls=tls, tokens=accepted, insecure=insecure, limits=limits)
    replica.check()
    halves = {name: path.absolute() for name, path in named(bundles).items()}
    offers = {name: path.absolute() for name, path in named(offer or []).items()}
    reached = replica_host or ("127.0.0.1" if ray_address is None else None)
    run(
        ClusterRequest(
            plan=ReplicaPlan(
                halves=halves, offers=offers, config=replica, device=device.value, gpus=gpus, cpus=cpus, host=reached
            ),
            front=front,
            scale=Scale(least=least, most=most or least),
            drain_s=drain_s,
            ray_address=ray_address,
            authority=tls_ca,
        )
    )
