"""When payments happen: how many, first, last, gaps between them, busiest hour and weekday."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.kernels.compiled import compiled
from graph_features.kernels.int128 import add, square, squared_deviations, subtract
from graph_features.kernels.timeline import Timeline

HOUR_MS = 3_600_000
DAY_MS = 86_400_000
EPOCH_WEEKDAY = 3  # 1 January 1970 was a Thursday; Monday is 0


@compiled
def gap_in(squares: Any, gap: Any) -> None:
    """Add a gap's square."""
    high, low = square(gap)
    squares[0], squares[1] = add(squares[0], squares[1], high, low)


@compiled
def gap_out(squares: Any, gap: Any) -> None:
    """Take out a gap's square."""
    high, low = square(gap)
    squares[0], squares[1] = subtract(squares[0], squares[1], high, low)


@compiled
def most_frequent(counts: Any) -> int:
    """Return the position of the largest count, the earliest of equals."""
    best = 0
    for i in range(1, len(counts)):
        if counts[i] > counts[best]:
            best = i
    return best


@compiled
def relink(at: int, into: bool, ts: Any, before: Any, after: Any, ends: Any, squares: Any) -> None:
    """Put payment `at` into the chain of payments that count, between `before[at]` and `after[at]`, or take it out."""
    previous, following = before[at], after[at]
    if previous >= 0 and following >= 0:
        bridge = ts[following] - ts[previous]
        if into:
            gap_out(squares, bridge)
        else:
            gap_in(squares, bridge)
    if previous >= 0:
        after[previous] = at if into else following
        if into:
            gap_in(squares, ts[at] - ts[previous])
        else:
            gap_out(squares, ts[at] - ts[previous])
    else:
        ends[0] = at if into else following
    if following >= 0:
        before[following] = at if into else previous
        if into:
            gap_in(squares, ts[following] - ts[at])
        else:
            gap_out(squares, ts[following] - ts[at])
    else:
        ends[1] = at if into else previous


@compiled
def sweep_rhythm(t: Timeline, group: Any, as_of_ms: Any, completed: int) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Return (count, first, last, gap deviations in ms^2, hour, weekday), n of each.

    Queries are sorted by (group, as_of). Where the count is 0 the other values mean nothing, where it is below 2 there
    is no gap.
    """
    n = len(group)
    out_count = np.zeros(n, np.int64)
    out_first = np.zeros(n, np.int64)
    out_last = np.zeros(n, np.int64)
    out_deviations = np.zeros(n, np.float64)
    out_hour = np.zeros(n, np.int64)
    out_weekday = np.zeros(n, np.int64)

    longest = 0
    for i in range(n):
        if group[i] >= 0:
            longest = max(longest, t.offsets[group[i] + 1] - t.offsets[group[i]])
    counts_now = np.empty(longest, np.bool_)
    before = np.empty(longest, np.int64)
    after = np.empty(longest, np.int64)
    ends = np.empty(2, np.int64)
    squares = np.empty(2, np.uint64)
    hours = np.empty(24, np.int64)
    weekdays = np.empty(7, np.int64)

    current, base, degree, added, count, change, last_change = -1, 0, 0, 0, 0, 0, 0
    ts = t.ts_ms
    for i in range(n):
        g = group[i]
        if g < 0:
            continue
        if g != current:
            current = g
            base = t.offsets[g]
            degree = t.offsets[g + 1] - base
            ts = t.ts_ms[base : base + degree]
            counts_now[:degree] = True
            ends[:] = -1
            squares[:] = np.uint64(0)
            hours[:] = 0
            weekdays[:] = 0
            added, count, change, last_change = 0, 0, t.change_offsets[g], t.change_offsets[g + 1]
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
            if counts:
                previous = at - 1
                while previous >= 0 and not counts_now[previous]:
                    previous -= 1
                before[at] = previous
                after[at] = after[previous] if previous >= 0 else ends[0]
            relink(at, counts, ts, before, after, ends, squares)
            step = 1 if counts else -1
            hours[ts[at] // HOUR_MS % 24] += step
            weekdays[(ts[at] // DAY_MS + EPOCH_WEEKDAY) % 7] += step
            count += step
        while added < degree and ts[added] < as_of:
            if counts_now[added]:
                before[added] = ends[1]
                after[added] = -1
                relink(added, True, ts, before, after, ends, squares)
                hours[ts[added] // HOUR_MS % 24] += 1
                weekdays[(ts[added] // DAY_MS + EPOCH_WEEKDAY) % 7] += 1
                count += 1
            added += 1
        out_count[i] = count
        if count > 0:
            out_first[i], out_last[i] = ts[ends[0]], ts[ends[1]]
            out_hour[i], out_weekday[i] = most_frequent(hours), most_frequent(weekdays)
        if count > 1:
            out_deviations[i] = squared_deviations(count - 1, out_last[i] - out_first[i], squares[0], squares[1])
    return out_count, out_first, out_last, out_deviations, out_hour, out_weekday
