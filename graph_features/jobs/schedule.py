"""Runs a schedule file: wakes up for each tick, takes it in the ledger, runs its job."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from graph_features.errors import JobError, StoreUnavailableError
from graph_features.jobs.ledger import Ledger, schedule_requester
from graph_features.jobs.records import JobState
from graph_features.jobs.runner import HEARTBEAT_S, Handler, JobKind, JobRunner
from graph_features.jobs.schedule_file import ScheduledJob, ScheduleFile, read_schedule
from graph_features.jobs.ticks import Ticks

log = logging.getLogger(__name__)


def check_schedule(path: Path, runner: JobRunner) -> ScheduleFile:
    """Read a schedule file and check each job's kind and parameters; raise InvalidInputError."""
    schedule = read_schedule(path)
    for job in schedule.jobs:
        runner.check_parameters(job.kind, job.parameters, where=f"{path}: job {job.name}: ")
    return schedule


def run_schedule(
    file: Path,
    handlers: Mapping[str, Handler | JobKind],
    ledger: Ledger,
    stop: threading.Event,
    *,
    heartbeat_s: float = HEARTBEAT_S,
) -> None:
    """Run the schedule until `stop` is set; then let running jobs put down their work, and return.

    A tick is taken in the ledger before its job runs, so several schedulers share one file without running it twice.
    After downtime, ticks within their misfire grace are caught up, the last one for all; jobs that a dead or stopped
    scheduler left are taken up first. Raises InvalidInputError before anything starts.
    """
    runner = JobRunner(ledger=ledger, handlers=handlers, heartbeat_s=heartbeat_s, stopping=stop)
    schedule = check_schedule(file, runner)
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(len(schedule.jobs))},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        timezone="UTC",
    )
    for job in schedule.jobs:
        ticks = Ticks(job, schedule.zone(job))
        entry = _Entry(job=job, ticks=ticks, runner=runner)
        scheduler.add_job(entry.fire, ticks, id=job.name, name=job.name, next_run_time=ledger.clock())
    scheduler.start()
    log.info("schedule %s: %d jobs", file, len(schedule.jobs))
    try:
        stop.wait()
    finally:
        stop.set()
        scheduler.shutdown(wait=True)
        runner.close()


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One scheduled job at work."""

    job: ScheduledJob
    ticks: Ticks
    runner: JobRunner

    def fire(self) -> None:
        """Take up what was left behind, then run the tick that is due unless someone has had it."""
        if self.runner.stopping.is_set():
            return
        ledger = self.runner.ledger
        try:
            for job_id in ledger.abandoned(requested_by=schedule_requester(self.job.name)):
                self._run(job_id)
            while (tick_job := self._take_tick()) is not None:  # again: the next may have come due meanwhile
                self._run(tick_job)
        except StoreUnavailableError as error:
            log.warning("schedule %s: %s; the next wake-up tries again", self.job.name, error)

    def _take_tick(self) -> UUID | None:
        ledger = self.runner.ledger
        tick_at = self.ticks.due(ledger.clock())
        if tick_at is None or self.runner.stopping.is_set():
            return None
        parameters = self.runner.check_parameters(self.job.kind, self.job.parameters)
        return ledger.submit_tick(self.job.name, tick_at, self.job.kind, parameters)

    def _run(self, job_id: UUID) -> None:
        try:
            job = self.runner.run(job_id)
        except JobError as error:
            log.info("schedule %s: %s", self.job.name, error)  # another scheduler was faster
            return
        level = logging.INFO if job.state is JobState.DONE else logging.WARNING
        log.log(level, "schedule %s: job %s is %s %s", self.job.name, job.id, job.state, job.error or "")
