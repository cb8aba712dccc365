"""A row's identity is (keys, event_timestamp, created_timestamp): of rows that share it the last written counts."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from graph_features.schema import ViewSchema

WRITE_ORDER = pa.field("write_order", pa.int64())
"""A column that grows with the order of writes."""


def identity(view: ViewSchema) -> list[str]:
    """Columns that name one version of one row."""
    return [*view.keys, "event_timestamp", "created_timestamp"]


def once(view: ViewSchema, table: pa.Table) -> pa.Table:
    """Of each version keep the table's last row; as a rule there is one, and the table comes back as it is."""
    if table.group_by(identity(view)).aggregate([]).num_rows == table.num_rows:
        return table
    numbered = table.append_column(WRITE_ORDER, pa.array(range(table.num_rows), pa.int64()))
    return last_written(view, numbered).drop_columns([WRITE_ORDER.name])


def last_written(view: ViewSchema, table: pa.Table) -> pa.Table:
    """Of each version keep the row with the largest write_order; rows come out sorted by entity and time."""
    names = identity(view)
    table = table.sort_by([*((name, "ascending") for name in names), (WRITE_ORDER.name, "descending")])
    if table.num_rows < 2:
        return table
    repeated = pa.scalar(True)
    for name in names:
        column = table[name].combine_chunks()
        repeated = pc.and_(repeated, pc.equal(column.slice(1), column.slice(0, len(column) - 1)))
    return table.filter(pa.chunked_array([pa.array([True]), pc.invert(repeated)]))
