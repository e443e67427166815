"""Prometheus metrics: counts, bytes and seconds. No label or value follows from a payload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, start_http_server

from veil.server.unproven import FIRST_S


class _Latest:
    """Has what was counted elsewhere told when metrics are read; a registry asks in order, so it is the first of all."""

    def __init__(self) -> None:
        self.told: list[Callable[[], None]] = []

    def collect(self) -> Iterable[Metric]:
        for tell in self.told:
            tell()
        return ()


class Metrics:
    """The server's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry, self._latest = CollectorRegistry(), _Latest()
        self.registry.register(self._latest)
        self._rows = self._counter("rows", "Encrypted rows multiplied")
        self._batches = self._counter("batches", "Batches of rows prepared")
        self._seconds = self._counter("seconds", "Seconds of computation", ["phase"])
        self._messages = self._counter("messages", "Messages with rows that were answered")
        self._products = self._counter("products", "Products, each for the rows of one group that waited")
        self._stages = self._counter("message_seconds", "Seconds of messages in the server", ["stage"])
        self._bytes = self._counter("bytes", "Payload bytes", ["direction"])
        self._calls = self._counter("calls", "Calls that ended", ["method", "result"])
        self._seconds_of = {phase: self._seconds.labels(phase) for phase in ("prepare", "evaluate")}
        self._received, self._sent = self._bytes.labels("received"), self._bytes.labels("sent")

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"veil_{name}", text, labels or [], registry=self.registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when somebody asks."""
        Gauge(f"veil_{name}", text, registry=self.registry).set_function(read)

    def before_reading(self, tell: Callable[[], None]) -> None:
        """``tell`` is called before the counters are read, for what is counted in bulk."""
        self._latest.told.append(tell)

    def computed(self, phase: str, count: int, seconds: float) -> None:
        """``count`` batches took this long to prepare; of rows see `staged`."""
        assert phase == "prepare"
        self._batches.inc(count)
        self._seconds_of[phase].inc(seconds)

    def staged(self, seconds: Mapping[str, float], counts: Mapping[str, int], computed_s: float) -> None:
        """Seconds of messages by stage, and how many messages, rows and products; what the products took."""
        for stage, own in seconds.items():
            self._stages.labels(stage).inc(own)
        self._messages.inc(counts["messages"])
        self._products.inc(counts["products"])
        self._rows.inc(counts["rows"])
        self._seconds_of["evaluate"].inc(computed_s)

    def moved(self, received: int, sent: int) -> None:
        """Payload bytes of a message."""
        self._received.inc(received)
        self._sent.inc(sent)

    def ended(self, method: str, result: str) -> None:
        """A call ended, with ``ok`` or an error's name."""
        self._calls.labels(method, result).inc()

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answer Prometheus on this address; returns what stops it."""
        http, thread = start_http_server(port, addr=host, registry=self.registry)
        silent = http.RequestHandlerClass
        assert isinstance(silent, type)
        http.RequestHandlerClass = type(silent.__name__, (silent,), {"timeout": FIRST_S})  # silence does not keep a thread

        def stop() -> None:
            http.shutdown()
            http.server_close()
            thread.join()

        return stop
