"""Runs a schedule file: the leading scheduler wakes up for each tick, takes it in the ledger and runs its job."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import UUID

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from graph_features.errors import JobError, StoreUnavailableError
from graph_features.jobs.leadership import Leadership, leadership
from graph_features.jobs.ledger import Ledger, schedule_requester
from graph_features.jobs.parameters import format_duration
from graph_features.jobs.records import JobState
from graph_features.jobs.runner import Handler, JobKind, JobRunner
from graph_features.jobs.schedule_file import ScheduledJob, ScheduleFile, read_schedule
from graph_features.jobs.ticks import Ticks
from graph_features.settings import JobSettings

log = logging.getLogger(__name__)

LEAD_POLL_S = 1.0
"""How often a standby tries to take the lead, and a leader looks for jobs that died."""


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
    settings: JobSettings | None = None,
    lead_poll_s: float = LEAD_POLL_S,
) -> None:
    """Run the schedule until `stop` is set; then let running jobs put down their work, and return.

    Of several schedulers on one ledger one leads and the others stand by; when the leader dies, its lock falls to one
    of them. Whatever happens, a tick is taken in the ledger before its job runs, and can be taken once. After downtime
    ticks within their misfire grace are caught up as the file says; jobs that a dead or stopped scheduler left are
    taken up first. Raises InvalidInputError before anything starts.
    """
    runner = JobRunner(ledger=ledger, handlers=handlers, settings=settings or JobSettings(), stopping=stop)
    schedule = check_schedule(file, runner)
    lead = _Lead(leadership(ledger.engine, "schedule"))
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(len(schedule.jobs))},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        timezone="UTC",
    )
    entries = [_Entry(job=job, ticks=Ticks(job, schedule.zone(job)), runner=runner, lead=lead) for job in schedule.jobs]
    for entry in entries:
        scheduler.add_job(entry.fire, entry.ticks, id=entry.job.name, name=entry.job.name)
    # A wake-up while the job still runs says nothing: the running one looks for the next tick itself before it ends.
    logging.getLogger("apscheduler.scheduler").setLevel(logging.ERROR)
    scheduler.start()
    log.info("schedule %s: %d jobs", file, len(schedule.jobs))
    try:
        _stand_by(_Watch(scheduler=scheduler, entries=entries, ledger=ledger, runner=runner), lead, stop, lead_poll_s)
    finally:
        stop.set()
        scheduler.shutdown(wait=True)
        runner.close()
        lead.release()


@dataclass(frozen=True, kw_only=True)
class _Watch:
    """What the leader looks after between ticks."""

    scheduler: BackgroundScheduler
    entries: list[_Entry]
    ledger: Ledger
    runner: JobRunner

    def wake(self, *, everything: bool) -> None:
        """Wake entries that left a job behind; after a change of the lead all of them, for the ticks since then."""
        now = self.ledger.clock()
        for entry in self.entries:
            if not entry.busy.locked() and (everything or entry.left_behind()):
                self.scheduler.modify_job(entry.job.name, next_run_time=now)

    def publish(self) -> None:
        """Tell those who look what this scheduler runs and when each is due."""
        rows = [
            {
                "name": entry.job.name,
                "kind": entry.job.kind,
                "rhythm": _rhythm(entry.job),
                "next_at": entry.next_tick(),
                "grace_s": entry.job.misfire_grace.total_seconds(),
            }
            for entry in self.entries
        ]
        self.ledger.schedules.publish(rows, leader=self.runner.name)


def _stand_by(watch: _Watch, lead: _Lead, stop: threading.Event, poll_s: float) -> None:
    leads = False
    while not stop.is_set():
        led, leads = leads, lead.renew()
        if leads:
            if not led:
                log.info("this scheduler leads")
            try:
                watch.wake(everything=not led)
                watch.publish()
            except StoreUnavailableError as error:
                log.warning("%s; the next look tries again", error)
        stop.wait(poll_s)


class _Lead:
    """The lead as the threads of this process share it: only one of them speaks to the lock's connection."""

    def __init__(self, lead: Leadership) -> None:
        self._lead = lead
        self._guard = threading.Lock()

    def renew(self) -> bool:
        with self._guard:
            return self._lead.hold()

    def release(self) -> None:
        with self._guard:
            self._lead.release()


def _rhythm(job: ScheduledJob) -> str:
    return job.cron or (f"every {format_duration(job.every)}" if job.every else "")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One scheduled job at work."""

    job: ScheduledJob
    ticks: Ticks
    runner: JobRunner
    lead: _Lead
    busy: threading.Lock = field(default_factory=threading.Lock)

    def fire(self) -> None:
        """Take up what was left behind, then run the ticks that are due unless someone has had them."""
        with self.busy:
            try:
                while not self.runner.stopping.is_set() and self.lead.renew():
                    job_id = next(iter(self.left_behind()), None) or self._take_tick()
                    if job_id is None:
                        return
                    self._run(job_id)
            except StoreUnavailableError as error:
                log.warning("schedule %s: %s; the next wake-up tries again", self.job.name, error)

    def left_behind(self) -> list[UUID]:
        """Return jobs of this schedule that wait for a runner or whose runner died."""
        return list(self.runner.ledger.abandoned(requested_by=schedule_requester(self.job.name)))

    def next_tick(self) -> datetime | None:
        """The next tick that nobody has had."""
        now = self.runner.ledger.clock()
        due = self._due(now)
        return due[0] if due else self.ticks.after(now)

    def _due(self, now: datetime) -> list[datetime]:
        had = self.runner.ledger.schedules.tick_times(self.job.name, limit=1)
        return self.ticks.missed(now, after=had[0] if had else None)

    def _take_tick(self) -> UUID | None:
        ledger = self.runner.ledger
        parameters = self.runner.check_parameters(self.job.kind, self.job.parameters)
        for tick_at in self._due(ledger.clock()):
            job_id = ledger.submit_tick(self.job.name, tick_at, self.job.kind, parameters)
            if job_id is not None:
                return job_id
        return None

    def _run(self, job_id: UUID) -> None:
        try:
            job = self.runner.run(job_id)
        except JobError as error:
            log.info("schedule %s: %s", self.job.name, error)  # another scheduler was faster
            return
        level = logging.INFO if job.state is JobState.DONE else logging.WARNING
        log.log(level, "schedule %s: job %s is %s %s", self.job.name, job.id, job.state, job.error or "")
