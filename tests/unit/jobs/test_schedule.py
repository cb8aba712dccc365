"""Schedules: a file that is understood or refused, ticks that all schedulers agree on, each run once."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_features.errors import InvalidInputError
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.ledger import Ledger, schedule_requester
from graph_features.jobs.records import JobState
from graph_features.jobs.runner import JobContext, JobRunner
from graph_features.jobs.schedule import check_schedule, run_schedule
from graph_features.jobs.schedule_file import ScheduledJob, read_schedule
from graph_features.jobs.ticks import Ticks
from infra.model_jobs import model_kinds
from infra.retention import retention_kinds

EXAMPLE = Path(__file__).parents[3] / "docs" / "schedule.example.yaml"
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def ticks(zone: str = "UTC", **values: Any) -> Ticks:
    """The ticks of a job named `job`."""
    return Ticks(ScheduledJob.model_validate({"name": "job", "kind": "count", **values}), ZoneInfo(zone))


def test_the_example_file_is_valid(ledger: Any, make_stores: Any) -> None:
    """The documented example must be accepted as it stands, kinds and parameters included."""
    nowhere: Any = None  # what a kind works on is asked for when it runs
    kinds = feature_kinds(make_stores()) | model_kinds(nowhere) | retention_kinds(nowhere)
    schedule = check_schedule(EXAMPLE, JobRunner(ledger=ledger, handlers=kinds))
    assert {job.kind for job in schedule.jobs} >= {"sync_graph", "materialize", "slices", "backfill", "train"}
    (retrain,) = [job for job in schedule.jobs if job.name == "retrain"]
    assert retrain.parameters["promote"]
    retrain.parameters["gates"]["largest_score_shift"] = 2
    with pytest.raises(InvalidInputError, match=r"gates\.largest_score_shift"):
        JobRunner(ledger=ledger, handlers=kinds).check_parameters("train", retrain.parameters)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: [", "valid YAML"),
        ("- a", "a mapping with a list named jobs"),
        ("jobs: []", "jobs"),
        ("jobs: [{name: a, kind: sync_graph}]", "either cron or every"),
        ("jobs: [{name: a, kind: sync_graph, every: 1m, cron: '* * * * *'}]", "either cron or every"),
        ("jobs: [{name: a, kind: sync_graph, every: soon}]", "90s, 15m, 6h, 1d or 2w"),
        ("jobs: [{name: a, kind: sync_graph, every: 1m, jitter: 1m}]", "shorter than every"),
        ("jobs: [{name: a, kind: sync_graph, cron: '* * *'}]", "five fields"),
        ("jobs: [{name: a, kind: sync_graph, cron: '61 * * * *'}]", "cron"),
        ("jobs: [{name: a, kind: sync_graph, cron: '0 2 * * 1'}]", "mon to sun"),
        ("jobs: [{name: a, kind: sync_graph, every: 1m, timezone: Mars/Phobos}]", "IANA"),
        ("jobs: [{name: A b, kind: sync_graph, every: 1m}]", "name"),
        ("jobs: [{name: a, kind: sync_graph, every: 1m}, {name: a, kind: slices, every: 1m}]", "a comes twice"),
        ("jobs: [{name: a, kind: sync_graph, every: 1m, color: red}]", "color"),
        ("jobs: [{name: a, kind: paint, every: 1m}]", "one of backfill"),
        ("jobs: [{name: a, kind: backfill, every: 1m, parameters: {every: x}}]", "job a: every"),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    text: str, message: str, tmp_path: Path, ledger: Any, make_stores: Any
) -> None:
    """Every mistake must be refused before anything runs, naming the file and what was expected."""
    file = tmp_path / "schedule.yaml"
    file.write_text(text)
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(make_stores()))
    with pytest.raises(InvalidInputError) as caught:
        check_schedule(file, runner)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that cannot be read must be named."""
    with pytest.raises(InvalidInputError, match=r"gone\.yaml"):
        read_schedule(tmp_path / "gone.yaml")


def test_intervals_lie_on_multiples_since_1970() -> None:
    """Two schedulers that start at different moments must agree on the ticks of an interval."""
    every = ticks(every="15m")
    assert every.due(NOON + timedelta(minutes=7)) == NOON
    assert every.after(NOON) == NOON + timedelta(minutes=15)
    assert every.get_next_fire_time(None, NOON) == NOON + timedelta(minutes=15)


def test_cron_follows_its_zone_through_a_change_of_clocks() -> None:
    """Two in the morning in Berlin must be 01:00 UTC in winter and 00:00 UTC in summer."""
    nightly = ticks("Europe/Berlin", cron="0 2 * * *")
    assert nightly.after(datetime(2026, 1, 5, tzinfo=UTC)) == datetime(2026, 1, 5, 1, tzinfo=UTC)
    assert nightly.after(datetime(2026, 7, 4, 12, tzinfo=UTC)) == datetime(2026, 7, 5, 0, tzinfo=UTC)


