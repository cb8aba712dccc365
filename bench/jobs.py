"""A backfill through the ledger: `make bench-jobs`.

Daily slices of a whole-graph view, from records in memory through PostgreSQL to Redis, with every row that a backfill
writes; what the ledger itself costs per chunk; and against Feast's own `materialize`, with its stock PostgreSQL and
Redis stores at their best settings, the same rows of the same slices from PostgreSQL to Redis.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from bench.features_data import START_MS, Payments
from bench.report import Figure, publish
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.clock import DAY_MS, from_ms
from graph_features.drivers.batch import slice_rows
from graph_features.edges import EdgeTable
from graph_features.jobs.engine import postgres_engine
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.records import Chunk, ChunkKey
from graph_features.jobs.runner import JobRunner
from graph_features.schema import DType, ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.sources.base import Records
from graph_features.stores.base import Written
from graph_features.stores.postgres import PostgresOfflineStore
from graph_features.stores.redis import RedisOnlineStore
from infra.local import servers

VIEW = "account_proximity"
LEDGER_CHUNKS = 200
LEDGER_GOAL_MS = 50.0
FEAST_GOAL = 2.0


@dataclass(frozen=True, kw_only=True)
class InMemory:
    """The records of a benchmark: reading them is bench-features' business."""

    payments: Payments

    def read_all(self, *, before_ms: int | None = None, max_seq: int | None = None) -> Records:  # noqa: ARG002
        return Records(
            transactions=self.payments.transactions,
            statuses=self.payments.statuses,
            labels=self.payments.labels,
            max_seq=self.max_seq(),
        )

    def max_seq(self) -> int:
        return int(self.payments.labels["seq"].to_numpy().max())

    def event_range_ms(self) -> tuple[int, int]:
        return START_MS, self.payments.end_ms - 1

    def ping(self) -> None:
        return


@dataclass(kw_only=True)
class BenchStores:
    """What the job works on."""

    records: Any
    offline: PostgresOfflineStore
    online: RedisOnlineStore
    graph: Any = None
    feature_settings: FeatureSettings = field(default_factory=FeatureSettings)


def measure_backfill(ledger: Ledger, stores: BenchStores, *, first_ms: int, slices: int) -> tuple[list[Chunk], float]:
    """Run the backfill once; return its chunks and the seconds that it took from start to end."""
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores))
    period = {"from": from_ms(first_ms).isoformat(), "to": from_ms(first_ms + slices * DAY_MS).isoformat()}
    job_id = runner.submit("backfill", {**period, "every": "1d", "views": [VIEW]})
    began = perf_counter()
    runner.run(job_id, progress=lambda done, total: note(f"  {done} of {total} slices")).check()
    seconds = perf_counter() - began
    runner.close()
    return ledger.chunks.list(job_id), seconds


def measure_ledger(ledger: Ledger) -> float:
    """Return the milliseconds that the ledger's part of one chunk takes: claim, commit, counts, done."""
    job_id = ledger.submit("bench", {}, requested_by="bench")
    ledger.claim(job_id, "bench")
    keys = [ChunkKey(view="none", view_hash="h", start_ms=at, end_ms=at, source_seq=1) for at in range(LEDGER_CHUNKS)]
    ledger.chunks.plan(job_id, keys)
    began = perf_counter()
    while (chunk := ledger.chunks.claim(job_id, "bench")) is not None:
        ledger.chunks.offline_committed(chunk, Written(rows=1, name="none"))
        ledger.chunks.is_superseded(chunk)
        ledger.chunks.done(chunk)
        ledger.chunks.counts(job_id)
        ledger.progress(job_id, 1, LEDGER_CHUNKS)
    return (perf_counter() - began) / LEDGER_CHUNKS * 1e3


def feast_store(folder: Path, services: servers.Services, view: ViewSchema) -> Any:
    """Feast as it comes, on the same servers: stock stores, the view's table as its source."""
    import feast
    from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
    from feast.types import Float64, Int64, String

    postgres, redis = services.postgres, services.redis
    connection = {
        "host": postgres.host,
        "port": postgres.port,
        "database": postgres.database,
        "user": postgres.user,
        "password": postgres.password.get_secret_value(),
        "sslmode": "disable",
    }
    address = f"{redis.host}:{redis.port},password={redis.password.get_secret_value()},db=1"
    config = feast.RepoConfig(
        project="peer",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store={"type": "postgres", "db_schema": "features", **connection},
        online_store={"type": "redis", "connection_string": address},
        materialization={"online_write_batch_size": 10_000, "pull_latest_features": True},
        entity_key_serialization_version=3,
    )
    store = feast.FeatureStore(config=config)
    entity = feast.Entity(name="account", join_keys=["account_id"], value_type=feast.ValueType.STRING)
    types = {DType.INT64: Int64, DType.FLOAT64: Float64}
    fields = [feast.Field(name=feature.name, dtype=types[feature.dtype]) for feature in view.features]
    source = PostgreSQLSource(
        name="rows",
        query=f"SELECT * FROM features.{view.name}",
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )
    peer = feast.FeatureView(
        name=view.name,
        entities=[entity],
        schema=[feast.Field(name="account_id", dtype=String), *fields],
        source=source,
        ttl=timedelta(0),
    )
    store.apply([entity, peer])
    return store


def materialize(store: Any, as_of_ms: int) -> Callable[[], None]:
    """Feast's `materialize` of one slice."""
    start, end = from_ms(as_of_ms) - timedelta(seconds=1), from_ms(as_of_ms) + timedelta(seconds=1)
    return lambda: store.materialize(start, end, feature_views=[VIEW])


