"""Buckets that get coarser with age: which one an item stands in, and how they merge as time goes on.

An account's items of one group stand in order of time, so that a bucket is a run of them: `start` (minutes from 1970,
UTC) and `first` (position of its first item) name it. Levels are the longest window of each grain, finest first, as
`reaches` (its length, ms) and `grains` (minutes). What a level reaches at as_of begins at its floor, which is quantised
as the windows are; an item stands in the bucket of the first level whose floor is not after it. The buckets of one
account are [head, end) of arrays that are as long as all levels together hold, twice.
"""

from __future__ import annotations

from typing import Any

from graph_features.kernels.compiled import compiled

MINUTE_MS = 60_000
GONE = -1
"""Where an item stands that no level reaches."""


@compiled
def move_floors(as_of_ms: Any, reaches_ms: Any, grains: Any, floors: Any, before: Any) -> bool:
    """Set `floors` (minutes) for as_of, and `before` to what they were; return whether one has moved."""
    moved = False
    for level in range(len(floors)):
        before[level] = floors[level]
        floors[level] = (as_of_ms - reaches_ms[level]) // (grains[level] * MINUTE_MS) * grains[level]
        moved |= floors[level] != before[level]
    return moved


@compiled
def bucket_start(minute: Any, grains: Any, floors: Any) -> Any:
    """Return the start of the bucket that an item of that minute stands in, GONE if it is too old."""
    for level in range(len(floors)):
        if minute >= floors[level]:
            return minute // grains[level] * grains[level]
    return GONE


@compiled
def reached(values: Any, head: int, end: int, bound: Any) -> int:
    """Return the first of values[head:end], which ascend, that is not below `bound`; `end` if all are."""
    low, high = head, end
    while low < high:
        middle = (low + high) // 2
        if values[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def first_to_merge(start: Any, head: int, end: int, floors: Any, before: Any) -> int:
    """Return the first bucket that has come to a coarser level since the floors were `before`."""
    found = end
    for level in range(len(floors) - 1):
        k = reached(start, head, found, before[level])
        if k < found and start[k] < floors[level]:
            found = k
    return found


@compiled
def regroup(start: Any, first: Any, changed: int, head: int, end: int, grains: Any, floors: Any, target: Any) -> int:
    """Give the buckets from `changed` on the starts that the floors ask for; return the new end.

    `target` says where each of them goes; neighbours that go to one place become one, perhaps with the one before.
    """
    kept = changed
    for k in range(changed, end):
        begin = bucket_start(start[k], grains, floors)
        if kept == head or start[kept - 1] != begin:
            start[kept], first[kept] = begin, first[k]
            kept += 1
        target[k] = kept - 1
    return kept


@compiled
def fold(target: Any, changed: int, end: int, cells: Any) -> None:
    """Move the columns of the buckets from `changed` on to their targets, adding up those of one target."""
    for k in range(changed, end):
        to = target[k]
        if to == k:
            continue
        joins = to < changed or target[k - 1] == to
        for column in range(cells.shape[1]):
            cells[to, column] = cells[k, column] + (cells[to, column] if joins else 0)


@compiled
def to_front(values: Any, head: int, end: int) -> None:
    """Move values[head:end] to the front, to make room behind them."""
    values[: end - head] = values[head:end].copy()


@compiled
def bucket_of(first: Any, head: int, end: int, at: Any) -> int:
    """Return the bucket that holds item `at`, GONE if it is older than all."""
    k = reached(first, head, end, at + 1)
    return k - 1 if k > head else GONE
