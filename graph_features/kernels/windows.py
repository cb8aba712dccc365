"""Counts, sums, maxima, deviations and distinct counterparties of payments over look-back windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.kernels.compiled import compiled
from graph_features.kernels.int128 import add, square, squared_deviations, subtract
from graph_features.kernels.timeline import Timeline

NOTHING = np.int64(-(2**63))
"""The maximum of no payments."""


@compiled
def tree_set(tree: Any, size: int, position: int, value: Any) -> None:
    """Set a leaf of a maximum tree of `size` leaves (a power of two) and renew what lies above it."""
    node = size + position
    tree[node] = value
    node >>= 1
    while node >= 1:
        renewed = max(tree[2 * node], tree[2 * node + 1])
        if tree[node] == renewed:
            break
        tree[node] = renewed
        node >>= 1


@compiled
def tree_max(tree: Any, size: int, first: int, end: int) -> Any:
    """Return the maximum of leaves first to end - 1, NOTHING if there are none."""
    best = NOTHING
    low, high = size + first, size + end
    while low < high:
        if low & 1:
            best = max(best, tree[low])
            low += 1
        if high & 1:
            high -= 1
            best = max(best, tree[high])
        low >>= 1
        high >>= 1
    return best


@compiled
def enter(w: int, amount: Any, count: Any, total: Any, squares: Any) -> None:
    """Take a payment into window w."""
    count[w] += 1
    total[w] += amount
    high, low = square(amount)
    squares[w, 0], squares[w, 1] = add(squares[w, 0], squares[w, 1], high, low)


@compiled
def leave(w: int, amount: Any, count: Any, total: Any, squares: Any) -> None:
    """Take a payment out of window w."""
    count[w] -= 1
    total[w] -= amount
    high, low = square(amount)
    squares[w, 0], squares[w, 1] = subtract(squares[w, 0], squares[w, 1], high, low)


@compiled
def meet(w: int, other: Any, step: int, seen: Any, distinct: Any) -> None:
    """Count a counterparty in (step 1) or out (step -1) of window w."""
    seen[other, w] += step
    if step == 1 and seen[other, w] == 1:
        distinct[w] += 1
    elif step == -1 and seen[other, w] == 0:
        distinct[w] -= 1


@compiled
def sweep_windows(
    t: Timeline, other: Any, seen: Any, group: Any, as_of_ms: Any, lengths_ms: Any, grains_ms: Any, completed: int
) -> tuple[Any, Any, Any, Any, Any]:
    """Return (count, total, largest, deviations, distinct), each (windows, n), for queries sorted by (group, as_of).

    A window of length L and grain G holds payments with (as_of - L) // G * G <= ts < as_of whose latest status known
    before as_of is completed; L < 0 is all time. `other` names the counterparty of each entry in `seen`, zeros of
    (counterparties, windows); where it is empty nothing is counted distinct. A group of -1 has no payments.
    """
    n, n_windows = len(group), len(lengths_ms)
    out_count = np.zeros((n_windows, n), np.int64)
    out_total = np.zeros((n_windows, n), np.int64)
    out_largest = np.full((n_windows, n), NOTHING)
    out_deviations = np.zeros((n_windows, n), np.float64)
    out_distinct = np.zeros((n_windows, n), np.int64)
    with_others = len(other) > 0

    longest = 0
    for i in range(n):
        if group[i] >= 0:
            longest = max(longest, t.offsets[group[i] + 1] - t.offsets[group[i]])
    room = 1
    while room < longest:
        room *= 2
    tree = np.empty(2 * room, np.int64)
    counts_now = np.empty(longest, np.bool_)
    count = np.empty(n_windows, np.int64)
    total = np.empty(n_windows, np.int64)
    squares = np.empty((n_windows, 2), np.uint64)
    distinct = np.empty(n_windows, np.int64)
    evicted = np.empty(n_windows, np.int64)

    current, base, degree, size, added, change, last_change = -1, 0, 0, 1, 0, 0, 0
    for i in range(n):
        g = group[i]
        if g < 0:
            continue
        if g != current:
            current = g
            base = t.offsets[g]
            degree = t.offsets[g + 1] - base
            size = 1
            while size < degree:
                size *= 2
            tree[: 2 * size] = NOTHING
            counts_now[:degree] = True
            count[:] = 0
            total[:] = 0
            squares[:] = np.uint64(0)
            distinct[:] = 0
            evicted[:] = 0
            added, change, last_change = 0, t.change_offsets[g], t.change_offsets[g + 1]
        as_of = as_of_ms[i]
        while change < last_change and t.change_ts_ms[change] < as_of:
            at = t.change_at[change]
            counts = t.change_value[change] == completed
            change += 1
            if counts == counts_now[at]:
                continue
            counts_now[at] = counts
            if at >= added:
                continue
            amount = t.amount[base + at]
            tree_set(tree, size, at, amount if counts else NOTHING)
            for w in range(n_windows):
                if at >= evicted[w]:
                    if counts:
                        enter(w, amount, count, total, squares)
                    else:
                        leave(w, amount, count, total, squares)
                    if with_others:
                        meet(w, other[base + at], 1 if counts else -1, seen, distinct)
        while added < degree and t.ts_ms[base + added] < as_of:
            if counts_now[added]:
                amount = t.amount[base + added]
                tree_set(tree, size, added, amount)
                for w in range(n_windows):
                    enter(w, amount, count, total, squares)
                    if with_others:
                        meet(w, other[base + added], 1, seen, distinct)
            added += 1
        for w in range(n_windows):
            if lengths_ms[w] >= 0:
                start = (as_of - lengths_ms[w]) // grains_ms[w] * grains_ms[w]
                while evicted[w] < added and t.ts_ms[base + evicted[w]] < start:
                    if counts_now[evicted[w]]:
                        leave(w, t.amount[base + evicted[w]], count, total, squares)
                        if with_others:
                            meet(w, other[base + evicted[w]], -1, seen, distinct)
                    evicted[w] += 1
            out_count[w, i] = count[w]
            out_total[w, i] = total[w]
            out_distinct[w, i] = distinct[w]
            if count[w] > 0:
                out_largest[w, i] = tree_max(tree, size, evicted[w], added)
                out_deviations[w, i] = squared_deviations(count[w], total[w], squares[w, 0], squares[w, 1])
    return out_count, out_total, out_largest, out_deviations, out_distinct