def measure_feast(folder: Path, services: servers.Services, view: ViewSchema, as_of_ms: list[int]) -> list[float]:
    """Return the seconds that Feast takes per slice, oldest first, so that every row is newer than the last."""
    store = feast_store(folder, services, view)
    taken = []
    for one in as_of_ms:
        began = perf_counter()
        materialize(store, one)()
        taken.append(perf_counter() - began)
        note(f"  Feast: {taken[-1]:.1f} s")
    return taken


def measure_online(stores: BenchStores, view: ViewSchema, table: pa.Table, rounds: int) -> list[float]:
    """Return the seconds that the same rows take to our online store, each time as a newer slice."""
    taken = []
    moments = table["event_timestamp"].cast(pa.int64()).to_numpy()
    at = table.schema.get_field_index("event_timestamp")
    for number in range(rounds):
        newer = pa.array(moments + (number + 1) * 1_000).cast(table.schema.field(at).type)
        slice_ = table.set_column(at, table.schema.field(at), newer)
        began = perf_counter()
        stores.online.write(view, slice_)
        taken.append(perf_counter() - began)
    return taken


def run(home: Path, *, accounts: int, payments: int, days: int, slices: int, rounds: int) -> list[Figure]:
    """Measure everything and return the figures."""
    services = servers.up(home, only=["postgres", "redis"])
    try:
        data = Payments(n_accounts=accounts, n_payments=payments, days=days, seed=1)
        offline = PostgresOfflineStore(services.postgres)
        stores = BenchStores(
            records=InMemory(payments=data), offline=offline, online=RedisOnlineStore(services.redis, project="bench")
        )
        ledger = Ledger(postgres_engine(services.postgres))
        ledger.create_schema()
        note("kernels")  # compiled, or loaded from their cache, before anything is timed
        few = Payments(n_accounts=200, n_payments=2_000, days=days, seed=1)
        small = EdgeTable.from_arrow(few.transactions, few.statuses, few.labels)
        slice_rows(catalog().schema(VIEW), small, as_of_ms=few.end_ms, settings=FeatureSettings())
        note("the ledger alone")
        ledger_ms = measure_ledger(ledger)
        note(f"{slices} slices of {VIEW}: {data.conditions}")
        first_ms = data.end_ms - slices * DAY_MS
        chunks, seconds = measure_backfill(ledger, stores, first_ms=first_ms, slices=slices)
        view = catalog().schema(VIEW)
        last = sorted(chunk.key.start_ms for chunk in chunks)[-rounds:]
        feast_s = measure_feast(home, services, view, last)
        options: Any = services.postgres.conninfo()
        online_s = measure_online(stores, view, _rows_of(options, view, last[-1]), rounds)
        return _figures(chunks, seconds, ledger_ms, feast_s, online_s, data.conditions)
    finally:
        servers.down(home, purge=True)


def _rows_of(options: dict[str, Any], view: ViewSchema, as_of_ms: int) -> pa.Table:
    import psycopg

    with psycopg.connect(**options) as connection:
        columns = ", ".join(f'"{name}"' for name in view.arrow_schema.names)
        query = f"SELECT {columns} FROM features.{view.name} WHERE event_timestamp = %s"
        rows = connection.execute(query.encode(), [from_ms(as_of_ms)]).fetchall()
    columns_of = list(zip(*rows, strict=True))
    arrays = [pa.array(values, field.type) for values, field in zip(columns_of, view.arrow_schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=view.arrow_schema)


def _figures(
    chunks: list[Chunk],
    seconds: float,
    ledger_ms: float,
    feast_s: list[float],
    online_s: list[float],
    conditions: str,
) -> list[Figure]:
    rows = sum(chunk.rows for chunk in chunks)
    spent = {name: sum(getattr(chunk, f"{name}_s") for chunk in chunks) for name in ("compute", "offline", "online")}
    per_slice = rows / len(chunks)
    where = f"{len(chunks)} daily slices of {VIEW}, {per_slice:,.0f} rows each; {conditions}; one worker"
    figures = [
        Figure(name="backfill, total", value=seconds, unit="s", conditions=where),
        Figure(name="backfill", value=rows / seconds, unit="rows/s", better="higher", conditions=where),
    ]
    figures += [
        Figure(name=f"share of {name}", value=100 * part / seconds, unit="%", conditions=where)
        for name, part in spent.items()
    ]
    figures.append(
        Figure(
            name="ledger per chunk",
            value=ledger_ms,
            unit="ms",
            goal=LEDGER_GOAL_MS,
            conditions=f"{LEDGER_CHUNKS} chunks",
        )
    )
    feast, ours = (float(np.median(taken)) for taken in (feast_s, online_s))
    figures.append(
        Figure(
            name="one slice computed and written to both stores",
            value=seconds / len(chunks),
            unit="s",
            peer="feast materialize of the same rows (PostgreSQL to Redis only)",
            peer_value=feast,
            goal=FEAST_GOAL,
            goal_on="ratio",
            conditions=where,
        )
    )
    figures.append(
        Figure(
            name="one slice's rows to Redis",
            value=ours,
            unit="s",
            peer="feast materialize of the same rows (reads them from PostgreSQL first)",
            peer_value=feast,
            goal=FEAST_GOAL,
            goal_on="ratio",
            conditions=f"{per_slice:,.0f} rows, medians of {len(feast_s)}",
        )
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=200_000)
    parser.add_argument("--payments", type=int, default=2_000_000)
    parser.add_argument("--days", type=int, default=180)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5, help="Slices that Feast materializes.")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="ringfence-bench-"))
    try:
        publish("jobs", run(home, **vars(arguments)))
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
