"""What windows are finished from: payments, or labels, of the longest window in buckets (see kernels.levels)."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.kernels.compiled import compiled
from graph_features.kernels.int128 import add, square, squared_deviations, subtract
from graph_features.kernels.known_labels import LabelTimeline
from graph_features.kernels.levels import (
    GONE,
    MINUTE_MS,
    bucket_of,
    bucket_start,
    first_to_merge,
    fold,
    move_floors,
    reached,
    regroup,
    to_front,
)
from graph_features.kernels.timeline import Timeline
from graph_features.kernels.windows import NOTHING, tree_max, tree_set

COUNT, TOTAL, LAST_OF = 0, 1, 2
"""Columns of a bucket of payments."""

NEWEST, LAST = 0, 1
"""Columns of a counterparty: 1 + the position of its newest payment, and of the newest that counts."""

STALE = -1.0
"""Squared deviations that have to be computed anew."""


@compiled
def fold_amounts(target: Any, changed: int, end: int, largest: Any, squares: Any, spread: Any) -> None:
    """Do the same with maxima, 128-bit sums of squares and squared deviations."""
    for k in range(changed, end):
        to = target[k]
        if to == k:
            continue
        if to < changed or target[k - 1] == to:
            largest[to] = max(largest[to], largest[k])
            squares[to, 0], squares[to, 1] = add(squares[to, 0], squares[to, 1], squares[k, 0], squares[k, 1])
            spread[to] = STALE
        else:
            largest[to], spread[to] = largest[k], spread[k]
            squares[to, 0], squares[to, 1] = squares[k, 0], squares[k, 1]


@compiled
def put(k: int, amount: Any, cells: Any, largest: Any, squares: Any, spread: Any) -> None:
    """Take a payment into bucket k."""
    spread[k] = STALE
    cells[k, COUNT] += 1
    cells[k, TOTAL] += amount
    largest[k] = max(largest[k], amount)
    high, low = square(amount)
    squares[k, 0], squares[k, 1] = add(squares[k, 0], squares[k, 1], high, low)


@compiled
def take(k: int, amount: Any, cells: Any, squares: Any, spread: Any) -> None:
    """Take a payment out of bucket k, all but its maximum."""
    spread[k] = STALE
    cells[k, COUNT] -= 1
    cells[k, TOTAL] -= amount
    high, low = square(amount)
    squares[k, 0], squares[k, 1] = subtract(squares[k, 0], squares[k, 1], high, low)


@compiled
def pass_on(old: Any, new: Any, first: Any, head: int, end: int, cells: Any) -> None:
    """Say that a counterparty's last payment is now `new` and no longer `old` (GONE for none)."""
    if old >= 0:
        k = bucket_of(first, head, end, old)
        if k >= 0:
            cells[k, LAST_OF] -= 1
    if new >= 0:
        k = bucket_of(first, head, end, new)
        if k >= 0:
            cells[k, LAST_OF] += 1


