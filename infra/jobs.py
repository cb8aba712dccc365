"""Jobs as the command line runs them: recorded in the ledger, run here, shown while they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from infra.console import progress, say

if TYPE_CHECKING:
    from graph_features.jobs.records import ChunkKey, Job
    from graph_features.jobs.runner import JobKind, JobRunner
    from infra.wiring import Platform


def kinds(platform: Platform) -> dict[str, JobKind]:
    """Every kind of job: those of the features, and those that need the rooms above them."""
    from graph_features.jobs.kinds import feature_kinds
    from infra.decision_logs import decision_log_kinds
    from infra.model_jobs import model_kinds
    from infra.retention import retention_kinds

    return {
        **feature_kinds(platform),
        **model_kinds(platform),
        **retention_kinds(platform),
        **decision_log_kinds(platform),
    }


@contextmanager
def job_runner() -> Iterator[JobRunner]:
    """A runner on the active profile's ledger and stores."""
    from graph_features.jobs.ledger import open_ledger
    from graph_features.jobs.runner import JobRunner
    from graph_features.settings import JobSettings, load
    from infra.wiring import Platform

    with Platform() as platform:
        ledger = open_ledger(platform.settings)
        runner = JobRunner(ledger=ledger, handlers=kinds(platform), settings=load(JobSettings))
        try:
            yield runner
        finally:
            runner.close()
            ledger.close()


def run_job(kind: str, parameters: Mapping[str, Any], *, take_up: bool = False) -> str:
    """Run a job to its end and say how it ended; raise JobError when it failed.

    With `take_up` a job of the same parameters that was interrupted goes on instead, so that the same command finishes
    what it began.
    """
    with job_runner() as runner:
        interrupted = _interrupted(runner, kind, parameters) if take_up else None
        if interrupted is not None:
            say(f"going on with {kind} job {interrupted}, which was interrupted (--new starts another)", err=True)
            return _run(runner, interrupted, resume=True)
        return _run(runner, runner.submit(kind, parameters, requested_by="cli"), resume=False)


def _interrupted(runner: JobRunner, kind: str, parameters: Mapping[str, Any]) -> UUID | None:
    """Return the newest unfinished job that was asked for the same, planned with today's code."""
    from graph_features.catalog import catalog
    from graph_features.jobs.work import view_hash
    from graph_features.settings import FeatureSettings, load

    same = _essence(runner.check_parameters(kind, parameters))
    hashes = {view_hash(schema, load(FeatureSettings)) for schema in catalog().schemas.values()}
    for job in runner.ledger.unfinished(kind):
        chunks = runner.ledger.chunks.list(job.id)
        if job.requested_by == "cli" and _essence(job.parameters) == same and chunks:
            return job.id if all(chunk.key.view_hash in hashes for chunk in chunks) else None
    return None


def _essence(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "workers"}


def planned_chunks(runner: JobRunner, kind: str, parameters: Mapping[str, Any]) -> Sequence[ChunkKey]:
    """Return the chunks that a backfill or recompute job would plan now."""
    from graph_features.catalog import catalog
    from graph_features.jobs.backfill import planned
    from graph_features.jobs.parameters import BackfillParameters, RecomputeParameters, parse
    from graph_features.jobs.stale import find_stale
    from graph_features.jobs.work import chosen_views
    from infra.wiring import Platform

    schemas = catalog().schemas
    with Platform() as platform:
        if kind == "recompute":
            views = parse(RecomputeParameters, parameters).views
            return find_stale(runner.ledger, platform, chosen_views(schemas, views)).keys
        wanted = parse(BackfillParameters, parameters)
        return planned(wanted, wanted.period_ms(runner.ledger.clock()), platform, schemas)


def resume_job(job_id: UUID, *, only_failed: bool = False) -> str:
    """Go on with a job that failed or was stopped: only what is missing is done.

    With `only_failed` raise JobError for a job that did not fail.
    """
    from graph_features.errors import JobError
    from graph_features.jobs.records import JobState

    with job_runner() as runner:
        job = runner.get(job_id)
        if only_failed and job.state is not JobState.FAILED:
            raise JobError(f"{job.kind} job {job_id} is {job.state}: only a failed job has failed chunks to retry")
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
            f"`ringfence job resume {job.id}` goes on with what is missing"
        )
    assert job.started_at is not None
    assert job.finished_at is not None
    seconds = (job.finished_at - job.started_at).total_seconds()
    return f"{job.kind} job {job.id}: {job.progress_done:,} done in {seconds:.1f} s"