def test_late_ticks_are_coalesced_within_their_grace() -> None:
    """After downtime the last late tick must be due, and none once the grace is over."""
    nightly = ticks(cron="0 2 * * *", misfire_grace="3d")
    assert nightly.due(NOON) == NOON.replace(hour=2)
    strict = ticks(cron="0 2 * * *", misfire_grace="1h")
    assert strict.due(NOON.replace(hour=2, minute=30)) == NOON.replace(hour=2)
    assert strict.due(NOON) is None


@settings(max_examples=200, deadline=None)
@given(
    every_s=st.integers(2, 7_200),
    jitter=st.floats(0, 0.99),
    offset_s=st.integers(0, 10_000),
    grace_s=st.integers(1, 20_000),
)
def test_the_due_tick_is_the_last_whose_delay_is_over(every_s: int, jitter: float, offset_s: int, grace_s: int) -> None:
    """The quick search for the due tick and for the next wake-up must agree with looking at every tick."""
    jitter_s = int(every_s * jitter)
    job = ticks(every=f"{every_s}s", jitter=f"{jitter_s}s", misfire_grace=f"{grace_s}s")
    now = NOON + timedelta(seconds=offset_s)
    near = range(-(grace_s + 2 * every_s) // every_s - 2, 4)
    base = int(now.timestamp()) // every_s
    nominal = [datetime.fromtimestamp((base + k) * every_s, UTC) for k in near]
    starts = {tick: tick + job.delay(tick) for tick in nominal}
    assert all(timedelta(0) <= start - tick <= job.job.jitter for tick, start in starts.items())
    ready = [tick for tick, start in starts.items() if start <= now <= start + job.job.misfire_grace]
    assert job.due(now) == max(ready, default=None)
    assert job.get_next_fire_time(None, now) == min(start for start in starts.values() if start > now)


def test_a_tick_is_taken_once(ledger: Any) -> None:
    """Of two who want the same tick one must get a job and the other nothing, not even a queued job."""
    assert ledger.submit_tick("s", NOON, "count", {}) is not None
    assert ledger.submit_tick("s", NOON, "count", {}) is None
    assert ledger.submit_tick("other", NOON, "count", {}) is not None
    assert len(ledger.list()) == 2


def test_two_schedulers_run_every_tick_once(tmp_path: Path, ledger: Any, stop: Any) -> None:
    """Two schedulers on one ledger must run each tick of a fast schedule exactly once."""
    real_time = Ledger(ledger.engine)
    file = tmp_path / "schedule.yaml"
    file.write_text("jobs: [{name: fast, kind: count, every: 1s, misfire_grace: 10s}]")
    due: Counter[datetime] = Counter()
    enough = threading.Event()

    def count(context: JobContext) -> None:
        due[context.due_at] += 1
        if len(due) >= 4:
            enough.set()

    threads = [threading.Thread(target=run_schedule, args=(file, {"count": count}, real_time, stop)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert enough.wait(30)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert set(due.values()) == {1}
    assert sorted(real_time.schedules.tick_times("fast")) == sorted(due)
    moments = sorted(due)
    assert all(moment.microsecond == 0 for moment in moments)
    assert {job.state for job in real_time.list()} == {JobState.DONE}


def test_what_a_dead_scheduler_left_is_taken_up(tmp_path: Path, ledger: Any, stop: Any) -> None:
    """A tick's job that was queued but never run must run when a scheduler starts, and its tick must not fire again."""
    real_time = Ledger(ledger.engine)
    file = tmp_path / "schedule.yaml"
    file.write_text("jobs: [{name: daily, kind: count, every: 1d, misfire_grace: 1d}]")
    daily = Ticks(read_schedule(file).jobs[0], ZoneInfo("UTC"))
    tick_at = daily.due(datetime.now(UTC))
    assert tick_at is not None
    job_id = real_time.submit_tick("daily", tick_at, "count", {})
    ran = threading.Event()
    thread = threading.Thread(target=run_schedule, args=(file, {"count": lambda _: ran.set()}, real_time, stop))
    thread.start()
    assert ran.wait(30)
    stop.set()
    thread.join(30)
    assert [job.id for job in real_time.list()] == [job_id]
    assert real_time.get(job_id).state is JobState.DONE
    assert real_time.abandoned(requested_by=schedule_requester("daily")) == []


def test_stopping_the_schedule_hands_back_what_runs(tmp_path: Path, ledger: Any, stop: Any) -> None:
    """A job that runs when the scheduler stops must end at its next check and be queued for the next scheduler."""
    real_time = Ledger(ledger.engine)
    file = tmp_path / "schedule.yaml"
    file.write_text("jobs: [{name: long, kind: long, every: 1d, misfire_grace: 1d}]")
    running = threading.Event()

    def long(context: JobContext) -> None:
        running.set()
        while True:
            context.check()
            context.stop.wait(0.1)

    thread = threading.Thread(target=run_schedule, args=(file, {"long": long}, real_time, stop))
    thread.start()
    assert running.wait(30)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert [job.state for job in real_time.list()] == [JobState.QUEUED]
