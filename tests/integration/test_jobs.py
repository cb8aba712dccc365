"""The ledger's invariants, on SQLite and on PostgreSQL: they are constraints, whatever the code does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
import sqlalchemy as sa

from graph_features import backends
from graph_features.catalog import catalog
from graph_features.contracts import TRANSACTION_SCHEMA
from graph_features.errors import JobError, StoreUnavailableError
from graph_features.jobs.engine import postgres_engine, sqlite_engine
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.records import ChunkKey, ChunkState, JobState
from graph_features.jobs.runner import JobRunner
from graph_features.jobs.tables import chunks, jobs, ticks
from graph_features.settings import FeatureSettings, PlatformSettings
from graph_features.stores.base import Written

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


class Clock:
    """Operational time for tests."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An empty ledger database."""
    if request.param == "sqlite":
        made = sqlite_engine(tmp_path / "ledger.sqlite")
    else:
        made = postgres_engine(request.getfixturevalue("postgres_settings"))
    yield made
    made.dispose()


@pytest.fixture
def ledger(engine: sa.Engine, clock: Clock) -> Ledger:
    made = Ledger(engine, clock=clock, expiry_s=60)
    made.create_schema()
    return made


def keys(n: int, view: str = "v") -> list[ChunkKey]:
    """n slices of a view."""
    return [ChunkKey(view=view, view_hash="h", start_ms=i, end_ms=i, source_seq=1) for i in range(n)]


def job_with(ledger: Ledger, n: int, runner: str = "r") -> Any:
    """A running job with n chunks."""
    job_id = ledger.submit("backfill", {"a": [1, None, "x"]}, requested_by="test")
    ledger.claim(job_id, runner)
    ledger.chunks.plan(job_id, keys(n))
    return job_id


def test_a_job_comes_back_as_it_was_written(ledger: Ledger) -> None:
    """Parameters, times and states must survive the database, times aware and UTC."""
    job_id = ledger.submit("backfill", {"from": "x", "n": 1}, requested_by="rest", due_at=NOON - timedelta(days=1))
    job = ledger.get(job_id)
    assert (job.kind, job.parameters, job.state) == ("backfill", {"from": "x", "n": 1}, JobState.QUEUED)
    assert (job.created_at, job.due_at) == (NOON, NOON - timedelta(days=1))
    assert job.created_at.tzinfo is not None
    assert ledger.list(states=[JobState.QUEUED], kind="backfill") == [job]
    ledger.ping()


