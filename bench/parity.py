"""Batch against on-demand on the book's payments, through every store: the same rows, bit for bit.

    python -m bench.parity --data FOLDER [--payments 50000] [--home FOLDER]

FOLDER holds handbook_2018-04-01_2018-09-05.parquet. Its first payments, every fiftieth of them reversed, go into SQLite
and DuckDB, and into PostgreSQL and Neo4j, which are started for it. At several instants every account and pair is
computed once from everything and once on demand, and every slice once from the records and once from the graph.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.handbook import FILE, MAPPING, environment
from bench.report import Figure, publish
from bench.steps import ringfence
from graph_features.catalog import catalog
from graph_features.contracts import STORED_TRANSACTION_SCHEMA
from graph_features.drivers import batch, on_demand
from graph_features.edges import EdgeTable
from graph_features.lazy_stores import LazyStores
from graph_features.refresh import refresh
from graph_features.settings import PlatformSettings, export_services_environment, load

REVERSED_EVERY = 50
SHARES = (0.3, 0.6, 1.0)
"""Where in the period the instants lie."""

PART_KEYS = 2_000
GRAPH_VIEWS = ("account_topology", "account_proximity")
"""Slice views that need no more of a payment than the graph has: ends, time and amount."""

Tables = dict[str, pa.Table]


def prepare(data: Path, payments: int, folder: Path) -> tuple[Path, Path]:
    """Write the first payments, and statuses of some of them, as files to ingest."""
    table = pq.read_table(data).sort_by([("TX_DATETIME", "ascending"), ("TRANSACTION_ID", "ascending")])
    table = table.slice(0, payments)
    pq.write_table(table, folder / "payments.parquet")
    with (folder / "statuses.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["transaction_id", "status", "status_timestamp"])
        for row in table.take(pa.array(range(0, payments, REVERSED_EVERY))).to_pylist():
            known: datetime = row["TX_DATETIME"] + timedelta(days=1)
            writer.writerow([row["TRANSACTION_ID"], "reversed", f"{known:%Y-%m-%dT%H:%M:%SZ}"])
    return folder / "payments.parquet", folder / "statuses.csv"


def fill(files: tuple[Path, Path], env: Mapping[str, str]) -> None:
    payments, statuses = files
    ringfence("ingest", ["ingest", str(payments), "--mapping", str(MAPPING)], environment=env)
    ringfence("statuses", ["ingest", str(statuses), "--kind", "statuses"], environment=env)
    ringfence("verify", ["verify"], environment=env)


def everything(stores: LazyStores) -> EdgeTable:
    found = stores.records.read_all()
    return EdgeTable.from_arrow(found.transactions, found.statuses, found.labels, max_seq=found.max_seq)


def from_graph(stores: LazyStores, before_ms: int) -> EdgeTable:
    """Payments as the graph has them, with the statuses and labels of the records."""
    edges, known = stores.graph.read_edges(before_ms=before_ms), stores.records.read_all()
    columns = [
        edges[field.name] if field.name in edges.column_names else pa.nulls(edges.num_rows, field.type)
        for field in STORED_TRANSACTION_SCHEMA
    ]
    payments = pa.Table.from_arrays(columns, names=STORED_TRANSACTION_SCHEMA.names)
    return EdgeTable.from_arrow(payments, known.statuses, known.labels, max_seq=known.max_seq)


def in_batch(edges: EdgeTable, before_ms: int, stores: LazyStores) -> Tables:
    return {
        view.name: _sorted(
            batch.latest_rows(view, edges, None, before_ms=before_ms, settings=stores.feature_settings), view.keys
        )
        for view in catalog().event_views()
    }


def on_demand_rows(wanted: Tables, before_ms: int, stores: LazyStores, *, with_online: bool) -> Tables:
    """The rows of the same keys, part by part."""
    views = catalog().event_views()
    keys = {
        view.entity: list(zip(*(wanted[view.name][name].to_pylist() for name in view.keys), strict=True))
        for view in views
    }
    found: dict[str, list[pa.Table]] = {view.name: [] for view in views}
    for entity, every in keys.items():
        for start in range(0, len(every), PART_KEYS):
            done = on_demand.latest_rows(
                views,
                {entity: every[start : start + PART_KEYS]},
                stores.records,
                before_ms=before_ms,
                settings=stores.feature_settings,
                online=stores.online if with_online else None,
            )
            if done.failed:
                raise RuntimeError(f"not computed: {dict(list(done.failed.items())[:3])}")
            for name, table in done.tables.items():
                found[name].append(table)
    return {view.name: _sorted(found[view.name], view.keys) for view in views}


def slices(edges: EdgeTable, as_of_ms: int, stores: LazyStores) -> Tables:
    settings = stores.feature_settings
    return {
        name: batch.slice_rows(catalog().schema(name), edges, as_of_ms=as_of_ms, settings=settings)
        for name in GRAPH_VIEWS
    }


def _sorted(tables: Any, keys: tuple[str, ...]) -> pa.Table:
    return pa.concat_tables(tables).sort_by([(name, "ascending") for name in keys]).combine_chunks()


def differences(first: Tables, second: Tables) -> int:
    """How many columns differ in any bit, each of them named on the error stream."""
    count = 0
    for view, table in first.items():
        other = second[view]
        for name in table.column_names:
            if not table[name].equals(other[name]):
                count += 1
                sys.stderr.write(f"{view}:{name} differs\n")
    return count


def compare(stores: LazyStores, label: str) -> tuple[list[Figure], list[Tables]]:
    """Every comparison within one profile; also return the batch rows, to be laid beside the other profile's."""
    edges = everything(stores)
    first_ms, last_ms = int(edges.ts_ms[0]), int(edges.ts_ms[-1]) + 1
    figures, rows = [], []
    for share in SHARES:
        before_ms = first_ms + int(share * (last_ms - first_ms))
        wanted = in_batch(edges, before_ms, stores)
        started = perf_counter()
        found = on_demand_rows(wanted, before_ms, stores, with_online=share == SHARES[-1])
        seconds = perf_counter() - started
        graph = differences(slices(edges, before_ms, stores), slices(from_graph(stores, before_ms), before_ms, stores))
        n_rows = sum(table.num_rows for table in wanted.values())
        at = f"{label}, {share:.0%} of the period"
        figures += [
            Figure(name=f"{at}: columns on demand that differ", value=differences(wanted, found), unit="", goal=0),
            Figure(name=f"{at}: columns from the graph that differ", value=graph, unit="", goal=0),
            Figure(name=f"{at}: rows on demand", value=n_rows / seconds, unit="rows/s", better="higher"),
        ]
        rows.append(wanted)
    return figures, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {FILE}")
    parser.add_argument("--payments", type=int, default=50_000)
    parser.add_argument("--home", type=Path, help="state folder; a temporary one by default")
    arguments = parser.parse_args()
    data = arguments.data / FILE
    if not data.is_file():
        sys.exit(f"{data} is not there: --data names the folder that holds it (see the book's data set)")
    with tempfile.TemporaryDirectory(prefix="ringfence-parity-") as temporary:
        home = (arguments.home or Path(temporary)).absolute()
        home.mkdir(parents=True, exist_ok=True)
        publish("parity", run(data, arguments.payments, home))


def run(data: Path, payments: int, home: Path) -> list[Figure]:
    files = prepare(data, payments, home)
    figures: list[Figure] = []
    rows: list[list[Tables]] = []
    for profile in ("embedded", "services"):
        env = environment(home / profile, profile)
        try:
            if profile == "services":
                ringfence("services", ["services", "up"], environment=env)
            fill(files, env)
            found, batch_rows = compare_in(env, profile)
        finally:
            if profile == "services":
                ringfence("services down", ["services", "down"], environment=env)
        figures += found
        rows.append(batch_rows)
    across = sum(differences(one, other) for one, other in zip(*rows, strict=True))
    return [*figures, Figure(name="columns that differ between the profiles", value=across, unit="", goal=0)]


def compare_in(env: Mapping[str, str], profile: str) -> tuple[list[Figure], list[Tables]]:
    os.environ.update(env)
    export_services_environment()
    with closing(LazyStores(load(PlatformSettings))) as stores:
        for view in catalog().event_views():
            stores.offline.create_view(view)
        refresh(
            None,
            records=stores.records,
            online=stores.online,
            offline=stores.offline,
            settings=stores.feature_settings,
        )
        return compare(stores, profile)


if __name__ == "__main__":
    main()
