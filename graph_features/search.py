"""Many binary searches at once. NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def first_not_below(values: Int64, first: Int64, end: Int64, bound: Int64) -> Int64:
    """Return per query the first place in [first, end) of `values`, which ascend there, that is not below `bound`."""
    low, high = first.copy(), end.copy()
    left = np.flatnonzero(low < high)
    while len(left):
        middle = (low[left] + high[left]) // 2
        below = values[middle] < bound[left]
        low[left[below]] = middle[below] + 1
        high[left[~below]] = middle[~below]
        left = left[low[left] < high[left]]
    return low