def test_schema_is_created_by_several_at_once(engine: sa.Engine) -> None:
    """Processes that start together must all come up."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Ledger(engine).create_schema(), range(4)))
    assert Ledger(engine).list() == []


@pytest.mark.parametrize(
    "values",
    [
        {"state": "sleeping"},
        {"state": "running"},
        {"state": "done"},
        {"state": "failed", "started_at": NOON, "finished_at": NOON},
        {"state": "queued", "runner": "r", "heartbeat_at": NOON},
        {"state": "queued", "error": "no"},
        {"state": "queued", "progress_done": 3, "progress_total": 2},
    ],
)
def test_jobs_that_make_no_sense_cannot_be_stored(ledger: Ledger, values: dict[str, Any]) -> None:
    """A row whose state and other columns contradict each other must be refused by the database itself."""
    row = {
        "id": uuid4(), "kind": "k", "parameters": {}, "requested_by": "t", "due_at": NOON, "created_at": NOON,
        "attempts": 0, "progress_done": 0,
    }  # fmt: skip
    with pytest.raises(sa.exc.IntegrityError), ledger.engine.begin() as connection:
        connection.execute(jobs.insert().values({**row, **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"state": "offline_committed"},
        {"state": "done", "finished_at": NOON},
        {"state": "done", "offline_at": NOON},
        {"state": "failed"},
        {"state": "running"},
        {"state": "pending", "runner": "r", "heartbeat_at": NOON},
        {"state": "pending", "offline_at": NOON},
        {"end_ms": -1},
        {"partition": 1},
    ],
)
def test_chunks_that_make_no_sense_cannot_be_stored(ledger: Ledger, values: dict[str, Any]) -> None:
    """Nothing can be online before it is offline, nor done without a time, nor running without a runner."""
    job_id = job_with(ledger, 1)
    with pytest.raises(sa.exc.IntegrityError), ledger.engine.begin() as connection:
        connection.execute(chunks.update().where(chunks.c.job_id == job_id).values(values))


def test_the_database_admits_one_running_chunk_per_key(ledger: Ledger) -> None:
    """The same work cannot run twice even for code that bypasses the claim."""
    first, second = job_with(ledger, 1), job_with(ledger, 1)
    running = {"state": "running", "runner": "x", "heartbeat_at": NOON}
    with ledger.engine.begin() as connection:
        connection.execute(chunks.update().where(chunks.c.job_id == first).values(running))
    with pytest.raises(sa.exc.IntegrityError), ledger.engine.begin() as connection:
        connection.execute(chunks.update().where(chunks.c.job_id == second).values(running))


def test_planning_twice_adds_nothing(ledger: Ledger) -> None:
    """A plan that is repeated must leave chunks and their states alone."""
    job_id = job_with(ledger, 3)
    chunk = ledger.chunks.claim(job_id, "r")
    assert chunk is not None
    ledger.chunks.plan(job_id, keys(4))
    found = ledger.chunks.list(job_id)
    assert [chunk.key for chunk in found] == keys(4)
    assert [chunk.state for chunk in found] == [ChunkState.RUNNING, *[ChunkState.PENDING] * 3]


def test_a_chunk_goes_through_its_states(ledger: Ledger, clock: Clock) -> None:
    """running, offline_committed, done: each with its time and rows, and out of reach once done."""
    job_id = job_with(ledger, 1)
    chunk = ledger.chunks.claim(job_id, "r")
    assert chunk is not None
    clock.now += timedelta(seconds=3)
    ledger.chunks.offline_committed(chunk, Written(rows=42, name="n"))
    assert ledger.chunks.claim(job_id, "other") is None
    ledger.chunks.done(chunk)
    (done,) = ledger.chunks.list(job_id)
    assert (done.state, done.rows, done.offline_at, done.attempts) == (ChunkState.DONE, 42, clock.now, 1)
    with pytest.raises(JobError, match="taken over"):
        ledger.chunks.failed(chunk, "too late")


def test_many_runners_share_chunks_without_overlap(ledger: Ledger) -> None:
    """However many claim at once, each chunk must be had by exactly one."""
    job_id = job_with(ledger, 30)
    barrier = threading.Barrier(6)

    def work(name: str) -> list[int]:
        barrier.wait()
        had = []
        while (chunk := ledger.chunks.claim(job_id, name)) is not None:
            had.append(chunk.key.start_ms)
            ledger.chunks.offline_committed(chunk, Written(rows=1, name="n"))
            ledger.chunks.done(chunk)
        return had

    with ThreadPoolExecutor(6) as pool:
        had = [start for result in pool.map(work, "abcdef") for start in result]
    # A runner that meets others' claims may see nothing free and leave; the last one leaves nothing behind.
    while (chunk := ledger.chunks.claim(job_id, "late")) is not None:
        had.append(chunk.key.start_ms)
        ledger.chunks.offline_committed(chunk, Written(rows=1, name="n"))
        ledger.chunks.done(chunk)
    assert sorted(had) == list(range(30))
    assert ledger.chunks.counts(job_id)[ChunkState.DONE] == 30


def test_two_jobs_do_not_run_the_same_work_at_once(ledger: Ledger) -> None:
    """While one job writes a slice, another job that wants it must take other work or wait."""
    first, second = job_with(ledger, 2), job_with(ledger, 2)
    mine = ledger.chunks.claim(first, "r")
    theirs = ledger.chunks.claim(second, "s")
    assert mine is not None
    assert theirs is not None
    assert (mine.key.start_ms, theirs.key.start_ms) == (0, 1)
    assert ledger.chunks.claim(second, "s") is None
    ledger.chunks.offline_committed(mine, Written(rows=1, name="n"))
    assert ledger.chunks.claim(second, "s") is None, "it is still being written online"
    ledger.chunks.done(mine)
    freed = ledger.chunks.claim(second, "s")
    assert freed is not None
    assert freed.key.start_ms == 0


def test_a_dead_runners_work_is_taken_over(ledger: Ledger, clock: Clock) -> None:
    """After the heartbeat expires the job and its chunk go to another, and the dead one can change nothing."""
    job_id = job_with(ledger, 2, runner="dead")
    lost = ledger.chunks.claim(job_id, "dead")
    assert lost is not None
    ledger.chunks.offline_committed(lost, Written(rows=5, name="n"))
    clock.now += timedelta(seconds=59)
    assert ledger.beat(job_id, "dead") is False
    clock.now += timedelta(seconds=59)
    with pytest.raises(JobError, match="running"):
        ledger.claim(job_id, "heir")
    assert ledger.abandoned(requested_by="test") == []
    clock.now += timedelta(seconds=2)
    assert ledger.abandoned(requested_by="test") == [job_id]
    assert ledger.claim(job_id, "heir").attempts == 2
    replay = ledger.chunks.claim(job_id, "heir")
    assert replay is not None
    assert replay.key == lost.key
    assert replay.offline_at is not None, "the offline rows are there: only the online write is left"
    assert ledger.beat(job_id, "dead") is True, "the dead one must learn that it lost the job"
    for late in (lambda: ledger.chunks.done(lost), lambda: ledger.finish(job_id, "dead", JobState.DONE)):
        with pytest.raises(JobError, match="taken over"):
            late()
    ledger.chunks.done(replay)
    assert ledger.chunks.list(job_id)[0].rows == 5


def test_finishing_puts_down_what_is_in_hand(ledger: Ledger) -> None:
    """A job that ends early must leave its chunks claimable, written ones for replay."""
    job_id = job_with(ledger, 2)
    written, started = ledger.chunks.claim(job_id, "r"), None
    assert written is not None
    ledger.chunks.offline_committed(written, Written(rows=1, name="n"))
    started = ledger.chunks.claim(job_id, "r")
    assert started is not None
    assert ledger.finish(job_id, "r", JobState.CANCELLED).finished_at is not None
    states = [chunk.state for chunk in ledger.chunks.list(job_id)]
    assert states == [ChunkState.OFFLINE_COMMITTED, ChunkState.PENDING]


def test_failed_chunks_are_reopened_where_they_stopped(ledger: Ledger) -> None:
    """A chunk that failed online must come back for its online write only."""
    job_id = job_with(ledger, 2)
    for _ in range(2):
        chunk = ledger.chunks.claim(job_id, "r")
        assert chunk is not None
        if chunk.key.start_ms == 1:
            ledger.chunks.offline_committed(chunk, Written(rows=1, name="n"))
        ledger.chunks.failed(chunk, "redis went away")
    assert ledger.chunks.claim(job_id, "r") is None
    assert ledger.chunks.reopen(job_id) == 2
    states = [chunk.state for chunk in ledger.chunks.list(job_id)]
    assert states == [ChunkState.PENDING, ChunkState.OFFLINE_COMMITTED]


def test_ticks_fire_once_under_contention(ledger: Ledger) -> None:
    """Of many who take the same tick one must get it, and the others must leave nothing behind."""
    barrier = threading.Barrier(5)

    def take(_: int) -> Any:
        barrier.wait()
        return ledger.submit_tick("nightly", NOON, "slices", {})

    with ThreadPoolExecutor(5) as pool:
        taken = [job_id for job_id in pool.map(take, range(5)) if job_id is not None]
    assert len(taken) == 1
    assert [job.id for job in ledger.list()] == taken
    assert ledger.get(taken[0]).due_at == NOON
    assert list(ledger.schedules.tick_times("nightly")) == [NOON]
    with pytest.raises(sa.exc.IntegrityError), ledger.engine.begin() as connection:
        connection.execute(ticks.insert().values(schedule="nightly", tick_at=NOON, job_id=taken[0], created_at=NOON))


def test_cancel_asks_a_running_job_and_ends_a_dead_one(ledger: Ledger, clock: Clock) -> None:
    """A living runner must be told, a dead one must not keep its job from being cancelled."""
    job_id = job_with(ledger, 1)
    assert ledger.cancel(job_id).state is JobState.RUNNING
    assert ledger.beat(job_id, "r") is True
    clock.now += timedelta(seconds=61)
    assert ledger.cancel(job_id).state is JobState.CANCELLED


def test_an_unreachable_ledger_is_named_without_its_password(tmp_path: Path) -> None:
    """The error must say which ledger does not answer and keep the password to itself."""
    from pydantic import SecretStr

    from graph_features.settings import PostgresSettings

    settings = PostgresSettings(port=1, password=SecretStr("hunter2"), connect_timeout_s=2)
    with pytest.raises(StoreUnavailableError) as caught:
        Ledger(postgres_engine(settings)).ping()
    assert "127.0.0.1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


class RealStores:
    """The stores of a profile, without a graph."""

    graph = None
    feature_settings = FeatureSettings()

    def __init__(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        if request.param == "embedded":
            platform = PlatformSettings(home=tmp_path)
            self.records = backends.open_records(platform)
            self.offline = backends.open_offline(platform)
            self.online = backends.open_online(platform)
            return
        from graph_features.sources.postgres import PostgresRecords
        from graph_features.stores.postgres import PostgresOfflineStore
        from graph_features.stores.redis import RedisOnlineStore

        postgres = request.getfixturevalue("postgres_settings")
        self.records = PostgresRecords(postgres)
        self.offline = PostgresOfflineStore(postgres)
        self.online = RedisOnlineStore(request.getfixturevalue("redis_settings"), project="test")


@pytest.fixture(params=["embedded", pytest.param("services", marks=pytest.mark.services)])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealStores]:
    """Real stores with 200 payments between 20 accounts over 4 days."""
    made = RealStores(request, tmp_path)
    rows = [
        {
            **dict.fromkeys(TRANSACTION_SCHEMA.names),
            "transaction_id": f"t{i}",
            "event_timestamp": NOON - timedelta(minutes=28 * i),
            "sender_id": f"a{i % 20}",
            "receiver_id": f"a{(i * 7 + 3) % 20}",
            "amount": 100 + i,
            "amount_base": 100 + i,
            "currency": "EUR",
        }
        for i in range(200)
    ]
    made.records.create_schema()
    made.records.write_transactions(pa.Table.from_pylist(rows, TRANSACTION_SCHEMA), made.online.mark_pending)
    yield made
    for store in (made.records, made.offline, made.online):
        store.close()


def test_backfill_and_materialize_fill_the_real_stores(stores: RealStores, tmp_path: Path) -> None:
    """After both every account must have a row in every view and nothing must be pending; again changes nothing."""
    ledger = Ledger(sqlite_engine(tmp_path / "jobs" / "ledger.sqlite"))
    ledger.create_schema()
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores))
    accounts = [(f"a{i}",) for i in range(20)]
    views = [view for view in catalog().schemas.values() if view.entity == "account"]
    written = []
    for _ in range(2):
        job = runner.run(runner.submit("backfill", {"partitions": 2})).check()
        written.append(sum(chunk.rows for chunk in ledger.chunks.list(job.id)))
        runner.run(runner.submit("materialize", {"as_of": NOON.isoformat()})).check()
        assert stores.online.all_pending() == {}
        for packed in stores.online.read([(view, accounts) for view in views]):
            assert all(value is not None for value in packed)
    assert written[0] == written[1] > 0
    runner.close()
    ledger.close()


def test_changes_tell_from_when_late_records_count(stores: RealStores) -> None:
    """A status or label counts from when it became known, not before its payment; labels only if asked for."""
    from graph_features.clock import to_ms
    from graph_features.contracts import LABEL_SCHEMA, STATUS_SCHEMA

    seq, minute = stores.records.max_seq(), timedelta(minutes=1)
    status = {"transaction_id": "t0", "status": "reversed", "status_timestamp": NOON - timedelta(days=9)}
    label = {"transaction_id": "t1", "is_fraud": True, "label_timestamp": NOON + minute, "fraud_party": "both"}
    stores.records.write_statuses(pa.Table.from_pylist([status], STATUS_SCHEMA))
    stores.records.write_labels(pa.Table.from_pylist([label], LABEL_SCHEMA))

    def changes(before: datetime, *, labels: bool, up_to_seq: int = seq + 2) -> list[tuple[int, int]]:
        found = stores.records.changes(after_seq=seq, up_to_seq=up_to_seq, before_ms=to_ms(before), labels=labels)
        return list(zip(found["seq"].to_pylist(), found["known_ms"].to_pylist(), strict=True))

    late = [(seq + 1, to_ms(NOON)), (seq + 2, to_ms(NOON + minute))]
    assert changes(NOON + 2 * minute, labels=True) == late
    assert changes(NOON + 2 * minute, labels=False) == late[:1]
    assert changes(NOON + 2 * minute, labels=True, up_to_seq=seq + 1) == late[:1]
    assert changes(NOON, labels=True) == []
