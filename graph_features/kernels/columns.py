"""Columns worked out in one pass, where NumPy takes several over masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.edges import Float64, Int64
from graph_features.kernels.compiled import compiled


@compiled
def ratios(numerator: Any, denominator: Any) -> Float64:
    """Return numerator / denominator, NaN where the denominator is 0 or less."""
    out = np.empty(len(denominator))
    for i in range(len(denominator)):
        out[i] = numerator[i] / denominator[i] if denominator[i] > 0 else np.nan
    return out


@compiled
def zero_where(values: Any, mask: Any) -> Int64:
    """Return a copy of integers with 0 where `mask`."""
    out = np.empty(len(values), np.int64)
    for i in range(len(values)):
        out[i] = 0 if mask[i] else values[i]
    return out
