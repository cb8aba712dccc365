"""The state of jobs and features for Prometheus, read from the ledger and the stores when it is scraped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from graph_features.errors import RingfenceError
from graph_features.jobs.status import PlatformStatus

log = logging.getLogger("ringfence.serving.jobs")

ASK_EVERY_S = 15.0
"""Several scrapers share one look within this time."""

_FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ledger_up": ("1 when the job ledger answers.", ()),
    "jobs": ("Jobs in the ledger.", ("kind", "state")),
    "jobs_unheard": ("Jobs whose runner sends no heartbeat any more.", ()),
    "job_last_end_timestamp_seconds": ("When a job of this kind last ended so.", ("kind", "state")),
    "chunks": ("Chunks of jobs that are neither done nor cancelled.", ("state",)),
    "schedule_next_timestamp_seconds": ("The next tick that nobody has had.", ("schedule",)),
    "schedule_last_timestamp_seconds": ("The last tick that was had.", ("schedule",)),
    "schedule_grace_seconds": ("How late a tick may run.", ("schedule",)),
    "schedule_seen_timestamp_seconds": ("When the leading scheduler last spoke.", ("schedule",)),
    "view_age_seconds": ("Age of a slice view's newest slice.", ("view",)),
    "view_max_age_seconds": ("Age after which serving does without it.", ("view",)),
    "view_stale": ("Slices and ranges to compute anew, because of changed code or late records.", ("view", "reason")),
    "pending_keys": ("Accounts and pairs whose last events are not in their rows yet.", ()),
    "graph_lag_records": ("Ingested records that the graph does not have yet.", ()),
}


class JobCollector(Collector):
    """Asks `status` at a scrape, not more often than every `every_s`."""

    def __init__(self, status: Callable[[], PlatformStatus], *, every_s: float = ASK_EVERY_S) -> None:
        self._status = status
        self._every_s = every_s
        self._lock = threading.Lock()
        self._known: PlatformStatus | None = None
        self._asked_at = -every_s

    def describe(self) -> Iterable[Metric]:
        """The families without values: registering them asks nobody."""
        return _families().values()

    def collect(self) -> Iterable[Metric]:
        families = _families()
        status = self._fresh()
        families["ledger_up"].add_metric([], 0.0 if status is None else 1.0)
        if status is not None:
            _fill(families, status)
        return families.values()

    def _fresh(self) -> PlatformStatus | None:
        with self._lock:
            if time.monotonic() - self._asked_at >= self._every_s:
                try:
                    self._known = self._status()
                except RingfenceError as error:
                    log.warning("jobs not measured", extra={"error": str(error)})
                    self._known = None
                self._asked_at = time.monotonic()
            return self._known


def _families() -> dict[str, GaugeMetricFamily]:
    return {
        name: GaugeMetricFamily(f"ringfence_{name}", text, labels=labels) for name, (text, labels) in _FAMILIES.items()
    }


def _fill(families: dict[str, GaugeMetricFamily], status: PlatformStatus) -> None:
    def put(name: str, value: float | None, *labels: str) -> None:
        if value is not None:
            families[name].add_metric(labels, value)

    for (kind, state), count in status.counts.items():
        put("jobs", count, kind, state)
    for (kind, state), ended in status.ended.items():
        put("job_last_end_timestamp_seconds", ended.timestamp(), kind, state)
    put("jobs_unheard", len(status.unheard))
    for chunk_state, count in status.chunks.items():
        put("chunks", count, chunk_state)
    for entry in status.schedules:
        put("schedule_next_timestamp_seconds", entry.next_at.timestamp() if entry.next_at else None, entry.name)
        put("schedule_grace_seconds", entry.grace_s, entry.name)
        put("schedule_seen_timestamp_seconds", entry.seen_at.timestamp(), entry.name)
    for name, tick_at in status.last_ticks.items():
        put("schedule_last_timestamp_seconds", tick_at.timestamp(), name)
    for view in status.views:
        put("view_age_seconds", view.age_s, view.view)
        put("view_max_age_seconds", view.max_age_s, view.view)
        for reason, count in view.stale.items():
            put("view_stale", count, view.view, reason)
    put("pending_keys", status.pending_keys)
    put("graph_lag_records", status.graph_lag)
