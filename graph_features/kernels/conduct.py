"""How an account pays: failed and reversed attempts, channels, bursts."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.kernels.compiled import compiled
from graph_features.kernels.timeline import Timeline

HOUR_MS = 3_600_000
DAY_MS = 86_400_000


@compiled
def entropy_bits(uses: Any, used: Any, n_used: int) -> float:
    """Return the Shannon entropy of the uses of the first `n_used` codes in `used`, which all occur."""
    total = 0
    for k in range(n_used):
        total += uses[used[k]]
    bits = 0.0
    for k in range(n_used):
        share = uses[used[k]] / total
        bits -= share * np.log2(share)
    return max(bits, 0.0)


@compiled
def sweep_conduct(
    t: Timeline, channel: Any, n_channels: int, group: Any, as_of_ms: Any, failed: int, reversed_: int
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Return (attempts, failed, reversed, entropy, busiest hour, active days) for queries sorted by (group, as_of).

    An attempt is a payment before as_of, whatever its status. Entropy is NaN without a known channel (-1 is unknown).
    The busiest hour is the largest number of attempts with less than an hour from first to last.
    """
    n = len(group)
    out_attempts = np.zeros(n, np.int64)
    out_failed = np.zeros(n, np.int64)
    out_reversed = np.zeros(n, np.int64)
    out_entropy = np.full(n, np.nan)
    out_busiest = np.zeros(n, np.int64)
    out_days = np.zeros(n, np.int64)

    longest = 0
    for i in range(n):
        if group[i] >= 0:
            longest = max(longest, t.offsets[group[i] + 1] - t.offsets[group[i]])
    status = np.empty(longest, np.int8)
    statuses = np.zeros(128, np.int64)
    uses = np.zeros(n_channels, np.int64)
    used = np.empty(n_channels, np.int64)

    current, base, degree, added, change, last_change = -1, 0, 0, 0, 0, 0
    n_used, busiest, days, last_day, hour_start = 0, 0, 0, -1, 0
    for i in range(n):
        g = group[i]
        if g < 0:
            continue
        if g != current:
            current = g
            base = t.offsets[g]
            degree = t.offsets[g + 1] - base
            status[:degree] = 0
            statuses[:] = 0
            uses[:] = 0
            n_used, busiest, days, last_day, hour_start = 0, 0, 0, -1, 0
            added, change, last_change = 0, t.change_offsets[g], t.change_offsets[g + 1]
        as_of = as_of_ms[i]
        while change < last_change and t.change_ts_ms[change] < as_of:
            at = t.change_at[change]
            if at < added:
                statuses[status[at]] -= 1
                statuses[t.change_value[change]] += 1
            status[at] = t.change_value[change]
            change += 1
        while added < degree and t.ts_ms[base + added] < as_of:
            ts = t.ts_ms[base + added]
            statuses[status[added]] += 1
            code = channel[base + added]
            if code >= 0:
                if uses[code] == 0:
                    used[n_used] = code
                    n_used += 1
                uses[code] += 1
            while t.ts_ms[base + hour_start] <= ts - HOUR_MS:
                hour_start += 1
            busiest = max(busiest, added - hour_start + 1)
            if ts // DAY_MS != last_day:
                last_day = ts // DAY_MS
                days += 1
            added += 1
        out_attempts[i], out_failed[i], out_reversed[i] = added, statuses[failed], statuses[reversed_]
        out_busiest[i], out_days[i] = busiest, days
        if n_used > 0:
            out_entropy[i] = entropy_bits(uses, used, n_used)
    return out_attempts, out_failed, out_reversed, out_entropy, out_busiest, out_days
