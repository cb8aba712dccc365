"""Nearest-rank quartiles of growing sets of amounts."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.kernels.compiled import compiled
from graph_features.kernels.known_labels import rank_add, rank_select


@compiled
def sweep_quartiles(offsets: Any, amount: Any) -> Any:
    """Return int64 (3, n): per entry, lower quartile, median and upper quartile of its group's entries up to it.

    Of m amounts in order the value at place ceil(m * q / 4), q = 1, 2, 3, counting from 1: always one of them.
    """
    out = np.empty((3, len(amount)), np.int64)
    longest = 0
    for g in range(len(offsets) - 1):
        longest = max(longest, offsets[g + 1] - offsets[g])
    room = 1
    while room < longest:
        room *= 2
    tree = np.empty(room + 1, np.int64)
    rank = np.empty(longest, np.int64)
    for g in range(len(offsets) - 1):
        base, degree = offsets[g], offsets[g + 1] - offsets[g]
        amounts = amount[base : base + degree]
        order = np.argsort(amounts)
        for place in range(degree):
            rank[order[place]] = place
        size = 1
        while size < degree:
            size *= 2
        tree[: size + 1] = 0
        for at in range(degree):
            rank_add(tree, size, rank[at], 1)
            for quarter in range(3):
                wanted = ((at + 1) * (quarter + 1) + 3) // 4
                out[quarter, base + at] = amounts[order[rank_select(tree, size, wanted)]]
    return out


@compiled
def count_until(offsets: Any, ts_ms: Any, group: Any, as_of_ms: Any) -> Any:
    """Return int64 (n): how many entries of each query's group lie before its as_of; 0 for group -1."""
    out = np.zeros(len(group), np.int64)
    for i in range(len(group)):
        g = group[i]
        if g >= 0:
            first, last = offsets[g], offsets[g + 1]
            out[i] = np.searchsorted(ts_ms[first:last], as_of_ms[i])
    return out
