"""The graph follows the record store, whatever interrupts it, and verify finds what is amiss."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from graph_features.clock import NEVER_MS
from graph_features.contracts import LABEL_SCHEMA, STORED_TRANSACTION_SCHEMA, TRANSACTION_SCHEMA
from graph_features.errors import ConflictError, JobError, RingfenceError
from graph_features.ingest.sync import LOCK_NAME, sync_graph
from graph_features.ingest.verify import verify
from graph_features.settings import Neo4jSettings, PostgresSettings
from graph_features.sources.base import GraphStore, RecordStore
from graph_features.sources.duckdb import DuckdbGraph
from graph_features.sources.neo4j import Neo4jGraph
from graph_features.sources.postgres import PostgresRecords
from graph_features.sources.sqlite import SqliteRecords

SYNC = """
from graph_features.backends import open_graph, open_records
from graph_features.ingest.sync import sync_graph
from graph_features.settings import PlatformSettings
platform = PlatformSettings()
records, graph = open_records(platform), open_graph(platform)
sync_graph(records, graph, batch_rows=50)
records.close()
graph.close()
"""


@dataclass(frozen=True, kw_only=True)
class Stores:
    """A record store and a graph, and the environment that leads another process to the same two."""

    records: RecordStore
    graph: GraphStore
    environment: dict[str, str] = field(repr=False)


@pytest.fixture(params=["embedded", pytest.param("services", marks=pytest.mark.services)])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    """Both stores of a profile, empty."""
    if request.param == "embedded":
        made = embedded(tmp_path)
    else:
        made = services(request.getfixturevalue("postgres_settings"), request.getfixturevalue("neo4j_settings"))
    made.records.create_schema()
    yield made
    made.records.close()
    made.graph.close()


def embedded(home: Path) -> Stores:
    variables = {"RINGFENCE_PROFILE": "embedded", "RINGFENCE_HOME": str(home)}
    return Stores(
        records=SqliteRecords(home / "records.sqlite"), graph=DuckdbGraph(home / "graph"), environment=variables
    )


def services(postgres: PostgresSettings, neo4j: Neo4jSettings) -> Stores:
    variables = {"RINGFENCE_PROFILE": "services"}
    for prefix, settings in (("RINGFENCE_POSTGRES_", postgres), ("RINGFENCE_NEO4J_", neo4j)):
        values = {**settings.model_dump(), "password": settings.password.get_secret_value()}
        variables |= {f"{prefix}{name.upper()}": str(value) for name, value in values.items()}
    return Stores(records=PostgresRecords(postgres), graph=Neo4jGraph(neo4j), environment=variables)


def payments(n: int, *, seed: int, first: int = 0) -> pa.Table:
    """n payments between 40 accounts."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "transaction_id": [f"t{i:06d}" for i in range(first, first + n)],
        "event_timestamp": pa.array(1_700_000_000_000 + rng.integers(0, 10**9, n)).cast(pa.timestamp("ms", tz="UTC")),
        "sender_id": [f"a{i}" for i in rng.integers(0, 40, n)],
        "receiver_id": [f"a{i}" for i in rng.integers(0, 40, n)],
        "amount": rng.integers(1, 10**6, n),
        "currency": ["EUR"] * n,
        "amount_base": rng.integers(1, 10**6, n),
        "device_id": [f"d{i}" for i in rng.integers(0, 20, n)],
    }
    arrays = [pa.array(columns.get(one.name, [None] * n)).cast(one.type) for one in TRANSACTION_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=TRANSACTION_SCHEMA)


def labels(table: pa.Table) -> pa.Table:
    n = table.num_rows
    columns = [table["transaction_id"], pa.array([False] * n), table["event_timestamp"], pa.array(["sender"] * n)]
    return pa.Table.from_arrays(columns, schema=LABEL_SCHEMA)


def start_sync(stores: Stores) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RINGFENCE_")}
    return subprocess.Popen([sys.executable, "-c", SYNC], env={**inherited, **stores.environment})


