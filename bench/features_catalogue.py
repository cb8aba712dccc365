"""The whole catalogue at one instant, and the rows of every event, with what it takes to write them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from bench.features_data import START_MS, Payments
from bench.report import Figure
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.drivers.batch import event_rows, rows_at
from graph_features.edges import EdgeTable
from graph_features.schema import ViewSchema
from graph_features.settings import FeatureSettings, PostgresSettings
from graph_features.stores.base import OfflineStore
from graph_features.stores.parquet import ParquetOfflineStore
from graph_features.stores.postgres import PostgresOfflineStore

GOAL_S = 10.0
ROUNDS = 5
SETTINGS = FeatureSettings()
WRITE_ONE_IN = 20
"""Every so many-th table of event rows is written too: writing all of them takes longer than everything else."""


def whole_catalogue(edges: EdgeTable, as_of_ms: int, threads: int) -> tuple[float, dict[str, int]]:
    """Compute every view at one instant, on a table without indexes; return seconds, and rows per view."""
    edges = dataclasses.replace(edges)
    rows: Counter[str] = Counter()
    started = perf_counter()
    views = list(catalog().schemas.values())
    for name, table in rows_at(views, edges, as_of_ms=as_of_ms, settings=SETTINGS, threads=threads):
        rows[name] += table.num_rows
    return perf_counter() - started, rows


def view_by_view(edges: EdgeTable, as_of_ms: int) -> dict[str, float]:
    """Do the same with one thread, one view after the other; return the seconds of each, with what it builds first."""
    edges = dataclasses.replace(edges)
    taken: dict[str, float] = {}
    for view in catalog().schemas.values():
        started = perf_counter()
        for _ in rows_at([view], edges, as_of_ms=as_of_ms, settings=SETTINGS):
            pass
        taken[view.name] = perf_counter() - started
    return taken


def compile_kernels() -> None:
    """Run everything once on a small table, so that no measurement holds a compilation."""
    small = Payments(n_accounts=200, n_payments=2_000, days=60, seed=1)
    edges = small.edges()
    view_by_view(edges, small.end_ms)
    for view in catalog().event_views():
        list(event_rows(view, edges, from_ms=START_MS, to_ms=small.end_ms, settings=SETTINGS))


def catalogue_figures(payments: Payments, edges: EdgeTable, threads: int) -> list[Figure]:
    """Part `catalogue`."""
    runs = [whole_catalogue(edges, payments.end_ms, threads) for _ in range(ROUNDS)]
    totals = sorted(total for total, _ in runs)
    note(f"  whole catalogue: {' '.join(f'{total:.2f}' for total in totals)} s")
    rows = runs[0][1]
    by_view = [view_by_view(edges, payments.end_ms) for _ in range(ROUNDS)]
    one_s = float(np.median([sum(taken.values()) for taken in by_view]))
    conditions = f"{payments.conditions}; edges in memory, without indexes; median of {ROUNDS}"
    figures = [
        Figure(
            name=f"catalogue, one as_of, {threads} threads",
            value=totals[ROUNDS // 2],
            unit="s",
            goal=GOAL_S,
            conditions=conditions,
        ),
        Figure(name="catalogue, one as_of, 1 thread", value=one_s, unit="s", conditions=conditions),
    ]
    for view in by_view[0]:
        spent = float(np.median([taken[view] for taken in by_view]))
        told = f"{rows[view]:,} rows, 1 thread, with the indexes that no view before it built; median of {ROUNDS}"
        figures.append(Figure(name=f"catalogue, {view}", value=spent, unit="s", conditions=told))
    return figures


@dataclasses.dataclass(kw_only=True)
class _Written:
    """Seconds and rows of computing, and of writing the chosen tables."""

    compute_s: float = 0.0
    rows: int = 0
    sample_rows: int = 0
    write_s: dict[str, float] = dataclasses.field(default_factory=dict)


def event_figures(payments: Payments, edges: EdgeTable, postgres: PostgresSettings) -> list[Figure]:
    """Part `events`: all rows of the whole history, computed; every WRITE_ONE_IN-th table written to both stores."""
    edges = dataclasses.replace(edges)
    views = catalog().event_views()
    with TemporaryDirectory() as folder:
        stores: dict[str, OfflineStore] = {
            "Parquet": ParquetOfflineStore(Path(folder)),
            "PostgreSQL": PostgresOfflineStore(postgres),
        }
        done = {view.name: _view_events(view, payments, edges, stores) for view in views}
        stores["PostgreSQL"].close()
    rows = sum(one.rows for one in done.values())
    compute_s = sum(one.compute_s for one in done.values())
    conditions = f"{payments.conditions}; {rows:,} rows of {len(views)} event views, one process"
    figures = [
        Figure(
            name="event rows, computed", value=rows / compute_s, unit="rows/s", better="higher", conditions=conditions
        )
    ]
    for name, one in done.items():
        speed = one.rows / one.compute_s
        told = f"{one.rows:,} rows in {one.compute_s:.1f} s"
        figures.append(Figure(name=f"event rows, {name}", value=speed, unit="rows/s", better="higher", conditions=told))
    for store in stores:
        # What was written stands for all: its time per row, view by view.
        write_s = sum(one.write_s[store] * one.rows / max(one.sample_rows, 1) for one in done.values())
        told = f"{store} offline store, every {WRITE_ONE_IN}th table of 100,000 rows written and scaled up by view"
        speed = rows / (compute_s + write_s)
        figures.append(
            Figure(name=f"event rows, to {store}", value=speed, unit="rows/s", better="higher", conditions=told)
        )
        figures.append(
            Figure(name=f"share of writing, {store}", value=write_s / (compute_s + write_s), unit="", conditions=told)
        )
    return figures


def _view_events(view: ViewSchema, payments: Payments, edges: EdgeTable, stores: dict[str, OfflineStore]) -> _Written:
    done = _Written(write_s=dict.fromkeys(stores, 0.0))
    for store in stores.values():
        store.create_view(view)
    tables = event_rows(view, edges, from_ms=START_MS, to_ms=payments.end_ms, settings=SETTINGS)
    position = 0
    while True:
        started = perf_counter()
        table = next(islice(tables, 1), None)
        done.compute_s += perf_counter() - started
        if table is None:
            note(f"  {view.name}: {done.rows:,} rows in {done.compute_s:.1f} s, writing {done.write_s}")
            return done
        done.rows += table.num_rows
        if position % WRITE_ONE_IN == 0:
            done.sample_rows += table.num_rows
            for name, store in stores.items():
                started = perf_counter()
                store.write(view, table, part=f"bench-{position:05d}")
                done.write_s[name] += perf_counter() - started
        position += 1
