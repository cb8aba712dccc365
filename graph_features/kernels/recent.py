"""The last payments that count, and what any account had done by any instant."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from graph_features.edges import Int64
from graph_features.kernels.compiled import compiled
from graph_features.kernels.timeline import Timeline


class Ledger(NamedTuple):
    """Running totals per group: after the first k of its entries, by time, they are `total[:, offsets[g] + k]` less the
    value at k = 0."""

    offsets: Int64
    ts_ms: Int64
    totals: Int64


@compiled
def sweep_recent(t: Timeline, group: Any, as_of_ms: Any, limit: int, completed: int) -> tuple[Any, Any]:
    """Return (number (n), edges (n, limit)), newest payment first, for queries sorted by (group, as_of)."""
    n = len(group)
    out_number = np.zeros(n, np.int64)
    out_edges = np.full((n, limit), -1, np.int64)
    longest = 0
    for i in range(n):
        if group[i] >= 0:
            longest = max(longest, t.offsets[group[i] + 1] - t.offsets[group[i]])
    counts_now = np.empty(longest, np.bool_)

    current, base, degree, added, change, last_change = -1, 0, 0, 0, 0, 0
    for i in range(n):
        g = group[i]
        if g < 0:
            continue
        if g != current:
            current = g
            base = t.offsets[g]
            degree = t.offsets[g + 1] - base
            counts_now[:degree] = True
            added, change, last_change = 0, t.change_offsets[g], t.change_offsets[g + 1]
        while change < last_change and t.change_ts_ms[change] < as_of_ms[i]:
            counts_now[t.change_at[change]] = t.change_value[change] == completed
            change += 1
        while added < degree and t.ts_ms[base + added] < as_of_ms[i]:
            added += 1
        at, number = added - 1, 0
        while at >= 0 and number < limit:
            if counts_now[at]:
                out_edges[i, number] = t.edge[base + at]
                number += 1
            at -= 1
        out_number[i] = number
    return out_number, out_edges


@compiled
def look_up(ledger: Ledger, group: Any, as_of_ms: Any) -> Any:
    """Return the totals (columns, n) of entries before as_of, for queries in any order; a group of -1 has none."""
    n_columns, n = ledger.totals.shape[0], len(group)
    out = np.zeros((n_columns, n), np.int64)
    for i in range(n):
        if group[i] < 0:
            continue
        first = ledger.offsets[group[i]]
        low, high = first, ledger.offsets[group[i] + 1]
        while low < high:
            middle = (low + high) // 2
            if ledger.ts_ms[middle] < as_of_ms[i]:
                low = middle + 1
            else:
                high = middle
        for c in range(n_columns):
            out[c, i] = ledger.totals[c, low] - ledger.totals[c, first]
    return out


@compiled
def sweep_distinct(offsets: Any, ts_ms: Any, code: Any, delta: Any, seen: Any, group: Any, as_of_ms: Any) -> Any:
    """Return how many codes have a positive sum of deltas before as_of, for queries sorted by (group, as_of).

    A code belongs to one group; `seen` is zeros, one per code.
    """
    n = len(group)
    out = np.zeros(n, np.int64)
    current, at, last, distinct = -1, 0, 0, 0
    for i in range(n):
        g = group[i]
        if g < 0:
            continue
        if g != current:
            current = g
            at, last, distinct = offsets[g], offsets[g + 1], 0
        while at < last and ts_ms[at] < as_of_ms[i]:
            c = code[at]
            was = seen[c] > 0
            seen[c] += delta[at]
            now = seen[c] > 0
            distinct += int(now) - int(was)
            at += 1
        out[i] = distinct
    return out


@compiled
def merge_payments(t: Timeline, change_offsets: Any, change_ts_ms: Any, change: Any) -> Any:
    """Return (offsets, times, totals (2, n + 1)) of a ledger: count and amount of payments, then of what changed them.

    `change` (2, changes) is what each adds to count and amount; changes are grouped by `change_offsets`, in order of
    time. Of one instant payments come first.
    """
    n_groups = len(t.offsets) - 1
    n = len(t.ts_ms) + len(change_ts_ms)
    offsets = np.zeros(n_groups + 1, np.int64)
    ts_ms, totals = np.empty(n, np.int64), np.zeros((2, n + 1), np.int64)
    found, count, amount = 0, 0, 0
    for g in range(n_groups):
        at, of = t.offsets[g], change_offsets[g]
        last, last_of = t.offsets[g + 1], change_offsets[g + 1]
        while at < last or of < last_of:
            if of == last_of or (at < last and t.ts_ms[at] <= change_ts_ms[of]):
                ts_ms[found] = t.ts_ms[at]
                count += 1
                amount += t.amount[at]
                at += 1
            else:
                ts_ms[found] = change_ts_ms[of]
                count += change[0, of]
                amount += change[1, of]
                of += 1
            found += 1
            totals[0, found], totals[1, found] = count, amount
        offsets[g + 1] = found
    return offsets, ts_ms, totals
