"""Alert rules: a file that Prometheus can load, whose every metric the server exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import generate_latest

from graph_features.jobs.records import ChunkState, JobState
from graph_features.jobs.schedules import ScheduleEntry
from graph_features.jobs.status import PlatformStatus, ViewStatus
from graph_features.schema import Cadence
from serving.job_metrics import JobCollector
from serving.metrics import Metrics
from serving.pool import InlinePool

DASHBOARD = Path(__file__).parents[3] / "infra" / "grafana" / "ringfence.dashboard.json"
RULES = Path(__file__).parents[3] / "infra" / "prometheus" / "ringfence.rules.yaml"
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
NOT_METRICS = {"sum", "by", "rate", "time", "or", "ignoring", "histogram_quantile", "min_over_time", "le", "status",
               "state", "view", "reason", "increase", "pool", "version", "stage", "route", "decision",
               "outcome", "kind"}  # fmt: skip


def status() -> PlatformStatus:
    """A platform with one of everything."""
    return PlatformStatus(
        at=NOON,
        running=(),
        unheard=(),
        waiting=(),
        failed=(),
        ended={("backfill", JobState.FAILED): NOON},
        counts={("backfill", JobState.FAILED): 1},
        chunks=dict.fromkeys(ChunkState, 0),
        schedules=(
            ScheduleEntry(
                name="s", kind="slices", rhythm="every 1h", next_at=NOON - timedelta(hours=2), grace_s=3_600.0,
                leader="host:1", seen_at=NOON,
            ),
        ),
        last_ticks={"s": NOON - timedelta(hours=3)},
        views=(
            ViewStatus(
                view="v", cadence=Cadence.SLICE, as_of=NOON - timedelta(days=4), age_s=4 * 86_400.0,
                max_age_s=3 * 86_400.0, pending_keys=None, stale={"code": 2, "late": 0},
            ),
        ),
        pending_keys=7,
        newest_seq=20,
        graph_seq=15,
        problems=(),
    )  # fmt: skip


def exported() -> str:
    """What GET /metrics says with every family registered."""
    metrics = Metrics()
    metrics.watch([InlinePool(name="p", size=1, build=object)])
    metrics.registry.register(JobCollector(status))
    metrics.requests.labels("/predict", "POST", "200").inc()
    metrics.freshness_seconds.observe(1.0)
    metrics.request_seconds.labels("/predict").observe(0.1)
    metrics.stage_seconds.labels("read").observe(0.1)
    metrics.scores.labels("1", "flag").inc()
    metrics.degraded.labels("v", "stale").inc()
    metrics.engineered.labels("done").inc()
    metrics.accepted.labels("labels", "known").inc()
    for gauge in (metrics.model, metrics.challenger):
        gauge.labels("m", "1").set(1)
    metrics.shadow.labels("2", "other decision").inc()
    metrics.shadow_difference.labels("2").observe(0.1)
    return generate_latest(metrics.registry).decode()


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    assert set(document) == {"groups"}
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_every_rule_is_complete() -> None:
    """A rule must have an expression, a time and a severity, and say what to do."""
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found) >= 10
    for rule in found:
        assert re.fullmatch(r"\d+[smhd]", rule["for"]), rule["alert"]
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "action"}
        for opened, closed in ("()", "[]", "{}"):
            assert rule["expr"].count(opened) == rule["expr"].count(closed), rule["alert"]
    # Where Prometheus' own tool is installed, it has the last word.
    if (promtool := shutil.which("promtool")) is not None:
        subprocess.run([promtool, "check", "rules", str(RULES)], check=True)


def test_every_metric_of_the_rules_is_exported() -> None:
    """A rule on a metric that nobody exports would never fire, and nobody would know."""
    names = set(re.findall(r"^([a-z_]+)(?:\{| )", exported(), re.MULTILINE))
    for rule in rules():
        bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", rule["expr"])
        used = set(re.findall(r"[a-z_]{2,}", bare)) - NOT_METRICS
        assert used, rule["alert"]
        assert used <= names, f"{rule['alert']}: {used - names}"


def test_dashboard_is_complete_and_shows_what_is_exported() -> None:
    """Grafana must be able to load the dashboard, and each panel must ask for metrics that the server exports."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert {"title", "uid", "schemaVersion", "templating", "time"} <= set(dashboard)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 12
    names = set(re.findall(r"^([a-z_]+)(?:\{| )", exported(), re.MULTILINE))
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", target["expr"])
            used = set(re.findall(r"[a-z_]{2,}", bare)) - NOT_METRICS
            assert used, panel["title"]
            assert used <= names, f"{panel['title']}: {used - names}"
            assert bare.count("(") == bare.count(")"), panel["title"]


def test_the_collector_says_when_the_ledger_is_down_and_asks_seldom() -> None:
    """Scrapes must share one look; a ledger that does not answer must be a zero, not a failed scrape."""
    from graph_features.errors import StoreUnavailableError

    asked = 0

    def ask() -> PlatformStatus:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise StoreUnavailableError("gone")
        return status()

    def value(collector: JobCollector, name: str) -> list[float]:
        return [sample.value for family in collector.collect() for sample in family.samples if sample.name == name]

    shared = JobCollector(ask, every_s=60)
    assert value(shared, "ringfence_graph_lag_records") == [5]
    assert value(shared, "ringfence_view_stale") == [2, 0]
    assert asked == 1
    fresh = JobCollector(ask, every_s=0)
    assert value(fresh, "ringfence_ledger_up") == [0]
    assert value(fresh, "ringfence_graph_lag_records") == []


def test_troubles_are_told() -> None:
    """What needs a hand must be in the status in words: a failed kind, an old view, a late tick."""
    told = " | ".join(status().troubles)
    assert "the last backfill job failed" in told
    assert "view v has no slice younger than its limit" in told
    assert "schedule s is 7200 s overdue" in told
    document = status().to_json()
    assert document["graph_lag"] == 5
    assert document["views"][0]["is_late"] is True
    assert document["schedules"][0]["late_s"] == 7_200
