"""Counts, sums, maxima, deviations and distinct counterparties of payments over look-back windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.kernels.compiled import compiled
from graph_features.kernels.int128 import add, square, squared_deviations, subtract
from graph_features.kernels.timeline import Timeline

NOTHING = np.int64(-(2**63))
"""The maximum of no payments."""

SHORT = 32
"""Payments among which a maximum is looked for one by one."""


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
def tree_fill(tree: Any, size: int, amounts: Any, counts_now: Any, end: int) -> None:
    """Set all leaves: the amounts that count before position `end`, and NOTHING."""
    for at in range(size):
        tree[size + at] = amounts[at] if at < end and counts_now[at] else NOTHING
    for node in range(size - 1, 0, -1):
        tree[node] = max(tree[2 * node], tree[2 * node + 1])


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
def meet(w: int, other: Any, seen: Any, distinct: Any) -> None:
    """Count a counterparty into window w."""
    seen[w, other] += 1
    if seen[w, other] == 1:
        distinct[w] += 1


@compiled
def part(w: int, other: Any, seen: Any, distinct: Any) -> None:
    """Count a counterparty out of window w."""
    seen[w, other] -= 1
    if seen[w, other] == 0:
        distinct[w] -= 1


@compiled
def sweep_windows(
    t: Timeline, other: Any, group: Any, as_of_ms: Any, lengths_ms: Any, grains_ms: Any, completed: int
) -> tuple[Any, Any, Any, Any, Any]:
    """Return (count, total, largest, deviations, distinct), each (windows, n), for queries sorted by (group, as_of).

    A window of length L and grain G holds payments with (as_of - L) // G * G <= ts < as_of whose latest status known
    before as_of is completed; L < 0 is all time. `other` numbers the counterparty of each entry within its group; where
    it is empty nothing is counted distinct. A group of -1 has no payments.

    What no payment has entered or left since the query before is not computed again. A maximum is that of what enters;
    only when it leaves itself is it looked for, in a short window one by one, in a long one through a tree.
    """
    n, n_windows = len(group), len(lengths_ms)
    out_count = np.empty((n_windows, n), np.int64)
    out_total = np.empty((n_windows, n), np.int64)
    out_largest = np.empty((n_windows, n), np.int64)
    out_deviations = np.empty((n_windows, n), np.float64)
    out_distinct = np.empty((n_windows, n), np.int64)
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
    seen = np.empty((n_windows, longest if with_others else 0), np.int32)
    count = np.empty(n_windows, np.int64)
    total = np.empty(n_windows, np.int64)
    squares = np.empty((n_windows, 2), np.uint64)
    distinct = np.empty(n_windows, np.int64)
    first = np.empty(n_windows, np.int64)  # position of the window's first payment, counted or not
    largest = np.empty(n_windows, np.int64)
    deviations = np.empty(n_windows, np.float64)
    moved = np.empty(n_windows, np.bool_)  # since deviations were computed
    lost = np.empty(n_windows, np.bool_)  # the largest has left

    current, degree, size, added, change, last_change = -1, 0, 1, 0, 0, 0
    filled = False  # the tree
    ts, amounts, who = t.ts_ms, t.amount, other
    for i in range(n):
        g = group[i]
        if g < 0:
            out_count[:, i], out_total[:, i], out_distinct[:, i] = 0, 0, 0
            out_largest[:, i], out_deviations[:, i] = NOTHING, 0.0
            continue
        if g != current:
            current = g
            base = t.offsets[g]
            degree = t.offsets[g + 1] - base
            ts, amounts = t.ts_ms[base : base + degree], t.amount[base : base + degree]
            counts_now[:degree] = True
            if with_others:
                who = other[base : base + degree]
                seen[:, :degree] = 0
            count[:] = 0
            total[:] = 0
            squares[:] = np.uint64(0)
            distinct[:] = 0
            first[:] = 0
            largest[:] = NOTHING
            deviations[:] = 0.0
            moved[:] = False
            lost[:] = False
            filled = False
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
            amount = amounts[at]
            if filled:
                tree_set(tree, size, at, amount if counts else NOTHING)
            for w in range(n_windows):
                if at < first[w]:
                    continue
                moved[w] = True
                if counts:
                    enter(w, amount, count, total, squares)
                    largest[w] = max(largest[w], amount)
                    if with_others:
                        meet(w, who[at], seen, distinct)
                else:
                    leave(w, amount, count, total, squares)
                    lost[w] |= amount == largest[w]
                    if with_others:
                        part(w, who[at], seen, distinct)
        before = added
        while added < degree and ts[added] < as_of:
            if filled and counts_now[added]:
                tree_set(tree, size, added, amounts[added])
            added += 1
        for w in range(n_windows):
            if lengths_ms[w] >= 0 and first[w] < added and ts[first[w]] < as_of - lengths_ms[w]:
                start = (as_of - lengths_ms[w]) // grains_ms[w] * grains_ms[w]
                at = first[w]
                while at < added and ts[at] < start:
                    if at < before and counts_now[at]:
                        moved[w] = True
                        leave(w, amounts[at], count, total, squares)
                        lost[w] |= amounts[at] == largest[w]
                        if with_others:
                            part(w, who[at], seen, distinct)
                    at += 1
                first[w] = at
            for at in range(max(first[w], before), added):
                if counts_now[at]:
                    moved[w] = True
                    enter(w, amounts[at], count, total, squares)
                    largest[w] = max(largest[w], amounts[at])
                    if with_others:
                        meet(w, who[at], seen, distinct)
            if count[w] == 0:
                largest[w], deviations[w] = NOTHING, 0.0
                lost[w], moved[w] = False, False
            if lost[w]:
                lost[w] = False
                if added - first[w] <= SHORT:
                    largest[w] = NOTHING
                    for at in range(first[w], added):
                        if counts_now[at]:
                            largest[w] = max(largest[w], amounts[at])
                else:
                    if not filled:
                        size = 1
                        while size < degree:
                            size *= 2
                        tree_fill(tree, size, amounts, counts_now, added)
                        filled = True
                    largest[w] = tree_max(tree, size, first[w], added)
            if moved[w]:
                moved[w] = False
                deviations[w] = squared_deviations(count[w], total[w], squares[w, 0], squares[w, 1])
            out_count[w, i] = count[w]
            out_total[w, i] = total[w]
            out_distinct[w, i] = distinct[w]
            out_largest[w, i] = largest[w]
            out_deviations[w, i] = deviations[w]
    return out_count, out_total, out_largest, out_deviations, out_distinct
