"""What operators ask: what ran, runs, is due and failed, how fresh each view is, how far the graph is behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from graph_features.catalog import catalog
from graph_features.clock import from_ms
from graph_features.errors import StoreUnavailableError
from graph_features.jobs.engine import transaction
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.records import ChunkState, Job, JobState
from graph_features.jobs.schedules import ScheduleEntry
from graph_features.jobs.stale import find_stale
from graph_features.jobs.stores import Stores
from graph_features.jobs.tables import chunks, jobs
from graph_features.schema import Cadence, ViewSchema

T = TypeVar("T")

SHOWN_JOBS = 20


@dataclass(frozen=True, kw_only=True)
class ViewStatus:
    """How fresh a view is. `as_of` is its newest slice's; event views are fresh but for the pending keys.

    `age_s` is judged against `max_age_s`, after which a slice counts as absent; `stale` counts what changed code and
    late records have overtaken.
    """

    view: str
    cadence: Cadence
    as_of: datetime | None
    age_s: float | None
    max_age_s: float | None
    pending_keys: int | None
    stale: Mapping[str, int]

    @property
    def is_late(self) -> bool:
        """Whether serving has to do without the view's rows."""
        if self.max_age_s is None:
            return False
        return self.age_s is None or self.age_s > self.max_age_s


@dataclass(frozen=True, kw_only=True)
class PlatformStatus:
    """The state of jobs and features at `at`. What could not be asked is None, and `problems` says why."""

    at: datetime
    running: tuple[Job, ...]
    unheard: tuple[Job, ...]
    waiting: tuple[Job, ...]
    failed: tuple[Job, ...]
    ended: Mapping[tuple[str, JobState], datetime]
    counts: Mapping[tuple[str, JobState], int]
    chunks: Mapping[ChunkState, int]
    schedules: tuple[ScheduleEntry, ...]
    last_ticks: Mapping[str, datetime]
    views: tuple[ViewStatus, ...]
    pending_keys: int | None
    newest_seq: int | None
    graph_seq: int | None
    problems: tuple[str, ...]

    @property
    def graph_lag(self) -> int | None:
        """Ingested records that the graph does not have yet."""
        if self.newest_seq is None or self.graph_seq is None:
            return None
        return max(0, self.newest_seq - self.graph_seq)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What needs a hand, one sentence each."""
        found = [f"{job.kind} job {job.id} lost its runner: `ringfence job resume {job.id}`" for job in self.unheard]
        for (kind, state), ended in self.ended.items():
            done = self.ended.get((kind, JobState.DONE))
            if state is JobState.FAILED and (done is None or ended > done):
                error = next((job.error for job in self.failed if job.kind == kind), None)
                found.append(f"the last {kind} job failed: {error or 'see `ringfence jobs`'}")
        found += [f"view {view.view} has no slice younger than its limit" for view in self.views if view.is_late]
        found += [
            f"schedule {entry.name} is {entry.late_s(self.at):.0f} s overdue, more than its grace"
            for entry in self.schedules
            if entry.late_s(self.at) > entry.grace_s
        ]
        return (*found, *self.problems)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, times in ISO 8601 UTC; the jobs themselves are listed elsewhere."""
        return {
            "at": self.at.isoformat(),
            "jobs": [
                {"kind": kind, "state": state.value, "count": count, "last_ended": _iso(self.ended.get((kind, state)))}
                for (kind, state), count in sorted(self.counts.items())
            ],
            "unheard": [str(job.id) for job in self.unheard],
            "schedules": [_schedule(entry, self) for entry in self.schedules],
            "views": [_view(view) for view in self.views],
            "pending_keys": self.pending_keys,
            "newest_seq": self.newest_seq,
            "graph_seq": self.graph_seq,
            "graph_lag": self.graph_lag,
            "troubles": list(self.troubles),
        }


