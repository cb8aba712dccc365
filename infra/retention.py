"""The retention job: what is older than its limit goes, place by place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from graph_features.clock import to_ms
from graph_features.jobs.parameters import NoParameters
from graph_features.jobs.runner import JobContext, JobKind
from graph_features.settings import RetentionSettings, ServingSettings, TrainingSettings, load

if TYPE_CHECKING:
    from infra.wiring import Platform

log = logging.getLogger(__name__)


def retention_kinds(platform: Platform) -> dict[str, JobKind]:
    """Return the kind `retention`, working on the active profile."""
    return {
        "retention": JobKind(
            run=lambda context: _run(context, platform),
            parameters=NoParameters,
            description="Remove rows, decisions, jobs, registry intervals, MLflow runs and logs past their limits.",
        )
    }


def _run(context: JobContext, platform: Platform) -> None:
    removed = retain(platform, context, now=context.due_at, settings=load(RetentionSettings), check=context.check)
    log.info("retention: %s", ", ".join(f"{count} {name}" for name, count in removed.items()))


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """One place, its limit in days (0 keeps everything), and what removes from it what is older than a moment."""

    name: str
    days: int
    remove: Callable[[datetime], int]


def retain(
    platform: Platform,
    context: JobContext,
    *,
    now: datetime,
    settings: RetentionSettings,
    check: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Remove what is past its limit at `now`; return how much went from each place that has one."""
    decision_days = load(ServingSettings).decision_retention_days
    limits = (
        _Limit(name="offline rows", days=settings.offline_days, remove=lambda at: _offline(platform, context, at)),
        _Limit(name="decisions", days=decision_days, remove=lambda at: _decisions(platform, at)),
        _Limit(name="jobs", days=settings.ledger_days, remove=context.ledger.forget_before),
        _Limit(name="registry intervals", days=settings.registry_days, remove=lambda at: _intervals(platform, at)),
        _Limit(name="MLflow runs", days=settings.mlflow_days, remove=lambda at: _mlflow(platform, at)),
        _Limit(name="log files", days=settings.log_days, remove=lambda at: _logs(platform.settings.home, at)),
    )
    removed = {}
    for position, limit in enumerate(limits):
        if limit.days:
            removed[limit.name] = limit.remove(now - timedelta(days=limit.days))
        context.progress(position + 1, len(limits))
        check()
    return removed


def _offline(platform: Platform, context: JobContext, before: datetime) -> int:
    from graph_features.catalog import catalog

    before_ms = to_ms(before)
    removed = sum(platform.offline.delete_before(view, before_ms) for view in catalog().stored.values())
    context.ledger.coverage.forget_before(before_ms)
    return removed


def _decisions(platform: Platform, before: datetime) -> int:
    from infra.decision_logs import DecisionLogs
    from serving.decisions import DecisionLog, open_engine

    DecisionLogs(platform.settings).purge(before)
    engine = open_engine(platform.settings)
    try:
        return DecisionLog(engine).purge(before_ms=to_ms(before))
    finally:
        engine.dispose()


def _intervals(platform: Platform, before: datetime) -> int:
    """Feast appends an interval per materialization and view for ever; the newest one is its watermark and stays."""
    import feature_repo

    store = feature_repo.open_store(platform.settings)
    removed = 0
    for view in store.list_feature_views():
        intervals = view.materialization_intervals
        kept = [one for one in intervals[:-1] if one[1] >= before] + intervals[-1:]
        if len(kept) < len(intervals):
            removed += len(intervals) - len(kept)
            view.materialization_intervals = kept
            store.registry.apply_feature_view(view, store.project)
    return removed


def _mlflow(platform: Platform, before: datetime) -> int:
    from training.registry import Registry

    settings = load(TrainingSettings)
    registry = Registry.open(platform.settings.home)
    return registry.forget_runs(settings.experiment, model=settings.model_name, before=before)


def _logs(home: Path, before: datetime) -> int:
    """Empty log files that nobody has written to since; a server that still has one open goes on at its start."""
    removed = 0
    for path in home.rglob("*.log"):
        if path.is_file() and path.stat().st_size and path.stat().st_mtime < before.timestamp():
            with path.open("r+b") as file:
                file.truncate()
            removed += 1
    return removed
