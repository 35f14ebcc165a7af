"""What /metrics shows. Labels are bounded: route templates, never paths."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

#: Seconds. Fine where an order path lives (below 10 ms), coarse where it is lost anyway.
BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """One registry an application, so that two in one process do not share counters."""

    def __init__(self, release: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Histogram(
            "orchestrator_request_seconds",
            "Time from request to the response's last byte",
            ["method", "route", "status"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.orders = Counter("orchestrator_orders", "Orders by outcome", ["outcome"], registry=self.registry)
        self.cache = Counter(
            "orchestrator_cache", "Cache look-ups by result", ["result"], registry=self.registry
        )
        self.ready = Gauge(
            "orchestrator_dependency_ready",
            "1 if it answered the last /ready",
            ["dependency"],
            registry=self.registry,
        )
        Gauge("orchestrator_release", "The release that runs", ["release"], registry=self.registry).labels(
            release
        ).set(1)