def test_a_sync_brings_the_graph_up_to_date(stores: Stores) -> None:
    """Payments arrive once, in however many runs and batches; statuses and labels only move the watermark."""
    first, late = payments(500, seed=1), payments(70, seed=2, first=500)
    stores.records.write_transactions(first)
    report = sync_graph(stores.records, stores.graph, batch_rows=64)
    assert (report.payments, report.from_seq, report.to_seq) == (500, 0, stores.records.max_seq())
    stores.records.write_labels(labels(first.slice(0, 30)))
    stores.records.write_transactions(late)
    stores.records.write_labels(labels(late))
    assert sync_graph(stores.records, stores.graph).payments == 70
    assert stores.graph.watermark() == stores.records.max_seq()
    assert stores.graph.checksum() == stores.records.checksum()
    again = sync_graph(stores.records, stores.graph)
    assert (again.payments, again.from_seq) == (0, again.to_seq)
    result = verify(stores.records, stores.graph)
    assert result.equal
    assert (result.in_records, result.in_graph, result.lag_payments) == (570, 570, 0)


def test_nothing_to_do_is_fine(stores: Stores) -> None:
    """An empty record store syncs and verifies."""
    assert sync_graph(stores.records, stores.graph).payments == 0
    assert verify(stores.records, stores.graph).equal


def test_progress_is_told_and_may_interrupt(stores: Stores) -> None:
    """Progress rises to its total; a run that is interrupted there leaves whole batches and is resumed."""
    stores.records.write_transactions(payments(300, seed=3))
    seen: list[tuple[float, float | None]] = []

    def stop_at_half(done: float, total: float | None, text: str) -> None:
        seen.append((done, total))
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sync_graph(stores.records, stores.graph, batch_rows=50, progress=stop_at_half)
    assert stores.graph.watermark() == 150
    assert stores.graph.read_edges(before_ms=NEVER_MS).num_rows == 150
    sync_graph(stores.records, stores.graph, batch_rows=50, progress=lambda *step: seen.append(step[:2]))
    assert seen == [(50, 300), (100, 300), (150, 300), (50, 150), (100, 150), (150, 150)]
    assert verify(stores.records, stores.graph).equal


def test_a_killed_sync_is_resumed(stores: Stores) -> None:
    """kill -9 amid a sync: what is in the graph is exactly what lies up to its watermark; the next run completes it."""
    stores.records.write_transactions(payments(2_500, seed=4))
    process = start_sync(stores)
    deadline = time.monotonic() + 120
    while stores.graph.watermark() < 100:
        assert process.poll() is None, "the sync ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    watermark = stores.graph.watermark()
    assert 100 <= watermark < 2_500
    # A server may still be at work on the transaction of a client that is gone: it ends as a whole or not at all.
    report = verify(stores.records, stores.graph)
    assert report.difference is None
    assert report.lag_payments == 2_500 - report.watermark
    assert start_sync(stores).wait(timeout=300) == 0
    assert verify(stores.records, stores.graph).equal