@compiled
def sweep_buckets(
    t: Timeline,
    other: Any,
    group: Any,
    as_of_ms: Any,
    reaches_ms: Any,
    grains: Any,
    room: int,
    completed: int,
) -> tuple[Any, Any, Any, Any, Any]:
    """Return the buckets of the payments that count, for queries sorted by (group, as_of).

    (offsets (n + 1), buckets, offsets (n + 1) of those of two payments or more, their maxima, their squared
    deviations). A bucket is four numbers, see window_spec.BUCKET; empty ones are left out. `other` numbers the
    counterparty of each entry within its group; `room` is at least twice the buckets that a query may have.
    """
    n = len(group)
    longest, most = 0, 0
    for i in range(n):
        if group[i] >= 0:
            payments = t.offsets[group[i] + 1] - t.offsets[group[i]]
            longest, most = max(longest, payments), most + min(payments, room // 2)
    # Room for as many as there can be: what is not written to takes no memory.
    out_offsets, out_buckets = np.zeros(n + 1, np.int64), np.empty(4 * most, np.int64)
    out_offsets_many = np.zeros(n + 1, np.int64)
    out_largest, out_deviations = np.empty(most, np.int64), np.empty(most, np.float64)
    width = 1
    while width < longest:
        width *= 2
    tree = np.empty(2 * width, np.int64)
    counts_now = np.empty(longest, np.bool_)
    before = np.empty(longest, np.int64)
    seen = np.empty((longest, 2), np.int64)
    floors, floors_before = np.zeros(len(grains), np.int64), np.zeros(len(grains), np.int64)
    start, first, target = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    cells, largest, squares = np.empty((room, 3), np.int64), np.empty(room, np.int64), np.empty((room, 2), np.uint64)
    spread = np.empty(room, np.float64)

    current, base, degree, added, change, last_change = -1, 0, 0, 0, 0, 0
    head, end, out_end, out_end_many = 0, 0, 0, 0
    revised = False
    for i in range(n):
        g = group[i]
        if g >= 0:
            if g != current:
                current, added, head, end = g, 0, 0, 0
                base = t.offsets[g]
                degree = t.offsets[g + 1] - base
                counts_now[:degree] = True
                seen[:degree] = 0
                change, last_change = t.change_offsets[g], t.change_offsets[g + 1]
                # Only where payments may be taken out again does a maximum need more than itself.
                revised = change < last_change
                if revised:
                    width = 1
                    while width < degree:
                        width *= 2
                    tree[: 2 * width] = NOTHING
            if move_floors(as_of_ms[i], reaches_ms, grains, floors, floors_before):
                head = reached(start, head, end, floors[-1])
                changed = first_to_merge(start, head, end, floors, floors_before)
                kept = regroup(start, first, changed, head, end, grains, floors, target)
                fold(target, changed, end, cells)
                fold_amounts(target, changed, end, largest, squares, spread)
                end = kept
            while change < last_change and t.change_ts_ms[change] < as_of_ms[i]:
                at = t.change_at[change]
                counts = t.change_value[change] == completed
                change += 1
                if counts == counts_now[at]:
                    continue
                counts_now[at] = counts
                if at >= added:
                    continue
                amount, who = t.amount[base + at], other[base + at]
                k = bucket_of(first, head, end, at)
                tree_set(tree, width, at, amount if counts else NOTHING)
                if counts:
                    if k >= 0:
                        put(k, amount, cells, largest, squares, spread)
                    if at >= seen[who, LAST]:
                        pass_on(seen[who, LAST] - 1, at, first, head, end, cells)
                        seen[who, LAST] = at + 1
                else:
                    if k >= 0:
                        take(k, amount, cells, squares, spread)
                        if amount == largest[k]:
                            largest[k] = tree_max(tree, width, first[k], first[k + 1] if k + 1 < end else added)
                    if at + 1 == seen[who, LAST]:
                        previous = before[at]
                        while previous >= 0 and not counts_now[previous]:
                            previous = before[previous]
                        pass_on(at, previous, first, head, end, cells)
                        seen[who, LAST] = previous + 1
            while added < degree and t.ts_ms[base + added] < as_of_ms[i]:
                amount, who = t.amount[base + added], other[base + added]
                begin = bucket_start(t.ts_ms[base + added] // MINUTE_MS, grains, floors)
                if begin >= 0 and (end == head or start[end - 1] != begin):
                    if end == room:
                        to_front(start, head, end)
                        to_front(first, head, end)
                        to_front(cells, head, end)
                        to_front(largest, head, end)
                        to_front(squares, head, end)
                        to_front(spread, head, end)
                        head, end = 0, end - head
                    start[end], first[end], largest[end] = begin, added, NOTHING
                    cells[end] = 0
                    squares[end] = np.uint64(0)
                    end += 1
                before[added] = seen[who, NEWEST] - 1
                seen[who, NEWEST] = added + 1
                if counts_now[added]:
                    if revised:
                        tree_set(tree, width, added, amount)
                    if begin >= 0:
                        put(end - 1, amount, cells, largest, squares, spread)
                    pass_on(seen[who, LAST] - 1, added, first, head, end, cells)
                    seen[who, LAST] = added + 1
                added += 1
            for k in range(head, end):
                count, total = cells[k, COUNT], cells[k, TOTAL]
                if count > 0:
                    out_buckets[out_end], out_buckets[out_end + 1] = start[k], count
                    out_buckets[out_end + 2], out_buckets[out_end + 3] = total, cells[k, LAST_OF]
                    out_end += 4
                if count > 1:
                    if spread[k] < 0:
                        spread[k] = squared_deviations(count, total, squares[k, 0], squares[k, 1])
                    out_largest[out_end_many], out_deviations[out_end_many] = largest[k], spread[k]
                    out_end_many += 1
        out_offsets[i + 1], out_offsets_many[i + 1] = out_end, out_end_many
    return (
        out_offsets,
        out_buckets[:out_end],
        out_offsets_many,
        out_largest[:out_end_many],
        out_deviations[:out_end_many],
    )


@compiled
def sweep_label_buckets(
    t: LabelTimeline, group: Any, as_of_ms: Any, reaches_ms: Any, grains: Any, room: int
) -> tuple[Any, Any]:
    """Return (offsets (n + 1), buckets) of labels by when they became known, for queries sorted by (group, as_of).

    A bucket is three numbers, see window_spec.LABEL_BUCKET; of several labels of a payment the latest known counts.
    """
    n = len(group)
    longest, most = 0, 0
    for i in range(n):
        if group[i] >= 0:
            longest = max(longest, t.slot_offsets[group[i] + 1] - t.slot_offsets[group[i]])
            most += min(t.change_offsets[group[i] + 1] - t.change_offsets[group[i]], room // 2)
    out_offsets, out_buckets = np.zeros(n + 1, np.int64), np.empty(3 * most, np.int64)
    latest = np.empty(longest, np.int64)
    floors, floors_before = np.zeros(len(grains), np.int64), np.zeros(len(grains), np.int64)
    start, first, target = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    cells = np.empty((room, 2), np.int64)

    current, change, last_change, head, end, out_end = -1, 0, 0, 0, 0, 0
    for i in range(n):
        g = group[i]
        if g >= 0:
            if g != current:
                current, head, end = g, 0, 0
                latest[: t.slot_offsets[g + 1] - t.slot_offsets[g]] = GONE
                change, last_change = t.change_offsets[g], t.change_offsets[g + 1]
            if move_floors(as_of_ms[i], reaches_ms, grains, floors, floors_before):
                head = reached(start, head, end, floors[-1])
                changed = first_to_merge(start, head, end, floors, floors_before)
                kept = regroup(start, first, changed, head, end, grains, floors, target)
                fold(target, changed, end, cells)
                end = kept
            while change < last_change and t.change_ts_ms[change] < as_of_ms[i]:
                previous = latest[t.change_slot[change]]
                latest[t.change_slot[change]] = change
                if previous >= 0:
                    k = bucket_of(first, head, end, previous)
                    if k >= 0:
                        cells[k, t.change_fraud[previous]] -= 1
                begin = bucket_start(t.change_ts_ms[change] // MINUTE_MS, grains, floors)
                if begin >= 0:
                    if end == head or start[end - 1] != begin:
                        if end == room:
                            to_front(start, head, end)
                            to_front(first, head, end)
                            to_front(cells, head, end)
                            head, end = 0, end - head
                        start[end], first[end] = begin, change
                        cells[end] = 0
                        end += 1
                    cells[end - 1, t.change_fraud[change]] += 1
                change += 1
            for k in range(head, end):
                if cells[k, 0] + cells[k, 1] > 0:
                    out_buckets[out_end] = start[k]
                    out_buckets[out_end + 1], out_buckets[out_end + 2] = cells[k, 0], cells[k, 1]
                    out_end += 3
        out_offsets[i + 1] = out_end
    return out_offsets, out_buckets[:out_end]
