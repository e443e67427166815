"""`GET /metrics` for Prometheus: counts, seconds and bytes. No label or value follows from what was asked or answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from veil.gateway.statuses import ERRORS

if TYPE_CHECKING:
    from veil.gateway.app import Gateway


class _Models:
    """What is read of every model when somebody asks."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        """The families."""
        gateway = self._gateway
        for name, text, value in (
            ("running", "Answers that run", gateway.queue.running),
            ("waiting", "Requests that wait", gateway.queue.waiting),
        ):
            yield GaugeMetricFamily(f"veil_gateway_{name}", text, value)
        ready = GaugeMetricFamily("veil_gateway_rows_ready", "Rows that are ready", labels=["model", "kind"])
        up = GaugeMetricFamily("veil_gateway_server_up", "Whether the model's server answers", labels=["model"])
        rows = CounterMetricFamily("veil_gateway_rows", "Encrypted rows sent", labels=["model"])
        tokens = CounterMetricFamily(
            "veil_gateway_tokens", "Tokens of prompts, of them known, made", labels=["model", "kind"]
        )
        seconds = CounterMetricFamily("veil_gateway_seconds", "Seconds of answers by phase", labels=["model", "phase"])
        moved = CounterMetricFamily("veil_gateway_bytes", "Payload bytes", labels=["model", "direction"])
        for one in gateway.models.all:
            name, stats, served = one.served.name, one.generator.totals, one.served
            ready.add_metric([name, "tokens"], served.hybrid.rows_ready.tokens)
            ready.add_metric([name, "prompt"], served.hybrid.rows_ready.prompt_rows)
            up.add_metric([name], float(served.lost_s is None))
            rows.add_metric([name], stats.rows)
            for kind, count in one.generator.counted.items():
                tokens.add_metric([name, kind], count)
            for phase, spent in stats.seconds.items():
                seconds.add_metric([name, phase], spent)
            moved.add_metric([name, "up"], stats.bytes_up_offline + stats.bytes_up_online)
            moved.add_metric([name, "down"], stats.bytes_down_offline + stats.bytes_down_online)
        yield from (ready, up, rows, tokens, seconds, moved)


class RequestCounter:
    """ASGI middleware: counts replies by route and status."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._replies = Counter("veil_gateway_replies", "Replies", ["route", "status"], registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")  # never the path itself, which may be anything
                self._replies.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


def add_to(app: FastAPI, gateway: Gateway) -> None:
    """The route, and the counting of replies."""
    registry = CollectorRegistry()
    registry.register(_Models(gateway))
    app.add_middleware(RequestCounter, registry=registry)

    @app.get("/metrics", response_class=PlainTextResponse, responses=ERRORS)
    async def metrics() -> Response:
        """Counters in Prometheus's text format; they need a key where the API does."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