def test_one_sync_at_a_time(stores: Stores) -> None:
    """A second run waits for the first; after its patience it says who is in the way."""
    stores.records.write_transactions(payments(100, seed=5))
    with stores.records.lock(LOCK_NAME) as had:  # type: ignore[attr-defined]
        assert had
        with pytest.raises(JobError, match="another graph sync"):
            sync_graph(stores.records, stores.graph, wait_s=0.1)
    threads = [threading.Thread(target=sync_graph, args=(stores.records, stores.graph)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(stores.records, stores.graph).equal


def test_a_graph_of_other_records_is_refused(stores: Stores, tmp_path: Path) -> None:
    """A graph that is ahead of the records was filled from elsewhere; it is not touched."""
    stores.graph.create_schema()
    stores.graph.write_edges(pa.RecordBatch.from_pylist([], schema=STORED_TRANSACTION_SCHEMA), watermark=10)
    with pytest.raises(ConflictError, match="another record store"):
        sync_graph(stores.records, stores.graph)


def test_records_may_come_while_a_sync_runs(stores: Stores) -> None:
    """Ingest goes on beside syncs, with payments of the past; the last sync leaves nothing out."""
    stores.records.write_transactions(payments(50, seed=6))

    def ingest() -> None:
        for i in range(20):
            table = payments(25, seed=7 + i, first=50 + 25 * i)
            stores.records.write_transactions(table)
            stores.records.write_labels(labels(table.slice(0, 5)))

    writer = threading.Thread(target=ingest)
    writer.start()
    while writer.is_alive():
        sync_graph(stores.records, stores.graph, batch_rows=40)
        assert verify(stores.records, stores.graph).difference is None
    writer.join()
    sync_graph(stores.records, stores.graph)
    report = verify(stores.records, stores.graph)
    assert report.equal
    assert report.in_graph == 550


def test_verify_counts_what_lags(stores: Stores) -> None:
    """Payments that the graph has not got yet are a lag, not a difference."""
    stores.records.write_transactions(payments(80, seed=8))
    sync_graph(stores.records, stores.graph)
    stores.records.write_transactions(payments(20, seed=9, first=80))
    report = verify(stores.records, stores.graph)
    assert not report.equal
    assert report.difference is None
    assert (report.in_records, report.in_graph, report.lag_payments) == (80, 80, 20)
    assert "20 newer payments" in str(report)


@contextmanager
def changed_batch(stores: Stores, position: int, change: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Fill the graph with the records, the row at `position` changed or (None) left out; yields the true row."""
    stores.graph.create_schema()
    max_seq = stores.records.max_seq()
    rows = [
        row for batch in stores.records.read_transactions(after_seq=0, up_to_seq=max_seq) for row in batch.to_pylist()
    ]
    true = rows[position]
    rows[position : position + 1] = [] if change is None else [{**true, **change}]
    batch = pa.RecordBatch.from_pylist(rows, schema=STORED_TRANSACTION_SCHEMA)
    stores.graph.write_edges(batch, watermark=max_seq)
    yield true


@pytest.mark.parametrize(
    ("column", "value"), [("amount_base", 1), ("receiver_id", "somebody"), ("transaction_id", "t-other")]
)
def test_verify_names_the_field_that_differs(stores: Stores, column: str, value: object) -> None:
    """The first payment that differs is named with the field and both values."""
    stores.records.write_transactions(payments(120, seed=10))
    with changed_batch(stores, 77, {column: value}) as true:
        report = verify(stores.records, stores.graph)
    assert not report.equal
    assert report.difference is not None
    assert (report.difference.seq, report.difference.field) == (true["seq"], column)
    assert (report.difference.in_records, report.difference.in_graph) == (true[column], value)
    assert repr(value) in str(report)


def test_verify_names_what_is_missing_from_the_graph(stores: Stores) -> None:
    """A payment below the watermark that the graph lacks is a difference."""
    stores.records.write_transactions(payments(120, seed=11))
    with changed_batch(stores, 5, None) as true:
        report = verify(stores.records, stores.graph)
    assert report.difference is not None
    assert report.difference.seq == true["seq"]
    assert f"{true['transaction_id']} (ingest sequence {true['seq']}) is missing from the graph" in str(report)


def test_verify_names_what_is_missing_from_the_records(stores: Stores) -> None:
    """A payment that the record store never had is a difference."""
    stores.records.write_transactions(payments(40, seed=12))
    stores.records.write_labels(labels(payments(40, seed=12).slice(0, 10)))
    sync_graph(stores.records, stores.graph)
    (batch,) = stores.records.read_transactions(after_seq=0, up_to_seq=1)
    invented = {**batch.to_pylist()[0], "seq": 45, "transaction_id": "t-invented"}
    stores.graph.write_edges(pa.RecordBatch.from_pylist([invented], schema=STORED_TRANSACTION_SCHEMA), watermark=50)
    report = verify(stores.records, stores.graph)
    assert "t-invented (ingest sequence 45) is missing from the record store" in str(report)


def test_an_unreachable_graph_leaves_the_records_alone(tmp_path: Path) -> None:
    """A sync towards a graph that is down fails with a word about it; records stay writable and the lock is free."""
    made = embedded(tmp_path)
    made.records.create_schema()
    made.records.write_transactions(payments(10, seed=13))
    (tmp_path / "graph").write_text("not a folder")
    with pytest.raises(RingfenceError, match="graph"):
        sync_graph(made.records, made.graph)
    with made.records.lock(LOCK_NAME) as had:  # type: ignore[attr-defined]
        assert had
    made.records.write_transactions(payments(10, seed=14, first=10))
    made.records.close()
