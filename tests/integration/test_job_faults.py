"""What operators meet: refused rights, wrong passwords, full disks, servers that are away, workers that die."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from pydantic import SecretStr

from graph_features import backends
from graph_features.contracts import TRANSACTION_SCHEMA
from graph_features.errors import JobError, StoreUnavailableError
from graph_features.jobs.engine import postgres_engine, sqlite_engine
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.leadership import leadership
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.records import ChunkKey, ChunkState, JobState
from graph_features.jobs.runner import JobRunner
from graph_features.schema import ViewSchema
from graph_features.settings import FeatureSettings, JobSettings, PlatformSettings, PostgresSettings
from graph_features.sources.postgres import PostgresRecords
from graph_features.stores.base import Written
from graph_features.stores.postgres import PostgresOfflineStore
from graph_features.stores.redis import RedisOnlineStore

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
QUICK = JobSettings(heartbeat_s=0.2, expiry_s=3, patience_s=0.3, max_attempts=1)
SLICES = {
    "views": ["account_topology"],
    "from": (NOON - timedelta(days=3)).isoformat(),
    "to": (NOON + timedelta(days=1)).isoformat(),
}


def payments(count: int = 120) -> pa.Table:
    """Payments between ten accounts over some days."""
    rows = [
        {
            **dict.fromkeys(TRANSACTION_SCHEMA.names),
            "transaction_id": f"t{i}",
            "event_timestamp": NOON - timedelta(minutes=45 * i),
            "sender_id": f"a{i % 10}",
            "receiver_id": f"a{(i * 3 + 1) % 10}",
            "amount": 100 + i,
            "amount_base": 100 + i,
            "currency": "EUR",
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, TRANSACTION_SCHEMA)


class ServiceStores:
    """PostgreSQL and Redis, each of which a test may replace."""

    graph = None
    feature_settings = FeatureSettings()

    def __init__(self, postgres: PostgresSettings, redis: Any) -> None:
        self.records: Any = PostgresRecords(postgres)
        self.offline: Any = PostgresOfflineStore(postgres)
        self.online: Any = RedisOnlineStore(redis, project="test")

    def close(self) -> None:
        for store in (self.records, self.offline, self.online):
            store.close()


@pytest.fixture
def stores(postgres_settings: Any, redis_settings: Any) -> Iterator[ServiceStores]:
    made = ServiceStores(postgres_settings, redis_settings)
    made.records.create_schema()
    made.records.write_transactions(payments(), made.online.mark_pending)
    yield made
    made.close()


@pytest.fixture
def ledger(postgres_settings: PostgresSettings) -> Iterator[Ledger]:
    """The ledger in the same database as the offline rows."""
    made = Ledger(postgres_engine(postgres_settings), expiry_s=3)
    made.create_schema()
    yield made
    made.close()


def slices_in(postgres: PostgresSettings) -> list[tuple[datetime, int]]:
    """Slices of account_topology and their rows."""
    options: Any = postgres.conninfo()
    with psycopg.connect(**options) as connection:
        query = "SELECT event_timestamp, count(*) FROM features.account_topology GROUP BY 1 ORDER BY 1"
        return connection.execute(query).fetchall()


@pytest.mark.services
def test_offline_rows_and_their_chunk_commit_together(
    stores: ServiceStores, ledger: Ledger, postgres_settings: PostgresSettings
) -> None:
    """A worker that lost its chunk must not leave rows, and rows without their chunk's record must not exist."""
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores), settings=QUICK)

    class Thief:
        """Takes the second chunk away while its rows are being written."""

        calls = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(stores_offline, name)

        def write_all(self, view: ViewSchema, tables: Any, *, part: str, on_written: Any) -> int:
            def steal(written: Written) -> None:
                Thief.calls += 1
                if Thief.calls == 2:
                    chunk = next(c for c in ledger.chunks.list(job_id) if c.state is ChunkState.RUNNING)
                    assert chunk.runner is not None
                    ledger.chunks.release(job_id, chunk.runner)
                on_written(written)

            return int(stores_offline.write_all(view, tables, part=part, on_written=steal))

    stores_offline = stores.offline
    stores.offline = Thief()
    job_id = runner.submit("backfill", SLICES)
    job = runner.run(job_id)
    assert Thief.calls == 5, "four slices, and the stolen one again"
    assert job.state is JobState.DONE, job.error
    assert len(slices_in(postgres_settings)) == 4
    chunks = ledger.chunks.list(job_id)
    assert {chunk.offline_name for chunk in chunks} == {"features.account_topology"}
    assert sorted(chunk.attempts for chunk in chunks) == [1, 1, 1, 2]
    runner.close()


