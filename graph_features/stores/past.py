"""Which rows of a table of feature rows are to go: those of some accounts, and those past their retention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from graph_features.contracts import TIMESTAMP
from graph_features.schema import Cadence, DType, ViewSchema


def names_of(view: ViewSchema, table: pa.Table, entity_ids: Sequence[str], *, lists: bool = True) -> pa.ChunkedArray:
    """Return whether each row names one of the accounts as a part of its key or, with `lists`, in a list of ids."""
    wanted = pa.array(list(entity_ids), pa.string())
    found = pa.chunked_array([pa.array(np.zeros(table.num_rows, np.bool_))])
    for key in view.keys:
        found = pc.or_(found, pc.is_in(table[key], value_set=wanted))
    for feature in view.features if lists else ():
        if feature.dtype is DType.STRING_LIST and feature.name in table.column_names:
            found = pc.or_(found, _any_in(table[feature.name], wanted))
    return found


def _any_in(column: pa.ChunkedArray, wanted: pa.Array) -> pa.Array:
    parents = pc.list_parent_indices(column).to_numpy()
    hits = pc.is_in(pc.list_flatten(column), value_set=wanted).to_numpy()
    named = np.zeros(len(column), np.bool_)
    named[parents[hits]] = True
    return pa.array(named)


def newest_before(view: ViewSchema, paths: Iterable[Path], before_ms: int) -> pa.Table:
    """Return the keys of each entity with its `newest` event_timestamp before an instant, over all files."""
    columns = [*view.keys, "event_timestamp"]
    tables = [pq.read_table(path, columns=columns, partitioning=None) for path in paths]
    past = pa.concat_tables(tables).filter(pc.field("event_timestamp") < _instant(before_ms))
    grouped = past.group_by(list(view.keys)).aggregate([("event_timestamp", "max")])
    return grouped.rename_columns([*view.keys, "newest"])


def is_past(view: ViewSchema, table: pa.Table, before_ms: int, newest: pa.Table) -> pa.ChunkedArray:
    """Return whether each row is older than an instant and, in an event view, not its entity's newest such row."""
    old = pc.less(table["event_timestamp"], _instant(before_ms))
    if view.cadence is Cadence.SLICE:
        return old
    numbered = table.select([*view.keys, "event_timestamp"]).append_column("at", pa.array(np.arange(table.num_rows)))
    joined = numbered.join(newest, keys=list(view.keys)).sort_by("at")
    return pc.and_(old, pc.fill_null(pc.less(joined["event_timestamp"], joined["newest"]), False))


def _instant(before_ms: int) -> pa.Scalar:
    return pa.scalar(before_ms, pa.int64()).cast(TIMESTAMP)
