"""The ledger of jobs: what was asked for, what runs, what became of it. The only place where jobs read the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from graph_features.errors import JobError, StoreUnavailableError, UnknownJobError
from graph_features.jobs.chunks import ChunkLedger
from graph_features.jobs.coverage import CoverageLedger
from graph_features.jobs.engine import create_tables, open_engine, reopened, transaction
from graph_features.jobs.records import Asked, Job, JobState
from graph_features.jobs.schedules import ScheduleLedger
from graph_features.jobs.tables import as_dict, jobs
from graph_features.jobs.texts import TextLedger
from graph_features.settings import JobSettings, PlatformSettings, load

HEARTBEAT_EXPIRY_S = 30.0
"""A runner that has not been heard of for so long is dead, and its work is free to be taken."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def open_ledger(platform: PlatformSettings) -> Ledger:
    """The active profile's ledger, its tables created if missing."""
    ledger = Ledger(open_engine(platform), expiry_s=load(JobSettings).expiry_s)
    ledger.create_schema()
    return ledger


RESUMABLE = (JobState.PAUSED, JobState.FAILED, JobState.CANCELLED)


class Ledger:
    """Jobs, their chunks and the ticks of schedules, on PostgreSQL or SQLite. Threads and processes may share it.

    Pickled it opens the same database in another process, with that process's clock. `clock` is operational time
    (heartbeats, created_at); it never enters a feature.
    """

    def __init__(
        self,
        engine: sa.Engine,
        *,
        clock: Callable[[], datetime] = utc_now,
        expiry_s: float = HEARTBEAT_EXPIRY_S,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.expiry = timedelta(seconds=expiry_s)
        self.chunks = ChunkLedger(engine, clock=clock, expiry=self.expiry)
        self.coverage = CoverageLedger(engine, clock=clock)
        self.schedules = ScheduleLedger(engine, clock=clock)
        self._texts = TextLedger(engine)

    def __reduce__(self) -> tuple[Callable[..., Ledger], tuple[str, float]]:
        return _reopen, (self.engine.url.render_as_string(hide_password=False), self.expiry.total_seconds())

    def create_schema(self) -> None:
        create_tables(self.engine)

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the ledger answers."""
        try:
            with transaction(self.engine) as connection:
                connection.execute(sa.select(jobs.c.id).limit(1))
        except sa.exc.SQLAlchemyError as error:
            raise StoreUnavailableError(f"the job ledger does not answer: {error}") from error

    def close(self) -> None:
        self.engine.dispose()

    def submit(
        self, kind: str, parameters: Mapping[str, Any], *, requested_by: str, due_at: datetime | None = None
    ) -> UUID:
        """Queue a job and return its id."""
        with transaction(self.engine) as connection:
            return self._insert(connection, kind, parameters, requested_by, due_at)

    def submit_tick(self, schedule: str, tick_at: datetime, kind: str, parameters: Mapping[str, Any]) -> UUID | None:
        """Queue the job of a tick, both in one transaction; None when someone has had this tick before."""
        try:
            with transaction(self.engine) as connection:
                job_id = self._insert(connection, kind, parameters, schedule_requester(schedule), tick_at)
                self.schedules.take(connection, schedule, tick_at, job_id)
                return job_id
        except IntegrityError:
            return None

    def _insert(
        self,
        connection: sa.Connection,
        kind: str,
        parameters: Mapping[str, Any],
        requested_by: str,
        due_at: datetime | None,
    ) -> UUID:
        job_id, now = uuid4(), self.clock()
        connection.execute(
            jobs.insert().values(
                id=job_id,
                kind=kind,
                parameters=dict(parameters),
                state=JobState.QUEUED,
                requested_by=requested_by,
                due_at=due_at or now,
                created_at=now,
            )
        )
        return job_id

    def get(self, job_id: UUID) -> Job:
        """Return a job; raise UnknownJobError."""
        with transaction(self.engine) as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise UnknownJobError(f"no job {job_id}: GET /jobs lists them")
        return _job(row)

    def list(self, *, states: Sequence[JobState] = (), kind: str | None = None, limit: int = 100) -> list[Job]:
        """Return jobs, newest first."""
        query = sa.select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)
        if states:
            query = query.where(jobs.c.state.in_(states))
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        with transaction(self.engine) as connection:
            return [_job(row) for row in connection.execute(query)]

    def unfinished(self, kind: str, *, limit: int = 50) -> Sequence[Job]:
        """Return jobs of a kind that can be resumed, or whose runner died, newest first."""
        dead = (jobs.c.state == JobState.RUNNING) & (jobs.c.heartbeat_at < self.clock() - self.expiry)
        query = (
            sa.select(jobs)
            .where(jobs.c.kind == kind, jobs.c.state.in_(RESUMABLE) | dead)
            .order_by(jobs.c.created_at.desc(), jobs.c.id)
            .limit(limit)
        )
        with transaction(self.engine) as connection:
            return [_job(row) for row in connection.execute(query)]

    def claim(self, job_id: UUID, runner: str, *, resume: bool = False) -> Job:
        """Take a queued job, or one whose runner died; with `resume` a failed, paused or cancelled one too.

        Raises JobError when the job is running elsewhere or has ended.
        """
        now = self.clock()
        takeable = [JobState.QUEUED, *(RESUMABLE if resume else ())]
        dead = (jobs.c.state == JobState.RUNNING) & (jobs.c.heartbeat_at < now - self.expiry)
        update = (
            jobs.update()
            .where(jobs.c.id == job_id, jobs.c.state.in_(takeable) | dead)
            .values(
                state=JobState.RUNNING,
                runner=runner,
                heartbeat_at=now,
                started_at=sa.func.coalesce(jobs.c.started_at, now),
                finished_at=None,
                error=None,
                asked=None,
                attempts=jobs.c.attempts + 1,
            )
            .returning(*jobs.c)
        )
        with transaction(self.engine) as connection:
            row = connection.execute(update).one_or_none()
        if row is None:
            raise JobError(self._refusal(self.get(job_id)))
        return _job(row)

    def _refusal(self, job: Job) -> str:
        text = f"{job.kind} job {job.id} cannot be run: it is {job.state}"
        if job.state is JobState.RUNNING and job.heartbeat_at is not None:
            heard_s = (self.clock() - job.heartbeat_at).total_seconds()
            return (
                f"{text} by {job.runner}, heard of {heard_s:.0f} s ago; "
                f"should it be dead, the job is free {self.expiry.total_seconds():.0f} s after its last heartbeat"
            )
        return text if job.state in (JobState.DONE, JobState.QUEUED) else f"{text}; resume it to run it again"

    def progress(self, job_id: UUID, done: int, total: int | None) -> None:
        with transaction(self.engine) as connection:
            connection.execute(
                jobs.update().where(jobs.c.id == job_id).values(progress_done=done, progress_total=total)
            )

    def beat(self, job_id: UUID, runner: str) -> bool:
        """Say that `runner` lives and works on this job and its chunks; return whether it should stop.

        It should when someone asked for it, or when it was thought dead and another has taken over.
        """
        now = self.clock()
        mine = jobs.update().where(jobs.c.id == job_id, jobs.c.runner == runner).values(heartbeat_at=now)
        with transaction(self.engine) as connection:
            found = connection.execute(mine.returning(jobs.c.asked)).one_or_none()
            self.chunks.heard(connection, job_id, runner, now)
        return found is None or found.asked is not None

    def finish(self, job_id: UUID, runner: str, state: JobState, *, error: str | None = None) -> Job:
        """End a job (done, failed, cancelled), pause it or hand it back (queued); its chunks in hand are put down.

        Raises JobError when `runner` does not hold the job any more.
        """
        values = {
            "state": state,
            "error": error,
            "finished_at": self.clock() if state.is_final else None,
            "runner": None,
            "heartbeat_at": None,
            "asked": None,
        }
        with transaction(self.engine) as connection:
            self.chunks.put_down(connection, job_id, runner)
            update = jobs.update().where(jobs.c.id == job_id, jobs.c.runner == runner).values(values)
            row = connection.execute(update.returning(*jobs.c)).one_or_none()
        if row is None:
            raise JobError(f"job {job_id} was taken over while {runner} was not heard of")
        return _job(row)

    def cancel(self, job_id: UUID) -> Job:
        """Cancel a job that waits or whose runner died; ask the runner of a running one to stop. Idempotent."""
        return self._ask(job_id, Asked.CANCEL, JobState.CANCELLED, (JobState.QUEUED, JobState.PAUSED))

    def pause(self, job_id: UUID) -> Job:
        """Pause a queued job or one whose runner died; ask the runner of a running one to stop. Idempotent."""
        return self._ask(job_id, Asked.PAUSE, JobState.PAUSED, (JobState.QUEUED,))

    def _ask(self, job_id: UUID, asked: Asked, state: JobState, waiting: Sequence[JobState]) -> Job:
        now = self.clock()
        dead = (jobs.c.state == JobState.RUNNING) & (jobs.c.heartbeat_at < now - self.expiry)
        gone = {
            "state": state,
            "finished_at": now if state.is_final else None,
            "runner": None,
            "heartbeat_at": None,
            "asked": None,
        }
        mine = jobs.c.id == job_id
        # A job that is to be cancelled is not paused instead.
        open_to = jobs.c.asked.is_(None) if asked is Asked.PAUSE else sa.true()
        with transaction(self.engine) as connection:
            connection.execute(jobs.update().where(mine, jobs.c.state.in_(waiting) | dead).values(gone))
            running = jobs.update().where(mine, jobs.c.state == JobState.RUNNING, open_to)
            connection.execute(running.values(asked=asked))
        return self.get(job_id)

    def requeue(self, job_id: UUID) -> Job:
        """Queue a paused, failed or cancelled job again, for whoever runs such jobs; raise JobError for others."""
        values = {"state": JobState.QUEUED, "finished_at": None, "error": None}
        update = jobs.update().where(jobs.c.id == job_id, jobs.c.state.in_(RESUMABLE)).values(values)
        with transaction(self.engine) as connection:
            row = connection.execute(update.returning(*jobs.c)).one_or_none()
        if row is None:
            raise JobError(self._refusal(self.get(job_id)))
        return _job(row)

    def count_text(self, words: Sequence[str]) -> int:
        """Return how many parameters and errors hold one of the words."""
        return self._texts.count(words)

    def forget_text(self, words: Sequence[str]) -> None:
        """Replace the words in parameters and errors."""
        self._texts.forget(words)

    def forget_before(self, moment: datetime) -> int:
        """Remove jobs that ended before a moment, with their chunks and ticks; return how many."""
        ended = jobs.c.state.in_((JobState.DONE, JobState.FAILED, JobState.CANCELLED)) & (jobs.c.finished_at < moment)
        with transaction(self.engine) as connection:
            return connection.execute(jobs.delete().where(ended)).rowcount

    def abandoned(self, *, requested_by: str) -> Sequence[UUID]:
        """Return jobs of one requester that are queued or whose runner died, oldest first."""
        dead = (jobs.c.state == JobState.RUNNING) & (jobs.c.heartbeat_at < self.clock() - self.expiry)
        query = (
            sa.select(jobs.c.id)
            .where(jobs.c.requested_by == requested_by, (jobs.c.state == JobState.QUEUED) | dead)
            .order_by(jobs.c.created_at)
        )
        with transaction(self.engine) as connection:
            return connection.scalars(query).all()


def _reopen(url: str, expiry_s: float) -> Ledger:
    return Ledger(reopened(url), expiry_s=expiry_s)


def schedule_requester(schedule: str) -> str:
    """What `requested_by` says of a schedule's jobs."""
    return f"schedule:{schedule}"


def _job(row: sa.Row[Any]) -> Job:
    data = as_dict(row)
    asked = None if data["asked"] is None else Asked(data["asked"])
    return Job(**data | {"state": JobState(data["state"]), "asked": asked})
