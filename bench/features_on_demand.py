"""Newest rows of a few accounts from their own payments: how long a cold account keeps a request waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.features_catalogue import SETTINGS
from bench.features_data import Payments
from bench.report import Figure
from bench.timing import note, repeated, seconds
from graph_features.catalog import catalog
from graph_features.drivers import on_demand
from graph_features.edges import EdgeTable
from graph_features.schema import EntityKey
from graph_features.settings import Neo4jSettings, PostgresSettings
from graph_features.sources.base import GraphStore, RecordStore
from graph_features.sources.duckdb import DuckdbGraph
from graph_features.sources.neo4j import Neo4jGraph
from graph_features.sources.postgres import PostgresRecords
from graph_features.sources.records import LABELS, STATUSES, TRANSACTIONS
from graph_features.sources.sqlite import SqliteRecords

SIZES = (1, 100, 1000)
CALLS = {1: 300, 100: 60, 1000: 20}
LIMIT_S = 6.0
BATCH_ROWS = 50_000
NEIGHBOURS = 20


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The stores of one profile."""

    name: str
    records: RecordStore
    graph: GraphStore

    def close(self) -> None:
        for store in (self.records, self.graph):
            store.close()


def services(folder: Path, postgres: PostgresSettings, neo4j: Neo4jSettings) -> Backend:
    """PostgreSQL, empty so far, with its index of records in a folder, and a Neo4j that is filled."""
    return Backend(
        name="Neo4j + PostgreSQL",
        records=PostgresRecords(postgres, cache=folder / "postgres"),
        graph=Neo4jGraph(neo4j),
    )


def embedded(folder: Path, payments: Payments) -> Backend:
    """SQLite, empty so far, and DuckDB over Parquet, which is filled here."""
    graph = DuckdbGraph(folder / "graph")
    graph.create_schema()
    for batch in payments.transactions.to_batches(max_chunksize=500_000):
        graph.write_edges(batch, watermark=batch.column("seq")[-1].as_py())
    return Backend(
        name="DuckDB + SQLite",
        records=SqliteRecords(folder / "records.sqlite", cache=folder / "sqlite"),
        graph=graph,
    )


def fill(backend: Backend, payments: Payments) -> None:
    """Every record, and the index of all accounts, which a backfill makes too."""
    records = backend.records
    records.create_schema()

    def write() -> None:
        for kind, table, writer in (
            (TRANSACTIONS, payments.transactions, records.write_transactions),
            (STATUSES, payments.statuses, records.write_statuses),
            (LABELS, payments.labels, records.write_labels),
        ):
            for start in range(0, table.num_rows, BATCH_ROWS):
                writer(kind.check(table.slice(start, BATCH_ROWS)))

    note(f"  {backend.name}: records written in {seconds(write):.1f} s")
    note(f"  {backend.name}: records read and indexed in {seconds(records.read_all):.1f} s")


def of_all(payments: Payments, edges: EdgeTable, size: int, call: int) -> list[EntityKey]:
    """Accounts, each as likely as any other: hubs are as rare as they are."""
    draw = np.random.default_rng([payments.seed, 9, size, call])
    chosen = draw.choice(edges.n_accounts, min(size, edges.n_accounts), replace=False)
    return [(account,) for account in edges.account_ids[chosen].tolist()]


def of_payments(payments: Payments, edges: EdgeTable, size: int, call: int) -> list[EntityKey]:
    """Senders and receivers of payments, each payment as likely as any other: hubs come as often as in requests."""
    draw = np.random.default_rng([payments.seed, 10, size, call])
    at = draw.integers(edges.n_edges, size=2 * size)
    ends = draw.permutation(np.concatenate((edges.sender[at], edges.receiver[at])))
    return [(account,) for account in list(dict.fromkeys(edges.account_ids[ends].tolist()))[:size]]


DRAWS = {"accounts": of_all, "accounts of payments": of_payments}
"""How accounts are drawn, and what the figures call them."""


def backend_figures(backend: Backend, payments: Payments, edges: EdgeTable) -> list[Figure]:
    """p50 and p99 per size: rows of all event views, and the graph's neighbours."""
    views = [view for view in catalog().event_views() if view.entity == "account"]

    def rows(keys: Sequence[EntityKey]) -> None:
        done = on_demand.latest_rows(
            views, {"account": keys}, backend.records, before_ms=payments.end_ms, settings=SETTINGS
        )
        assert not done.failed

    def neighbours(keys: Sequence[EntityKey]) -> None:
        backend.graph.neighbours([key[0] for key in keys], before_ms=payments.end_ms, limit=NEIGHBOURS)

    calls: dict[str, Callable[[Sequence[EntityKey]], None]] = {"rows": rows, "neighbours": neighbours}
    figures: list[Figure] = []
    for (drawn, draw), size in product(DRAWS.items(), SIZES):
        asked = [draw(payments, edges, size, call) for call in range(CALLS[size])]
        for what, call in calls.items():
            figures += _figures(f"on demand, {size} {drawn}, {what}, {backend.name}", call, asked, len(views))
    return figures


def _figures(
    name: str, call: Callable[[Sequence[EntityKey]], None], asked: Sequence[Sequence[EntityKey]], n_views: int
) -> list[Figure]:
    call(asked[0])
    spread = repeated(lambda at: call(asked[at]), most=len(asked), limit_s=LIMIT_S)
    note(f"  {name}: {spread.p50_ms:.1f} / {spread.p99_ms:.1f} ms, {spread.calls} calls")
    told = f"{spread.calls} calls, one process; {n_views} views"
    return [
        Figure(name=f"{name}, {quantile}", value=value, unit="ms", conditions=told)
        for quantile, value in (("p50", spread.p50_ms), ("p99", spread.p99_ms))
    ]


def on_demand_figures(
    payments: Payments, edges: EdgeTable, postgres: PostgresSettings, neo4j: Neo4jSettings
) -> list[Figure]:
    """Part `on-demand`."""
    figures: list[Figure] = []
    with TemporaryDirectory() as folder:
        for backend in (services(Path(folder), postgres, neo4j), embedded(Path(folder), payments)):
            try:
                fill(backend, payments)
                figures += backend_figures(backend, payments, edges)
            finally:
                backend.close()
    return figures
