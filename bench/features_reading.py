"""Every edge out of the graph store: by one process, and by two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from bench.features_data import Payments
from bench.report import Figure
from bench.timing import alternately
from graph_features.clock import NEVER_MS
from graph_features.executor import ProcessPool
from graph_features.settings import Neo4jSettings
from graph_features.sources.neo4j import Neo4jGraph
from graph_features.sources.payments import canonical

GOAL = 500_000
ROUNDS = 5
PROCESSES = 2


@dataclass(frozen=True, kw_only=True)
class Part:
    """A range of the ingest sequence, for any process to read."""

    settings: Neo4jSettings
    after_seq: int
    up_to_seq: int


def read_part(part: Part) -> pa.Buffer:
    """Read a part through a connection of its own; the table as one Arrow stream."""
    store = Neo4jGraph(part.settings)
    try:
        table = store.read_edges(before_ms=NEVER_MS, after_seq=part.after_seq, up_to_seq=part.up_to_seq)
    finally:
        store.close()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def reading_figures(payments: Payments, settings: Neo4jSettings) -> list[Figure]:
    """Part `reading`. The two processes run already; what they read is joined and sorted here."""
    store = Neo4jGraph(settings)
    n = payments.n_payments
    parts = [
        Part(settings=settings, after_seq=n * at // PROCESSES, up_to_seq=n * (at + 1) // PROCESSES)
        for at in range(PROCESSES)
    ]
    pool = ProcessPool(PROCESSES)
    expected = payments.transactions["transaction_id"]

    def one() -> pa.Table:
        return store.read_edges(before_ms=NEVER_MS)

    def two() -> pa.Table:
        found = [pa.ipc.open_stream(result.get()).read_all() for result in pool.map(read_part, parts)]
        return canonical(found)

    try:
        differing = sum(not read()["transaction_id"].equals(expected) for read in (one, two))
        one_s, two_s = alternately(ROUNDS, one, two)
    finally:
        pool.close()
        store.close()
    told: dict[str, Any] = {"unit": "edges/s", "better": "higher"}
    conditions = f"{n:,} edges as a sorted Arrow table, transaction ids included; median of {ROUNDS}"
    return [
        Figure(name="edges out of Neo4j, 2 processes", value=n / two_s, goal=GOAL, conditions=conditions, **told),
        Figure(name="edges out of Neo4j, 1 process", value=n / one_s, conditions=conditions, **told),
        Figure(name="edges out of Neo4j, reads that differ", value=differing, unit="reads", goal=0),
    ]
