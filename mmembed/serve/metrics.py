"""What /metrics tells Prometheus: requests by route and status, how long they took, what waits, batches and tokens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .guard import App, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from .batcher import Batcher

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROUTES = ("/v1/embeddings", "/v2/embed", "/embed", "/search", "/why", "/map", "/thumbnail")


class Metrics:
    """Counts of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        names = ("route", "status")
        self._requests = Counter("mmembed_requests", "Requests answered", names, registry=self._registry)
        self._seconds = Histogram(
            "mmembed_request_seconds", "Time to the answer", ["route"], buckets=SECONDS, registry=self._registry
        )

    def watch(self, batcher: Batcher) -> None:
        """Tell of a batcher too."""
        self._registry.register(_OfBatcher(batcher))

    def served(self, path: str, status: int, seconds: float) -> None:
        """Count one request; a `path` that is no route is "other", so that a stranger cannot make new rows."""
        route = path if path in ROUTES else "other"
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self._registry)


class MetricsMiddleware:
    """An ASGI app around another, whose answers are counted, whoever in it gives them, as they begin."""

    def __init__(self, app: App, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.served(scope["path"], message["status"], time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, counted)


class _OfBatcher(Collector):
    def __init__(self, batcher: Batcher):
        self.batcher = batcher

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("mmembed_waiting_samples", "Samples in the queue", value=self.batcher.waiting)
        yield CounterMetricFamily("mmembed_batches", "Batches through the model", value=self.batcher.batches)
        yield CounterMetricFamily("mmembed_tokens", "Tokens through the model", value=self.batcher.tokens)
