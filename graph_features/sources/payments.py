"""Payments as the graph stores exchange them: the columns of an edge, their canonical order, who used which thing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from graph_features.contracts import STORED_TRANSACTION_SCHEMA
from graph_features.time_order import in_time_order

_COLUMNS: Final = ("transaction_id", "seq", "event_timestamp", "sender_id", "receiver_id", "amount_base")

EDGE_SCHEMA: Final = pa.schema([STORED_TRANSACTION_SCHEMA.field(name) for name in _COLUMNS])
"""What `GraphStore.read_edges` returns."""


def canonical(tables: Iterable[pa.Table]) -> pa.Table:
    """All rows in the order of every edge table: event time, then transaction id."""
    return in_time_order(pa.concat_tables([EDGE_SCHEMA.empty_table(), *tables]))


def edges_of(stored: pa.Table) -> pa.Table:
    """The edge columns of stored transactions."""
    return stored.select(EDGE_SCHEMA.names).cast(EDGE_SCHEMA)


def uses(stored: pa.Table, column: str) -> dict[str, list[Any]]:
    """Which senders used which device, card or ip (`column`), first and last when: parallel lists, nulls left out."""
    present = stored.filter(pc.is_valid(stored[column])).select(["sender_id", column, "event_timestamp"])
    present = present.set_column(2, "ts", present["event_timestamp"].cast(pa.int64()))
    grouped = present.group_by(["sender_id", column]).aggregate([("ts", "min"), ("ts", "max")])
    return {
        "account_id": grouped["sender_id"].to_pylist(),
        "thing_id": grouped[column].to_pylist(),
        "first_ts": grouped["ts_min"].to_pylist(),
        "last_ts": grouped["ts_max"].to_pylist(),
    }
