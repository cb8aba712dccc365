"""Amounts in fixed log-spaced bins: eight per decade from 1 to 10^15 minor units. NumPy alone, so scoring can read it.

A histogram column (`sent_amount_histogram`) is sparse: each row lists `bin, count, bin, count, ...` with bins ascending
and no empty bin, so that an account's usual two decades cost a hundred bytes, not a thousand.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from graph_features.contracts import MAX_AMOUNT_MINOR

# Integer arithmetic, so that the edges are the same on every machine: ceil(1000 * 10 ** (k / 8)) for k = 0..7.
_EIGHTHS_OF_DECADE = (1000, 1334, 1779, 2372, 3163, 4217, 5624, 7499)


def _edges() -> npt.NDArray[np.int64]:
    decades = len(str(MAX_AMOUNT_MINOR)) - 1
    edges = {-(-part * 10**decade // 1000) for decade in range(decades) for part in _EIGHTHS_OF_DECADE}
    return np.array(sorted(edges | {MAX_AMOUNT_MINOR}), np.int64)


HISTOGRAM_EDGES: Final = _edges()
"""Lower edges in minor units, int64, ascending: bin b holds amounts in [HISTOGRAM_EDGES[b], HISTOGRAM_EDGES[b + 1])."""

HISTOGRAM_BINS: Final = len(HISTOGRAM_EDGES)
"""Number of bins; the last one is open above, and bin 0 also takes what is below 1."""


def histogram_bin(amount: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the bin, 0 to HISTOGRAM_BINS - 1, of each amount in minor units."""
    above = np.searchsorted(HISTOGRAM_EDGES, np.asarray(amount, np.int64), side="right")
    return np.maximum(above - 1, 0).astype(np.int64)


def amount_percentiles(
    offsets: npt.NDArray[Any], values: npt.NDArray[np.int64], amount: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the rank of `amount[i]` in row i of a histogram column, 0 to 1, float64; NaN where the row is empty.

    `offsets` (length n + 1) and `values` are the ragged column as Arrow and `ListColumn` hold it; row i is
    values[offsets[i]:offsets[i + 1]]. Amounts in lower bins count whole and those in the same bin half, so the rank is
    quantised to the bins, the same way wherever it is computed.
    """
    offsets = np.asarray(offsets, np.int64)
    values = np.asarray(values, np.int64)[offsets[0] : offsets[-1]]
    bins, counts = values[0::2], values[1::2]
    start = (offsets - offsets[0]) // 2
    own_bin = np.repeat(histogram_bin(amount), np.diff(start))
    # Twice the mid-rank, in integers: 2 for a lower bin, 1 for the same bin.
    below = np.concatenate(([0], np.cumsum(counts * (2 * (bins < own_bin) + (bins == own_bin)))))
    total = np.concatenate(([0], np.cumsum(counts)))
    rank, size = below[start[1:]] - below[start[:-1]], total[start[1:]] - total[start[:-1]]
    return np.where(size > 0, rank / np.maximum(2 * size, 1), np.nan)
