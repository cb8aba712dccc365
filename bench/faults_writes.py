"""After the faults: every accepted write is in the records, once, in the graph, and in the features that are online."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg

from bench.report import Figure
from bench.serving_world import World
from bench.serving_writes import Accepted
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.drivers import on_demand
from graph_features.ingest.verify import verify
from graph_features.refresh import AFTER_EVERYTHING_MS
from graph_features.schema import EntityKey
from graph_features.settings import FeatureSettings
from graph_features.sources.neo4j import Neo4jGraph
from graph_features.sources.postgres import PostgresRecords
from graph_features.stores.codec import encode

LIMIT_S = 60.0
CREATED = slice(16, 24)
"""Where a packed row says which ingest sequence it was computed from: that may differ."""


def check_writes(world: World, accepted: Sequence[Accepted], shown: str) -> list[Figure]:
    """Look for every accepted payment and label; what is being worked on gets LIMIT_S."""
    begun = time.monotonic()
    pending = _pending(world, accepted)
    while pending and time.monotonic() < begun + LIMIT_S:
        time.sleep(0.2)
        pending = _pending(world, accepted)
    lost, twice = _stored(world, accepted)
    wrong = _rows_that_differ(world, accepted)
    undrawn = _undrawn(world, begun)
    note(f"  writes: {shown}; lost {lost}, twice {twice}, pending {len(pending)}, rows {wrong}, graph {undrawn!r}")
    found = {
        "accepted writes that are not in the records": lost,
        "accepted writes that are there twice": twice,
        "accounts and pairs still to be renewed": len(pending),
        "online rows that are not those of all that was accepted": wrong,
        "differences between graph and records": int(bool(undrawn)),
    }
    return [Figure(name=name, value=value, unit="", goal=0, conditions=shown) for name, value in found.items()]


def _keys(accepted: Sequence[Accepted]) -> dict[str, list[EntityKey]]:
    accounts = sorted({account for one in accepted for account in (one.sender_id, one.receiver_id)})
    return {
        "account": [(account,) for account in accounts],
        "pair": sorted({(one.sender_id, one.receiver_id) for one in accepted}),
    }


def _pending(world: World, accepted: Sequence[Accepted]) -> dict[EntityKey, str]:
    return world.online.pending([key for keys in _keys(accepted).values() for key in keys])


def _stored(world: World, accepted: Sequence[Accepted]) -> tuple[int, int]:
    """How many payments and labels are not in the records, and how many are there more than once."""
    options: Any = world.services.postgres.conninfo()
    lost = twice = 0
    with psycopg.connect(**options) as connection:
        for table, ids in (
            ("transactions", [one.transaction_id for one in accepted]),
            ("labels", [one.transaction_id for one in accepted if one.labelled_at is not None]),
        ):
            query = (
                f"SELECT transaction_id, count(*) FROM ringfence.{table} WHERE transaction_id = ANY(%s) "
                "GROUP BY transaction_id"
            )
            counts = dict(connection.execute(query.encode(), [ids]).fetchall())
            lost += sum(one not in counts for one in ids)
            twice += sum(count > 1 for count in counts.values())
    return lost, twice


def _rows_that_differ(world: World, accepted: Sequence[Accepted]) -> int:
    """Online rows of the accounts and pairs that are not what their records give, computed here and now."""
    records = PostgresRecords(world.services.postgres)
    views, keys = catalog().event_views(), _keys(accepted)
    done = on_demand.latest_rows(
        views, keys, records, before_ms=AFTER_EVERYTHING_MS, settings=FeatureSettings(), online=None
    )
    records.close()
    differ = 0
    for view in views:
        table = done.tables[view.name]
        columns = [table[name].to_pylist() for name in view.keys]
        expected = dict(zip(zip(*columns, strict=True), encode(view, table), strict=True))
        (found,) = world.online.read([(view, keys[view.entity])])
        for key, value in zip(keys[view.entity], found, strict=True):
            differ += _plain(value) != _plain(expected.get(key))
    return differ


def _plain(value: bytes | None) -> bytes | None:
    return None if value is None else value[: CREATED.start] + value[CREATED.stop :]


def _undrawn(world: World, begun: float) -> str:
    """What the graph lacks or has otherwise than the records; empty when that is nothing."""
    records, graph = PostgresRecords(world.services.postgres), Neo4jGraph(world.services.neo4j)
    try:
        report = verify(records, graph)
        while not report.equal and time.monotonic() < begun + LIMIT_S:
            time.sleep(1.0)
            report = verify(records, graph)
    finally:
        graph.close()
        records.close()
    return "" if report.equal else str(report)
