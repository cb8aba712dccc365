"""Scores again from their decision records: the rows that a record names, read from the offline store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa

from graph_features.clock import created_timestamp, from_ms
from graph_features.input_spec import InputSpec
from graph_features.schema import Cadence, EntityKey, ViewSchema
from graph_features.settings import PostgresSettings
from graph_features.stores.blocks import RowBlock
from graph_features.transaction import TransactionColumns
from graph_features.tuples import TupleBlocks, build_tuples
from serving.assemble import ROLES
from serving.scorer import _as_unknown
from training.bundle import Bundle

Record = Mapping[str, Any]


def recomputed(postgres: PostgresSettings, bundle: Bundle, records: Sequence[Record]) -> np.ndarray[Any, Any]:
    """Scores of these records' payments, float32 [B], from nothing but the records and the offline store."""
    spec: InputSpec = bundle.info.inputs
    inputs = [record["inputs"] for record in records]
    columns = {name: [given.get(name) for given in inputs] for name in ("sender_id", "receiver_id", "channel")}
    places = {
        name: np.array([np.nan if given.get(name) is None else given[name] for given in inputs], np.float64)
        for name in ("sender_lat", "sender_lon", "receiver_lat", "receiver_lon")
    }
    payments = TransactionColumns.from_mapping(
        {
            **columns,
            **places,
            "event_timestamp": np.array([record["event_timestamp_ms"] for record in records], np.int64),
            "amount_base": np.array([given["amount_base"] for given in inputs], np.int64),
        }
    )
    options: Any = postgres.conninfo()
    with psycopg.connect(**options) as connection:
        blocks = {view.name: _block(connection, view, records) for view in (*spec.account_views, *spec.pair_views)}
    tuples = TupleBlocks(
        accounts={view.name: blocks[view.name] for view in spec.account_views},
        pairs={view.name: blocks[view.name] for view in spec.pair_views},
    )
    return bundle.score(build_tuples(spec, payments, tuples))


def _block(connection: psycopg.Connection[Any], view: ViewSchema, records: Sequence[Record]) -> RowBlock:
    """The 2B rows that the records name: those of the first role, then those of the second."""
    rows, unknown = [], []
    for role in ROLES[view.entity]:
        for record in records:
            version = record["rows"][role][view.name]
            rows.append(_row(connection, view, _key(role, record["inputs"]), version))
            missing = {(one["role"], one["view"]) for one in record["degraded"] if one["reason"] == "missing"}
            unknown.append((role, view.name) in missing)
    names = ["event_timestamp", "created_timestamp", *view.names]
    schema = pa.schema([view.arrow_schema.field(name).with_nullable(True) for name in names])
    block = RowBlock.from_arrow(view, pa.Table.from_pylist(rows, schema))
    places = np.flatnonzero(np.array(unknown) & ~block.present)
    return _as_unknown(block, places) if view.cadence is Cadence.EVENT and len(places) else block


def _key(role: str, inputs: Record) -> EntityKey:
    sender, receiver = inputs["sender_id"], inputs["receiver_id"]
    return {"sender": (sender,), "receiver": (receiver,), "pair": (sender, receiver), "reverse": (receiver, sender)}[
        role
    ]


def _row(
    connection: psycopg.Connection[Any], view: ViewSchema, key: EntityKey, version: list[int] | None
) -> dict[str, Any]:
    if version is None:
        return {}
    names = ["event_timestamp", "created_timestamp", *view.names]
    where = " AND ".join(f'"{name}" = %s' for name in (*view.keys, "event_timestamp", "created_timestamp"))
    columns = ", ".join(f'"{name}"' for name in names)
    query = f'SELECT {columns} FROM features."{view.name}" WHERE {where}'
    moment, created = from_ms(version[0]), created_timestamp(version[1])
    found = connection.execute(query.encode(), (*key, moment, created)).fetchone()
    if found is None:
        raise LookupError(f"{view.name} of {key} as of {moment}, sequence {version[1]}: not in the offline store")
    return dict(zip(names, found, strict=True))
