"""What the server counts and times, for Prometheus. No label carries an id."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.pool import Pool

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The server's metrics in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ringfence_requests",
            "Requests by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "ringfence_request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.stage_seconds = Histogram(
            "ringfence_predict_stage_seconds",
            "Time by stage of /predict.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.scores = Counter(
            "ringfence_scores", "Scores by model version and decision.", ["version", "decision"], registry=self.registry
        )
        self.degraded = Counter(
            "ringfence_degraded_rows",
            "Feature rows that scores had to do without.",
            ["view", "reason"],
            registry=self.registry,
        )
        self.engineered = Counter(
            "ringfence_engineered_keys", "Entities sent to the feature workers.", ["outcome"], registry=self.registry
        )
        self.expected_wait = Gauge(
            "ringfence_expected_wait_seconds",
            "How long the next payment would wait for a worker.",
            registry=self.registry,
        )
        self.decision_backlog = Gauge(
            "ringfence_decision_backlog_bytes",
            "Decisions on disk that are not in their database yet.",
            registry=self.registry,
        )
        self.in_flight = Gauge("ringfence_requests_in_flight", "Requests at work.", registry=self.registry)
        self.refused = Counter("ringfence_overload_refused", "Requests refused for overload.", registry=self.registry)
        self.accepted = Counter(
            "ringfence_accepted_rows",
            "Rows written through the API by kind and outcome.",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self.freshness_seconds = Histogram(
            "ringfence_freshness_seconds",
            "From a write's arrival to its features online.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.shadow = Counter(
            "ringfence_shadow_scores",
            "Payments offered to the challenger by its version and what came of it.",
            ["version", "outcome"],
            registry=self.registry,
        )
        self.shadow_difference = Histogram(
            "ringfence_shadow_difference",
            "Largest difference of a score between challenger and champion within a request.",
            ["version"],
            buckets=(0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0),
            registry=self.registry,
        )
        self.challenger = Gauge(
            "ringfence_challenger_info",
            "1 for the challenger in use, 0 for earlier ones.",
            ["name", "version"],
            registry=self.registry,
        )
        self.model = Gauge(
            "ringfence_model_info",
            "1 for the model in use, 0 for earlier ones.",
            ["name", "version"],
            registry=self.registry,
        )

    def watch(self, pools: Iterable[Pool]) -> None:
        """Export the state of `pools` at every scrape."""
        self.registry.register(_PoolCollector(list(pools)))


class _PoolCollector(Collector):
    def __init__(self, pools: list[Pool]) -> None:
        self._pools = pools

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            name: GaugeMetricFamily(f"ringfence_pool_{name}", text, labels=["pool"])
            for name, text in (
                ("size", "Workers wanted."),
                ("alive", "Workers up."),
                ("busy", "Workers at work."),
                ("queued", "Tasks waiting."),
            )
        }
        for name, text in (("restarts", "Workers replaced."), ("retries", "Tasks tried again.")):
            families[name] = CounterMetricFamily(f"ringfence_pool_{name}", text, labels=["pool"])
        for pool in self._pools:
            status = pool.status()
            for name, family in families.items():
                family.add_metric([status.name], getattr(status, name))
        yield from families.values()