@pytest.mark.services
def test_a_revoked_permission_is_named_and_retried(
    stores: ServiceStores, ledger: Ledger, postgres_settings: PostgresSettings
) -> None:
    """Without the right to write, chunks must fail with the server's reason; granted again, a retry does the rest."""
    stores.offline.create_view(_topology())
    options: Any = postgres_settings.conninfo()
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores), settings=QUICK)
    with psycopg.connect(**options, autocommit=True) as connection:
        connection.execute("REVOKE INSERT ON features.account_topology FROM CURRENT_USER")
        job = runner.run(runner.submit("backfill", SLICES))
        assert job.state is JobState.FAILED
        assert "permission denied for table account_topology" in str(job.error)
        failed = [chunk for chunk in ledger.chunks.list(job.id) if chunk.state is ChunkState.FAILED]
        assert len(failed) == 3, "it stops when one chunk after another is refused"
        connection.execute("GRANT INSERT ON features.account_topology TO CURRENT_USER")
    assert runner.run(job.id, resume=True).state is JobState.DONE
    assert len(slices_in(postgres_settings)) == 4
    runner.close()


def _topology() -> ViewSchema:
    from graph_features.catalog import catalog

    return catalog().schema("account_topology")


@pytest.mark.services
@pytest.mark.parametrize("fault", ["wrong password", "unreachable server"])
def test_an_online_store_that_is_lost_fails_chunks_readably(
    fault: str, stores: ServiceStores, ledger: Ledger, redis_settings: Any, postgres_settings: PostgresSettings
) -> None:
    """The chunk must name Redis and keep its offline rows; the retry must write online only."""
    change = {"password": SecretStr("wrong")} if fault == "wrong password" else {"port": 1}
    good = stores.online

    class Lost:
        """Good until the first write."""

        store: Any = good

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

        def write(self, view: ViewSchema, table: pa.Table) -> int:
            self.store = RedisOnlineStore(redis_settings.model_copy(update=change), project="test")
            return int(self.store.write(view, table))

    stores.online = Lost()
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores), settings=QUICK)
    job = runner.run(runner.submit("backfill", SLICES))
    assert job.state is JobState.FAILED
    assert "Redis at 127.0.0.1" in str(job.error)
    counts = ledger.chunks.counts(job.id)
    assert (counts[ChunkState.FAILED], counts[ChunkState.DONE]) == (1, 0), "it waits for the store, then stops"
    before = slices_in(postgres_settings)
    stores.online = good
    assert runner.run(job.id, resume=True).state is JobState.DONE
    assert slices_in(postgres_settings)[-1:] == before
    (row,) = good.read([(_topology(), [("a1",)])])[0]
    assert row is not None
    runner.close()


@pytest.mark.services
def test_a_ledger_with_a_wrong_password_says_so(postgres_settings: PostgresSettings) -> None:
    """The first thing that an operator gets wrong must be named, without the password itself."""
    wrong = postgres_settings.model_copy(update={"password": SecretStr("hunter2")})
    with pytest.raises(StoreUnavailableError, match="password authentication failed") as caught:
        Ledger(postgres_engine(wrong)).create_schema()
    assert "hunter2" not in str(caught.value)


@pytest.mark.services
def test_one_scheduler_leads_until_its_session_ends(postgres_settings: PostgresSettings) -> None:
    """Two must never lead at once, and a lead that the server has ended must be seen as lost."""
    engines = [postgres_engine(postgres_settings) for _ in range(2)]
    first, second = (leadership(engine, "schedule") for engine in engines)
    assert first.hold()
    assert not second.hold()
    assert first.hold()
    options: Any = postgres_settings.conninfo()
    with psycopg.connect(**options, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    give_up = time.monotonic() + 10
    while not second.hold() and time.monotonic() < give_up:
        time.sleep(0.05)
    assert second.hold()
    assert not first.hold()
    second.release()
    assert first.hold()
    first.release()
    for engine in engines:
        engine.dispose()


def test_a_file_lock_leads_where_there_is_no_server(tmp_path: Path) -> None:
    """The embedded ledger must have one leader too."""
    engine = sqlite_engine(tmp_path / "ledger.sqlite")
    first, second = leadership(engine, "schedule"), leadership(engine, "schedule")
    assert first.hold()
    assert not second.hold()
    first.release()
    assert second.hold()
    second.release()
    engine.dispose()


class EmbeddedStores:
    """The embedded stores of a home."""

    graph = None
    feature_settings = FeatureSettings()

    def __init__(self, home: Path) -> None:
        platform = PlatformSettings(home=home)
        self.records = backends.open_records(platform)
        self.offline = backends.open_offline(platform)
        self.online = backends.open_online(platform)

    def close(self) -> None:
        for store in (self.records, self.offline, self.online):
            store.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedStores]:
    made = EmbeddedStores(tmp_path)
    made.records.create_schema()
    made.records.write_transactions(payments(), made.online.mark_pending)
    yield made
    made.close()


