"""Brings the graph up to date with the record store, by ingest sequence: late, backdated payments are not missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from graph_features.contracts import STORED_TRANSACTION_SCHEMA
from graph_features.errors import ConflictError, JobError
from graph_features.sources.base import GraphStore, Lockable, RecordStore

LOCK_NAME = "graph_sync"

Progress = Callable[[float, float | None, str], None]
"""progress(done, total, text), in ingest sequence numbers."""


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What one run did: payments handed to the graph, and the ingest sequence before and after."""

    payments: int
    from_seq: int
    to_seq: int

    def __str__(self) -> str:
        return f"graph: {self.payments:,} payments, ingest sequence {self.from_seq:,} to {self.to_seq:,}"


def sync_graph(
    records: RecordStore,
    graph: GraphStore,
    *,
    batch_rows: int = 20_000,
    progress: Progress | None = None,
    wait_s: float = 60.0,
) -> SyncReport:
    """Write the payments between the graph's watermark and the newest record to the graph.

    Each batch moves the watermark in its own transaction, so a run that is killed at any point is resumed by the next
    one. One run at a time: another waits up to `wait_s` seconds, then JobError. A graph that is ahead of the records
    was filled from another store: ConflictError.
    """
    with _alone(records, graph, wait_s):
        graph.create_schema()
        from_seq, to_seq = graph.watermark(), records.max_seq()
        if from_seq > to_seq:
            raise ConflictError(
                f"the graph is complete up to ingest sequence {from_seq}, but the record store ends at {to_seq}: "
                "the graph was filled from another record store; empty it, then sync again"
            )
        payments = 0
        for batch in records.read_transactions(after_seq=from_seq, up_to_seq=to_seq, batch_rows=batch_rows):
            if batch.num_rows == 0:
                continue
            last_seq = int(batch.column("seq")[-1].as_py())
            graph.write_edges(batch, watermark=last_seq)
            payments += batch.num_rows
            if progress is not None:
                progress(last_seq - from_seq, to_seq - from_seq, f"{payments:,} payments")
        if from_seq < to_seq:
            # The sequence numbers after the last payment belong to statuses and labels.
            graph.write_edges(_NOTHING, watermark=to_seq)
    return SyncReport(payments=payments, from_seq=from_seq, to_seq=to_seq)


_NOTHING = pa.RecordBatch.from_pylist([], schema=STORED_TRANSACTION_SCHEMA)


@contextmanager
def _alone(records: RecordStore, graph: GraphStore, wait_s: float) -> Iterator[None]:
    """Hold the lock of whichever store has one; the graph's own transactions keep it whole in any case."""
    lockable = next((store for store in (records, graph) if isinstance(store, Lockable)), None)
    if lockable is None:
        yield
        return
    with lockable.lock(LOCK_NAME, wait_s=wait_s) as had:
        if not had:
            raise JobError(
                f"another graph sync has been running for more than {wait_s:.0f} s; try again when it is done"
            )
        yield
