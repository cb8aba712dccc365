"""What was known of payments' labels: counts, windows, last ones, the current run."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from graph_features.edges import Int8, Int64
from graph_features.kernels.compiled import compiled

GENUINE, FRAUD = 0, 1


class LabelTimeline(NamedTuple):
    """Payments of each group that ever get a label (slots, oldest payment first) and their labels as they become known.

    `change_slot` is the labelled payment's position among its group's slots; `change_ts_ms` is not before the payment.
    """

    slot_offsets: Int64
    slot_ts_ms: Int64
    slot_ordinary: Int8
    change_offsets: Int64
    change_slot: Int64
    change_ts_ms: Int64
    change_fraud: Int8


@compiled
def rank_add(tree: Any, size: int, position: int, step: int) -> None:
    """Add `step` at a position (from 0) of a Fenwick tree whose `size` is a power of two."""
    node = position + 1
    while node <= size:
        tree[node] += step
        node += node & -node


@compiled
def rank_below(tree: Any, position: int) -> Any:
    """Return the sum over the positions below `position`."""
    total = 0
    node = position
    while node > 0:
        total += tree[node]
        node -= node & -node
    return total


@compiled
def rank_select(tree: Any, size: int, wanted: int) -> int:
    """Return the position (from 0) where the running sum first reaches `wanted` >= 1."""
    node, step = 0, size
    while step > 0:
        if node + step <= size and tree[node + step] < wanted:
            node += step
            wanted -= tree[node]
        step >>= 1
    return node


@compiled
def last_change_of(kind: int, before: int, first: int, latest: Any, slots: Any, fraud: Any) -> int:
    """Return the last change in [first, before) that still holds for its payment and is of `kind`; -1 if none."""
    for change in range(before - 1, first - 1, -1):
        if fraud[change] == kind and latest[slots[change]] == change:
            return change
    return -1


@compiled
def sweep_labels(
    t: LabelTimeline, group: Any, as_of_ms: Any, lengths_ms: Any, grains_ms: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """Return what is known of labels for queries sorted by (group, as_of).

    - counts (2, n): payments whose latest known label is genuine, fraud;
    - window counts (2, windows, n): those whose label became known within the window, which begins as in
      `sweep_windows`;
    - last (4, n): time of the last genuine and the last fraudulent payment, then when the last label of each kind
      became known; 0 where the count is 0;
    - run (3, n): kind of the newest labelled payment (-1 if none), number of labelled payments since the kind last
      changed, time of the first of them;
    - ordinary (n): known frauds of ordinary amount.
    """
    n, n_windows = len(group), len(lengths_ms)
    out_counts = np.zeros((2, n), np.int64)
    out_windows = np.zeros((2, n_windows, n), np.int64)
    out_last = np.zeros((4, n), np.int64)
    out_run = np.zeros((3, n), np.int64)
    out_run[0] = -1
    out_ordinary = np.zeros(n, np.int64)

    longest = 0
    for i in range(n):
        if group[i] >= 0:
            longest = max(longest, t.slot_offsets[group[i] + 1] - t.slot_offsets[group[i]])
    room = 1
    while room < longest:
        room *= 2
    trees = np.empty((2, room + 1), np.int64)
    latest = np.empty(longest, np.int64)
    counts = np.empty(2, np.int64)
    windows = np.empty((2, n_windows), np.int64)
    evicted = np.empty(n_windows, np.int64)
    newest = np.empty(2, np.int64)

    current, base, size, ordinary, first, change, last_change = -1, 0, 1, 0, 0, 0, 0
    for i in range(n):
        g = group[i]
        if g < 0:
            continue
        if g != current:
            current = g
            base = t.slot_offsets[g]
            slots = t.slot_offsets[g + 1] - base
            size = 1
            while size < slots:
                size *= 2
            trees[:, : size + 1] = 0
            latest[:slots] = -1
            counts[:] = 0
            windows[:] = 0
            newest[:] = -1
            ordinary = 0
            first, last_change = t.change_offsets[g], t.change_offsets[g + 1]
            change = first
            evicted[:] = first
        as_of = as_of_ms[i]
        while change < last_change and t.change_ts_ms[change] < as_of:
            slot, kind = t.change_slot[change], int(t.change_fraud[change])
            previous = latest[slot]
            latest[slot] = change
            if previous >= 0:
                was = int(t.change_fraud[previous])
                counts[was] -= 1
                rank_add(trees[was], size, slot, -1)
                ordinary -= was * t.slot_ordinary[base + slot]
                for w in range(n_windows):
                    if previous >= evicted[w]:
                        windows[was, w] -= 1
                if newest[was] == previous:
                    newest[was] = last_change_of(was, previous, first, latest, t.change_slot, t.change_fraud)
            counts[kind] += 1
            windows[kind] += 1
            newest[kind] = change
            rank_add(trees[kind], size, slot, 1)
            ordinary += kind * t.slot_ordinary[base + slot]
            change += 1
        for w in range(n_windows):
            start = (as_of - lengths_ms[w]) // grains_ms[w] * grains_ms[w]
            while evicted[w] < change and t.change_ts_ms[evicted[w]] < start:
                if latest[t.change_slot[evicted[w]]] == evicted[w]:
                    windows[t.change_fraud[evicted[w]], w] -= 1
                evicted[w] += 1
            out_windows[0, w, i], out_windows[1, w, i] = windows[0, w], windows[1, w]
        out_ordinary[i] = ordinary
        last_slot = np.array((-1, -1))
        for kind in range(2):
            out_counts[kind, i] = counts[kind]
            if counts[kind] > 0:
                last_slot[kind] = rank_select(trees[kind], size, counts[kind])
                out_last[kind, i] = t.slot_ts_ms[base + last_slot[kind]]
                out_last[2 + kind, i] = t.change_ts_ms[newest[kind]]
        if counts[0] + counts[1] > 0:
            kind = 1 if last_slot[1] > last_slot[0] else 0
            earlier = rank_below(trees[kind], last_slot[1 - kind] + 1)
            out_run[0, i] = kind
            out_run[1, i] = counts[kind] - earlier
            out_run[2, i] = t.slot_ts_ms[base + rank_select(trees[kind], size, earlier + 1)]
    return out_counts, out_windows, out_last, out_run, out_ordinary
