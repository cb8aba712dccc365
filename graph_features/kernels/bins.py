"""Histograms of payments, sparse: bin, count, bin, count, ..."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.kernels.compiled import compiled
from graph_features.kernels.timeline import Timeline


@compiled
def sweep_bins(t: Timeline, bin_of: Any, n_bins: int, group: Any, as_of_ms: Any, completed: int) -> tuple[Any, Any]:
    """Return (offsets (n + 1), values) of a ragged column for queries sorted by (group, as_of).

    Counts payments before as_of whose latest status known by then is completed, by `bin_of` each entry.
    """
    n = len(group)
    offsets = np.zeros(n + 1, np.int64)
    values = np.empty(16 * n + 2 * n_bins, np.int64)
    longest = 0
    for i in range(n):
        if group[i] >= 0:
            longest = max(longest, t.offsets[group[i] + 1] - t.offsets[group[i]])
    counts_now = np.empty(longest, np.bool_)
    counts = np.zeros(n_bins, np.int64)

    current, base, degree, added, change, last_change, end = -1, 0, 0, 0, 0, 0, 0
    lowest, highest = n_bins, -1
    for i in range(n):
        g = group[i]
        if g >= 0:
            if g != current:
                current = g
                base = t.offsets[g]
                degree = t.offsets[g + 1] - base
                counts_now[:degree] = True
                counts[:] = 0
                lowest, highest = n_bins, -1
                added, change, last_change = 0, t.change_offsets[g], t.change_offsets[g + 1]
            while change < last_change and t.change_ts_ms[change] < as_of_ms[i]:
                at = t.change_at[change]
                now = t.change_value[change] == completed
                if now != counts_now[at] and at < added:
                    counts[bin_of[base + at]] += 1 if now else -1
                counts_now[at] = now
                change += 1
            while added < degree and t.ts_ms[base + added] < as_of_ms[i]:
                lowest, highest = min(lowest, bin_of[base + added]), max(highest, bin_of[base + added])
                if counts_now[added]:
                    counts[bin_of[base + added]] += 1
                added += 1
            if end + 2 * n_bins > len(values):
                grown = np.empty(2 * len(values), np.int64)
                grown[:end] = values[:end]
                values = grown
            for b in range(lowest, highest + 1):
                if counts[b] > 0:
                    values[end], values[end + 1] = b, counts[b]
                    end += 2
        offsets[i + 1] = end
    return offsets, values[:end].copy()