def test_a_full_disk_is_named_and_retried(embedded: EmbeddedStores, tmp_path: Path) -> None:
    """Where files cannot grow, the chunk must fail with the reason and leave no half a file; then the retry works."""
    ledger = Ledger(sqlite_engine(tmp_path / "jobs" / "ledger.sqlite"))
    ledger.create_schema()
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(embedded), settings=QUICK)
    job_id = runner.submit("backfill", SLICES)
    assert runner.run(runner.submit("slices", {"views": SLICES["views"], "as_of": SLICES["to"]})).error is None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead of the process
    # The ledger's own file is larger already only if it is limited too: Parquet files are what must not fit.
    offline = embedded.offline

    class Full:
        """The offline store on a disk with room for 2 kB."""

        def __getattr__(self, name: str) -> Any:
            return getattr(offline, name)

        def write_all(self, *arguments: Any, **named: Any) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limit[1]))
            try:
                return int(offline.write_all(*arguments, **named))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    try:
        embedded.offline = Full()  # type: ignore[assignment]
        job = runner.run(job_id)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert job.state is JobState.FAILED
    assert "cannot write" in str(job.error)
    assert "see to the disk" in str(job.error)
    assert not list((tmp_path / "offline").rglob("*.tmp"))
    embedded.offline = offline
    assert runner.run(job_id, resume=True).state is JobState.DONE
    runner.close()
    ledger.close()


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Interrupted, the command must end with 130 and no chunk in hand; the same command again finishes its job."""
    home = tmp_path / "home"
    stores = EmbeddedStores(home)
    stores.records.create_schema()
    stores.records.write_transactions(payments(2_000), stores.online.mark_pending)
    stores.close()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RINGFENCE_")}
    command = [sys.executable, "-m", "infra.cli", "backfill", "--every", "12h", "--features", "account_topology",
               "--features", "account_proximity", "--workers", "2"]  # fmt: skip
    environment = {**inherited, "RINGFENCE_HOME": str(home)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    ledger = Ledger(sqlite_engine(home / "ledger.sqlite"))
    ledger.create_schema()
    job = _job_with_chunks(ledger, done=3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert ledger.get(job).state is JobState.CANCELLED
    counts = ledger.chunks.counts(job)
    assert counts[ChunkState.RUNNING] == 0
    assert counts[ChunkState.PENDING] > 0, f"over before it could be interrupted: {counts}"
    assert not [chunk for chunk in ledger.chunks.list(job) if chunk.runner is not None]
    assert not list((home / "offline").rglob("*.tmp"))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert str(job) in again.stderr
    assert ledger.get(job).state is JobState.DONE
    assert len(ledger.list()) == 1
    ledger.close()


def _job_with_chunks(ledger: Ledger, *, done: int) -> Any:
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        for job in ledger.list():
            if ledger.chunks.counts(job.id)[ChunkState.DONE] >= done:
                return job.id
        time.sleep(0.02)
    raise AssertionError("the backfill did not start")


def test_a_helper_learns_that_its_job_is_in_other_hands(tmp_path: Path) -> None:
    """A helper of a runner that was replaced must stop, and one of a living runner go on."""
    ledger = Ledger(sqlite_engine(tmp_path / "ledger.sqlite"))
    ledger.create_schema()
    job_id = ledger.submit("backfill", {}, requested_by="test")
    job = ledger.claim(job_id, "first")
    ledger.chunks.plan(job_id, [ChunkKey(view="v", view_hash="h", start_ms=1, end_ms=1, source_seq=1)])
    assert ledger.chunks.claim(job_id, "helper") is not None
    assert not ledger.chunks.beat(job_id, "helper", attempt=job.attempts)
    ledger.pause(job_id)
    assert ledger.chunks.beat(job_id, "helper", attempt=job.attempts)
    assert ledger.finish(job_id, "first", JobState.PAUSED).state is JobState.PAUSED
    with pytest.raises(JobError):
        ledger.claim(job_id, "second")
    later = ledger.claim(job_id, "second", resume=True)
    assert ledger.chunks.beat(job_id, "helper", attempt=job.attempts)
    assert not ledger.chunks.beat(job_id, "helper", attempt=later.attempts)
    ledger.close()
