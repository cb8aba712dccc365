"""Jobs over REST outlive the server that took them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graph_features.jobs.engine import sqlite_engine
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.records import JobState
from graph_features.jobs.runner import JobKind, JobRunner
from serving.jobs import REQUESTER, Jobs
from serving.pool import InlinePool


class Clock:
    """Operational time for tests."""

    now = datetime(2026, 1, 5, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    made = Ledger(sqlite_engine(tmp_path / "ledger.sqlite"), clock=clock)
    made.create_schema()
    return made


@pytest.fixture
def jobs(ledger: Ledger) -> Iterator[Jobs]:
    """A server's jobs, with a worker that runs them."""
    kinds = {"work": JobKind(run=lambda context: None)}
    runner = JobRunner(ledger=ledger, handlers=kinds)

    def run(job_id: Any) -> str:
        return str(runner.run(job_id).state)

    made = Jobs(
        ledger=ledger,
        kinds=kinds,
        open_pool=lambda: InlinePool(name="jobs", size=1, build=lambda: SimpleNamespace(run=run)),
    )
    yield made
    made.close()
    runner.close()


def ended(ledger: Ledger, job_id: Any) -> JobState:
    """The state of a job once it is final."""
    give_up = time.monotonic() + 10
    while not ledger.get(job_id).state.is_final and time.monotonic() < give_up:
        time.sleep(0.01)
    return ledger.get(job_id).state


def test_what_a_killed_server_left_is_taken_up(jobs: Jobs, ledger: Ledger, clock: Clock) -> None:
    """Jobs that waited, and those whose worker died, must run in the next server; others' jobs are left alone."""
    waiting = ledger.submit("work", {}, requested_by=REQUESTER)
    dead = ledger.submit("work", {}, requested_by=REQUESTER)
    ledger.claim(dead, "gone")
    mine = ledger.submit("work", {}, requested_by="cli")
    assert jobs.adopt() == [waiting], "the other may still be alive"
    assert ended(ledger, waiting) is JobState.DONE
    clock.now += timedelta(minutes=1)
    assert jobs.adopt() == [dead]
    assert ended(ledger, dead) is JobState.DONE
    assert jobs.adopt() == []
    assert ledger.get(mine).state is JobState.QUEUED


def test_resuming_over_rest_runs_the_job(jobs: Jobs, ledger: Ledger) -> None:
    """A paused job must be queued again and run, without anybody asking twice."""
    job_id = ledger.submit("work", {}, requested_by=REQUESTER)
    assert jobs.pause(job_id).state is JobState.PAUSED
    jobs.resume(job_id)
    assert ended(ledger, job_id) is JobState.DONE
