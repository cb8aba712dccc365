"""Sparse matrices joined row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.kernels.compiled import compiled


@compiled
def union(
    indptr: Any, indices: Any, weight: Any, other_indptr: Any, other_indices: Any, other_weight: Any
) -> tuple[Any, Any, Any]:
    """Return the sum of two matrices as (indptr, indices, weight), columns ascending in each row as in both of them."""
    n = len(indptr) - 1
    out_indptr = np.zeros(n + 1, np.int64)
    out_indices = np.empty(len(indices) + len(other_indices), np.int32)
    out_weight = np.empty(len(out_indices), np.float64)
    found = 0
    for u in range(n):
        i, j = indptr[u], other_indptr[u]
        end, other_end = indptr[u + 1], other_indptr[u + 1]
        while i < end or j < other_end:
            if j == other_end or (i < end and indices[i] < other_indices[j]):
                out_indices[found], out_weight[found] = indices[i], weight[i]
                i += 1
            elif i == end or other_indices[j] < indices[i]:
                out_indices[found], out_weight[found] = other_indices[j], other_weight[j]
                j += 1
            else:
                out_indices[found], out_weight[found] = indices[i], weight[i] + other_weight[j]
                i += 1
                j += 1
            found += 1
        out_indptr[u + 1] = found
    return out_indptr, out_indices[:found].copy(), out_weight[:found].copy()
