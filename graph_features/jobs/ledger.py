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
from graph_features.jobs.engine import create_tables, open_engine, transaction
from graph_features.jobs.records import Job, JobState
from graph_features.jobs.tables import as_dict, chunks, jobs, ticks
from graph_features.settings import PlatformSettings

HEARTBEAT_EXPIRY_S = 30.0
"""A runner that has not been heard of for so long is dead, and its work is free to be taken."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def open_ledger(platform: PlatformSettings) -> Ledger:
    """The active profile's ledger, its tables created if missing."""
    ledger = Ledger(open_engine(platform))
    ledger.create_schema()
    return ledger


class Ledger:
    """Jobs, their chunks and the ticks of schedules, on PostgreSQL or SQLite. Threads and processes may share it.

    `clock` is operational time (heartbeats, created_at); it never enters a feature.
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
                connection.execute(
                    ticks.insert().values(schedule=schedule, tick_at=tick_at, job_id=job_id, created_at=self.clock())
                )
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

    def tick_times(self, schedule: str, *, limit: int = 100) -> Sequence[datetime]:
        """Return the ticks of a schedule that fired, newest first."""
        query = sa.select(ticks.c.tick_at).where(ticks.c.schedule == schedule).order_by(ticks.c.tick_at.desc())
        with transaction(self.engine) as connection:
            return connection.scalars(query.limit(limit)).all()

    def claim(self, job_id: UUID, runner: str, *, resume: bool = False) -> Job:
        """Take a queued job, or one whose runner died; with `resume` a failed or cancelled one too.

        Raises JobError when the job is running elsewhere or has ended.
        """
        now = self.clock()
        takeable = [JobState.QUEUED, *((JobState.FAILED, JobState.CANCELLED) if resume else ())]
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
                cancel_requested=False,
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

        It should when someone asked to cancel the job, or when it was thought dead and another has taken over.
        """
        now = self.clock()
        with transaction(self.engine) as connection:
            cancel = connection.execute(
                jobs.update()
                .where(jobs.c.id == job_id, jobs.c.runner == runner)
                .values(heartbeat_at=now)
                .returning(jobs.c.cancel_requested)
            ).scalar_one_or_none()
            connection.execute(
                chunks.update().where(chunks.c.job_id == job_id, chunks.c.runner == runner).values(heartbeat_at=now)
            )
        return cancel is None or bool(cancel)

    def finish(self, job_id: UUID, runner: str, state: JobState, *, error: str | None = None) -> Job:
        """End a job (done, failed, cancelled) or hand it back (queued); its chunks in hand are put down.

        Raises JobError when `runner` does not hold the job any more.
        """
        values = {
            "state": state,
            "error": error,
            "finished_at": self.clock() if state.is_final else None,
            "runner": None,
            "heartbeat_at": None,
            "cancel_requested": False,
        }
        with transaction(self.engine) as connection:
            self.chunks.put_down(connection, job_id, runner)
            update = jobs.update().where(jobs.c.id == job_id, jobs.c.runner == runner).values(values)
            row = connection.execute(update.returning(*jobs.c)).one_or_none()
        if row is None:
            raise JobError(f"job {job_id} was taken over while {runner} was not heard of")
        return _job(row)

    def cancel(self, job_id: UUID) -> Job:
        """Cancel a queued job or one whose runner died; ask the runner of a running one to stop. Idempotent."""
        now = self.clock()
        dead = (jobs.c.state == JobState.RUNNING) & (jobs.c.heartbeat_at < now - self.expiry)
        gone = {"state": JobState.CANCELLED, "finished_at": now, "runner": None, "heartbeat_at": None}
        mine = jobs.c.id == job_id
        with transaction(self.engine) as connection:
            connection.execute(jobs.update().where(mine, (jobs.c.state == JobState.QUEUED) | dead).values(gone))
            connection.execute(
                jobs.update().where(mine, jobs.c.state == JobState.RUNNING).values(cancel_requested=True)
            )
        return self.get(job_id)

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


def schedule_requester(schedule: str) -> str:
    """What `requested_by` says of a schedule's jobs."""
    return f"schedule:{schedule}"


def _job(row: sa.Row[Any]) -> Job:
    data = as_dict(row)
    return Job(**data | {"state": JobState(data["state"])})
