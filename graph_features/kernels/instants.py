"""The distinct instants at which something happened to a group: its payments, and what became known of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.edges import Int64
from graph_features.kernels.compiled import compiled
from graph_features.kernels.timeline import Timeline


@compiled
def merge_instants(
    t: Timeline, edge_seq: Any, change_offsets: Any, change_ts_ms: Any, change_seq: Any
) -> tuple[Any, Any, Any]:
    """Return (offsets, instants in ms, newest ingest sequence at each), ascending per group.

    `change_ts_ms` and `change_seq` are grouped by `change_offsets`, in order of time.
    """
    n_groups = len(t.offsets) - 1
    offsets = np.zeros(n_groups + 1, np.int64)
    # Room for as many as there can be: what is not written to takes no memory.
    instants = np.empty(len(t.ts_ms) + len(change_ts_ms), np.int64)
    newest = np.empty(len(instants), np.int64)
    found = 0
    for g in range(n_groups):
        at, change = t.offsets[g], change_offsets[g]
        last, last_change = t.offsets[g + 1], change_offsets[g + 1]
        while at < last or change < last_change:
            if change == last_change or (at < last and t.ts_ms[at] <= change_ts_ms[change]):
                now = t.ts_ms[at]
            else:
                now = change_ts_ms[change]
            seq = np.int64(-1)
            while at < last and t.ts_ms[at] == now:
                seq = max(seq, edge_seq[t.edge[at]])
                at += 1
            while change < last_change and change_ts_ms[change] == now:
                seq = max(seq, change_seq[change])
                change += 1
            instants[found], newest[found] = now, seq
            found += 1
        offsets[g + 1] = found
    return offsets, instants[:found], newest[:found]


@compiled
def count_before(offsets: Int64, ts_ms: Any, before_ms: int) -> Int64:
    """Return per group how many of its instants lie before `before_ms`."""
    count = np.empty(len(offsets) - 1, np.int64)
    for g in range(len(count)):
        low, high = offsets[g], offsets[g + 1]
        while low < high:
            middle = (low + high) // 2
            if ts_ms[middle] < before_ms:
                low = middle + 1
            else:
                high = middle
        count[g] = low - offsets[g]
    return count