def platform_status(ledger: Ledger, stores: Stores) -> PlatformStatus:
    """Ask the ledger and the stores; raise StoreUnavailableError when the ledger does not answer."""
    problems: list[str] = []

    def ask(question: Callable[[], T]) -> T | None:
        try:
            return question()
        except StoreUnavailableError as error:
            problems.append(str(error))
            return None

    now = ledger.clock()
    pending = ask(lambda: list(stores.online.all_pending()))
    running = ledger.list(states=[JobState.RUNNING], limit=SHOWN_JOBS)
    unheard = tuple(job for job in running if job.heartbeat_at is not None and now - job.heartbeat_at > ledger.expiry)
    return PlatformStatus(
        at=now,
        running=tuple(job for job in running if job not in unheard),
        unheard=unheard,
        waiting=tuple(ledger.list(states=[JobState.QUEUED, JobState.PAUSED], limit=SHOWN_JOBS)),
        failed=tuple(ledger.list(states=[JobState.FAILED], limit=SHOWN_JOBS)),
        **_counted(ledger),
        schedules=tuple(ledger.schedules.entries()),
        last_ticks=ledger.schedules.last_ticks(),
        views=_views(ledger, stores, now, pending, ask),
        pending_keys=None if pending is None else len(pending),
        newest_seq=ask(stores.records.max_seq),
        graph_seq=ask(lambda: stores.graph.watermark()),
        problems=tuple(problems),
    )


def _counted(ledger: Ledger) -> dict[str, Any]:
    by_state = sa.select(jobs.c.kind, jobs.c.state, sa.func.count(), sa.func.max(jobs.c.finished_at, type_=_TIME))
    of_open = sa.select(chunks.c.state, sa.func.count()).join(jobs, jobs.c.id == chunks.c.job_id)
    with transaction(ledger.engine) as connection:
        found = connection.execute(by_state.group_by(jobs.c.kind, jobs.c.state)).all()
        open_chunks = connection.execute(
            of_open.where(jobs.c.state.not_in((JobState.DONE, JobState.CANCELLED))).group_by(chunks.c.state)
        ).all()
    return {
        "counts": {(kind, JobState(state)): count for kind, state, count, _ in found},
        "ended": {(kind, JobState(state)): ended for kind, state, _, ended in found if ended is not None},
        "chunks": dict.fromkeys(ChunkState, 0) | {ChunkState(state): count for state, count in open_chunks},
    }


_TIME = jobs.c.finished_at.type


def _views(
    ledger: Ledger,
    stores: Stores,
    now: datetime,
    pending: list[tuple[str, ...]] | None,
    ask: Callable[[Callable[[], Any]], Any],
) -> tuple[ViewStatus, ...]:
    schemas = list(catalog().schemas.values())
    newest = ledger.coverage.newest_slices()
    stale = ask(lambda: find_stale(ledger, stores, schemas).by_view()) or {}
    return tuple(_view_status(schema, newest.get(schema.name), now, pending, stale) for schema in schemas)


def _view_status(
    schema: ViewSchema,
    newest_ms: int | None,
    now: datetime,
    pending: list[tuple[str, ...]] | None,
    stale: Mapping[str, Mapping[str, int]],
) -> ViewStatus:
    as_of = None if newest_ms is None else from_ms(newest_ms)
    is_event = schema.cadence is Cadence.EVENT
    waits = None if pending is None else sum(len(key) == len(schema.keys) for key in pending)
    return ViewStatus(
        view=schema.name,
        cadence=schema.cadence,
        as_of=None if is_event else as_of,
        age_s=None if as_of is None or is_event else (now - as_of) / timedelta(seconds=1),
        max_age_s=schema.max_age_s,
        pending_keys=waits if is_event else None,
        stale=dict(stale.get(schema.name, {"code": 0, "late": 0})),
    )


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _schedule(entry: ScheduleEntry, status: PlatformStatus) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "rhythm": entry.rhythm,
        "next_at": _iso(entry.next_at),
        "late_s": entry.late_s(status.at),
        "last_at": _iso(status.last_ticks.get(entry.name)),
        "seen_at": _iso(entry.seen_at),
    }


def _view(view: ViewStatus) -> dict[str, Any]:
    return {
        "view": view.view,
        "cadence": view.cadence.value,
        "as_of": _iso(view.as_of),
        "age_s": view.age_s,
        "max_age_s": view.max_age_s,
        "is_late": view.is_late,
        "pending_keys": view.pending_keys,
        "stale": dict(view.stale),
    }
