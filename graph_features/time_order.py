"""The canonical order of payments, event time and then transaction id, for tables that are nearly in it already."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TIME, ID = "event_timestamp", "transaction_id"


def in_time_order(table: pa.Table) -> pa.Table:
    """Sort by (event_timestamp, transaction_id), neither of them null, as `sort_by` does, and as one chunk.

    Times are sorted as numbers, where what is sorted already costs next to nothing; ids only where times are equal.
    """
    table = table.combine_chunks()
    ts_ms = table[TIME].cast(pa.int64()).to_numpy()
    order = np.argsort(ts_ms, kind="stable")
    sorted_ms = ts_ms[order]
    same = np.zeros(len(order) + 1, np.bool_)
    same[1:-1] = sorted_ms[1:] == sorted_ms[:-1]
    tied = np.flatnonzero(same[1:] | same[:-1])  # as the one before, or the one after
    if len(tied):
        among = table.select([TIME, ID]).take(pa.array(order[tied]))
        by_id = pc.sort_indices(among, sort_keys=[(TIME, "ascending"), (ID, "ascending")])
        order[tied] = order[tied][by_id.to_numpy()]
    if bool(np.all(order == np.arange(len(order)))):
        return table
    return table.take(pa.array(order)).combine_chunks()
