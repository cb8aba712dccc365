"""Jobs as the command line runs them: recorded in the ledger, run here, shown while they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from infra.console import progress

if TYPE_CHECKING:
    from graph_features.jobs.records import Job
    from graph_features.jobs.runner import JobKind, JobRunner
    from infra.wiring import Platform


def kinds(platform: Platform) -> dict[str, JobKind]:
    """Every kind of job: those of the features, and those that need the rooms above them."""
    from graph_features.jobs.kinds import feature_kinds
    from infra.model_jobs import model_kinds

    return {**feature_kinds(platform), **model_kinds(platform)}


@contextmanager
def job_runner() -> Iterator[JobRunner]:
    """A runner on the active profile's ledger and stores."""
    from graph_features.jobs.ledger import open_ledger
    from graph_features.jobs.runner import JobRunner
    from infra.wiring import Platform

    with Platform() as platform:
        ledger = open_ledger(platform.settings)
        runner = JobRunner(ledger=ledger, handlers=kinds(platform))
        try:
            yield runner
        finally:
            runner.close()
            ledger.close()


def run_job(kind: str, parameters: Mapping[str, Any]) -> str:
    """Run a job to its end and say how it ended; raise JobError when it failed."""
    with job_runner() as runner:
        return _run(runner, runner.submit(kind, parameters, requested_by="cli"), resume=False)


def resume_job(job_id: UUID) -> str:
    """Go on with a job that failed or was stopped: only what is missing is done."""
    with job_runner() as runner:
        return _run(runner, job_id, resume=True)


def _run(runner: JobRunner, job_id: UUID, *, resume: bool) -> str:
    kind = runner.get(job_id).kind
    with progress(kind) as advance:

        def show(done: int, total: int | None) -> None:
            advance(done, total, "")

        job = runner.run(job_id, resume=resume, progress=show)
    return _ended(job)


def _ended(job: Job) -> str:
    from graph_features.errors import JobError
    from graph_features.jobs.records import JobState

    if job.state is not JobState.DONE:
        raise JobError(
            f"{job.kind} job {job.id} ended {job.state}: {job.error or 'stopped'}; "
            f"`ringfence backfill --resume {job.id}` goes on with what is missing"
        )
    assert job.started_at is not None
    assert job.finished_at is not None
    seconds = (job.finished_at - job.started_at).total_seconds()
    return f"{job.kind} job {job.id}: {job.progress_done:,} done in {seconds:.1f} s"
