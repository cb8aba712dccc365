"""Jobs by id: what a caller sees of them, whatever they do."""

from __future__ import annotations

import threading
from typing import Any
from uuid import uuid4

import pytest

from graph_features.errors import InvalidInputError, JobError, StoreUnavailableError, UnknownJobError
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.parameters import BackfillParameters, format_duration, parse, parse_duration
from graph_features.jobs.records import JobState
from graph_features.jobs.runner import JobContext, JobRunner


def test_errors_land_in_the_jobs_row(ledger: Any) -> None:
    """An error on purpose must be shown as it reads, any other with its type."""

    def unavailable(_: JobContext) -> None:
        raise StoreUnavailableError("redis at 127.0.0.1:1 does not answer")

    def broken(_: JobContext) -> None:
        raise ZeroDivisionError("division by zero")

    runner = JobRunner(ledger=ledger, handlers={"unavailable": unavailable, "broken": broken})
    job = runner.run(runner.submit("unavailable", {}))
    assert (job.state, job.error) == (JobState.FAILED, "redis at 127.0.0.1:1 does not answer")
    job = runner.run(runner.submit("broken", {}))
    assert (job.state, job.error) == (JobState.FAILED, "ZeroDivisionError: division by zero")
    with pytest.raises(JobError, match="division by zero"):
        job.check()


def test_a_job_runs_once_and_is_resumed_on_request_only(ledger: Any) -> None:
    """A job that ended must not run again by itself, one that failed may be resumed."""
    outcomes = iter([RuntimeError("first"), None])

    def flaky(_: JobContext) -> None:
        error = next(outcomes)
        if error:
            raise error

    runner = JobRunner(ledger=ledger, handlers={"flaky": flaky})
    job_id = runner.submit("flaky", {})
    runner.run(job_id)
    with pytest.raises(JobError, match="resume"):
        runner.run(job_id)
    job = runner.run(job_id, resume=True)
    assert (job.state, job.attempts, job.error) == (JobState.DONE, 2, None)
    with pytest.raises(JobError, match="done"):
        runner.run(job_id, resume=True)


def test_progress_reaches_the_ledger_and_the_watcher(ledger: Any) -> None:
    """What a job reports must be in its row and at the callback."""
    runner = JobRunner(ledger=ledger, handlers={"count": lambda context: context.progress(3, 10)})
    seen: list[Any] = []
    job = runner.run(runner.submit("count", {}), progress=lambda *step: seen.append(step))
    assert (job.progress_done, job.progress_total, seen) == (3, 10, [(3, 10)])
    assert [job.id for job in runner.list()] == [job.id]
    assert runner.get(job.id).to_json()["state"] == "done"


def test_a_queued_job_that_is_cancelled_never_runs(ledger: Any) -> None:
    """Cancelling before the start must be final until someone resumes."""
    runner = JobRunner(ledger=ledger, handlers={"no": lambda _: pytest.fail("it ran")})
    job_id = runner.submit("no", {})
    assert runner.cancel(job_id).state is JobState.CANCELLED
    assert runner.cancel(job_id).state is JobState.CANCELLED
    with pytest.raises(JobError):
        runner.run(job_id)


def test_two_runners_cannot_run_one_job(ledger: Any) -> None:
    """While one runner has a job, another must be refused."""
    entered, leave = threading.Event(), threading.Event()

    def wait(_: JobContext) -> None:
        entered.set()
        leave.wait(30)

    first = JobRunner(ledger=ledger, handlers={"wait": wait})
    second = JobRunner(ledger=ledger, handlers={"wait": wait})
    job_id = first.submit("wait", {})
    future = first.start(job_id)
    assert entered.wait(30)
    with pytest.raises(JobError, match="running"):
        second.run(job_id)
    leave.set()
    assert future.result(30).state is JobState.DONE
    first.close()


@pytest.mark.parametrize(
    ("kind", "parameters", "field"),
    [
        ("nothing", {}, "kind"),
        ("backfill", {"from": "2026-01-01T00:00:00Z"}, "parameters"),
        ("backfill", {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "parameters"),
        ("backfill", {"from": "2026-01-01T00:00:00", "to": "2026-01-02T00:00:00Z"}, "from"),
        ("backfill", {"every": "1 month"}, "every"),
        ("backfill", {"every": "0s"}, "every"),
        ("backfill", {"colour": "red"}, "colour"),
        ("backfill", {"views": []}, "views"),
        ("slices", {"as_of": "yesterday"}, "as_of"),
        ("sync_graph", {"x": 1}, "x"),
    ],
)
def test_bad_parameters_are_named(ledger: Any, make_stores: Any, kind: str, parameters: Any, field: str) -> None:
    """A job that cannot run must be refused when it is submitted, with the field that is wrong."""
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(make_stores()))
    with pytest.raises(InvalidInputError) as caught:
        runner.submit(kind, parameters)
    assert caught.value.field == field
    assert runner.list() == []


def test_unknown_views_and_jobs_are_named(ledger: Any, make_stores: Any) -> None:
    """A view that does not exist must fail the job readably, an unknown job id must be an error of its own."""
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(make_stores()))
    job = runner.run(runner.submit("backfill", {"views": ["account_topolgy"]}))
    assert "account_topolgy" in str(job.error)
    with pytest.raises(UnknownJobError):
        runner.get(uuid4())


@pytest.mark.parametrize("text", ["90s", "15m", "6h", "1d", "45d"])
def test_durations_read_back(text: str) -> None:
    """What goes into the ledger must be what was asked for."""
    assert format_duration(parse_duration(text)) == text
    model = parse(BackfillParameters, {"every": text})
    assert model.model_dump(mode="json", exclude_none=True)["every"] == text
