"""jobs, job, status: what ran, runs, is due and failed, and the hand on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from infra.console import say, table

if TYPE_CHECKING:
    from graph_features.jobs.ledger import Ledger
    from graph_features.jobs.records import Job
    from graph_features.jobs.status import PlatformStatus

JobId = Annotated[UUID, typer.Argument(help="As `ringfence jobs` shows it.")]

job_app = typer.Typer(help="One job: look at it, pause, resume, retry or cancel it.", no_args_is_help=True)


def jobs(limit: Annotated[int, typer.Option(min=1)] = 20) -> None:
    """Show jobs, newest first: what ran, runs, failed and why."""
    with _ledger() as ledger:
        found = ledger.list(limit=limit)
    rows = [
        [j.id, j.kind, j.state, _share(j), j.requested_by, _moment(j.created_at), _moment(j.finished_at), j.error]
        for j in found
    ]
    table("jobs", ["job", "kind", "state", "progress", "by", "created", "finished", "error"], rows)


def status(
    json_: Annotated[bool, typer.Option("--json", help="Print everything as one JSON document.")] = False,
) -> None:
    """Show what runs, is due, failed and why; each view's freshness against its limit; the graph's lag.

    Exit code 1 when something needs a hand: a job failed or unheard, a view too old, a tick beyond its grace.
    """
    from graph_features.jobs.status import platform_status
    from infra.console import fail
    from infra.wiring import Platform

    with Platform() as platform, _ledger() as ledger:
        found = platform_status(ledger, platform)
    if json_:
        say(json.dumps(found.to_json()))
    else:
        _show_status(found)
    if found.troubles:
        fail("; ".join(found.troubles))


def _show_status(found: PlatformStatus) -> None:
    rows = [
        [kind, state, count, _moment(found.ended.get((kind, state)))] for (kind, state), count in found.counts.items()
    ]
    table("jobs", ["kind", "state", "jobs", "last ended"], sorted(rows))
    for title, listed in (("running", found.running), ("waiting", found.waiting), ("failed", found.failed)):
        if listed:
            table(title, ["job", "kind", "progress", "why"], [[j.id, j.kind, _share(j), j.error or ""] for j in listed])
    if found.schedules:
        due = [
            [
                s.name,
                s.kind,
                s.rhythm,
                _moment(found.last_ticks.get(s.name)),
                _moment(s.next_at),
                f"{s.late_s(found.at):.0f} s",
            ]
            for s in found.schedules
        ]
        table("schedules", ["schedule", "job", "when", "last", "next", "overdue"], due)
    views = [
        [
            v.view, v.cadence, _moment(v.as_of), _hours(v.age_s), _hours(v.max_age_s),
            "too old" if v.is_late else "", v.pending_keys, v.stale["late"] or "", v.stale["code"] or "",
        ]
        for v in found.views
    ]  # fmt: skip
    heads = ["view", "cadence", "newest slice", "age", "limit", "", "pending", "stale: late data", "stale: code"]
    table("views", heads, views)
    say(f"graph: {'unknown' if found.graph_lag is None else f'{found.graph_lag:,}'} records behind the record store")


def _hours(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 3600:,.1f} h"


@job_app.command()
def show(
    job: JobId, chunks: Annotated[bool, typer.Option("--chunks", help="Every chunk, not only failed ones.")] = False
) -> None:
    """Show a job: its chunks by state, an estimate of the time to its end, and why chunks failed."""
    from graph_features.jobs.estimates import format_seconds, progress_of

    with _ledger() as ledger:
        found, progress = ledger.get(job), progress_of(ledger, job)
        listed = ledger.chunks.list(job) if chunks else list(progress.failed)
    say(f"{found.kind} job {found.id} is {found.state}" + (f": {found.error}" if found.error else ""))
    say(f"parameters {found.parameters}, asked for by {found.requested_by}, attempt {found.attempts}")
    say(", ".join(f"{count} {state}" for state, count in progress.counts.items() if count) or "no chunks")
    if progress.workers:
        eta = "unknown" if progress.eta_s is None else format_seconds(progress.eta_s)
        say(f"{progress.workers} at work, {progress.rows:,} rows done, time left: {eta}")
    if listed:
        rows = [[c.key, c.state, c.attempts, f"{c.rows:,}", c.runner, c.error] for c in listed]
        table("chunks", ["chunk", "state", "attempts", "rows", "worker", "error"], rows)


@job_app.command()
def cancel(job: JobId) -> None:
    """Cancel a job; one that runs stops at its next safe point. What is done stays."""
    with _ledger() as ledger:
        say(_asked(ledger.cancel(job)))


@job_app.command()
def pause(job: JobId) -> None:
    """Pause a job; one that runs stops at its next safe point. `resume` goes on."""
    with _ledger() as ledger:
        say(_asked(ledger.pause(job)))


@job_app.command()
def resume(job: JobId) -> None:
    """Run a paused, failed or cancelled job on, here: only what is missing, failed chunks included."""
    from infra.jobs import resume_job

    say(resume_job(job))


@job_app.command()
def retry(job: JobId) -> None:
    """Run the failed chunks of a failed job again, here, and no others."""
    from infra.jobs import resume_job

    say(resume_job(job, only_failed=True))


def _asked(job: Job) -> str:
    asked = f", asked to {job.asked}" if job.asked is not None else ""
    return f"{job.kind} job {job.id} is {job.state}{asked}"


@contextmanager
def _ledger() -> Iterator[Ledger]:
    from graph_features.jobs.ledger import open_ledger
    from graph_features.settings import PlatformSettings, load

    ledger = open_ledger(load(PlatformSettings))
    try:
        yield ledger
    finally:
        ledger.close()


def _share(job: Job) -> str:
    return f"{job.progress_done}/{'?' if job.progress_total is None else job.progress_total}"


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def register(app: typer.Typer) -> None:
    app.command()(jobs)
    app.command()(status)
    app.add_typer(job_app, name="job")
