"""Compiled kernels over CSR graphs: triangles and cores. One thread, fixed order, no randomness.

Every kernel takes `indptr` int64 (n + 1), `indices` int32 (ascending per row) of a simple graph without self-loops.
"""

from __future__ import annotations

import numpy as np

from graph_features.edges import Float64, Int32, Int64
from graph_features.kernels.compiled import compiled


@compiled
def triangle_sums(indptr: Int64, indices: Int32, weight: Float64) -> tuple[Int64, Float64]:
    """Return per node its number of triangles, and the sum over them of the product of their three edge weights.

    Each edge is walked from its end of lower (degree, number), which leaves no node more than sqrt(2 m) edges: a hub
    costs what its neighbours cost, m ** 1.5 in all (Schank and Wagner 2005, "forward").
    """
    n = len(indptr) - 1
    start = np.zeros(n + 1, np.int64)
    for u in range(n):
        degree = indptr[u + 1] - indptr[u]
        kept = 0
        for k in range(indptr[u], indptr[u + 1]):
            v = indices[k]
            other = indptr[v + 1] - indptr[v]
            if degree < other or (degree == other and u < v):
                kept += 1
        start[u + 1] = start[u] + kept
    head = np.empty(start[n], np.int32)
    head_weight = np.empty(start[n])
    for u in range(n):
        degree = indptr[u + 1] - indptr[u]
        at = start[u]
        for k in range(indptr[u], indptr[u + 1]):
            v = indices[k]
            other = indptr[v + 1] - indptr[v]
            if degree < other or (degree == other and u < v):
                head[at] = v
                head_weight[at] = weight[k]
                at += 1
    count = np.zeros(n, np.int64)
    product = np.zeros(n)
    mark = np.full(n, -1, np.int64)  # position of the edge u -> w, valid for the current u
    for u in range(n):
        for i in range(start[u], start[u + 1]):
            mark[head[i]] = i
        for i in range(start[u], start[u + 1]):
            v = head[i]
            for j in range(start[v], start[v + 1]):
                w = head[j]
                at = mark[w]
                if at >= 0:
                    value = head_weight[i] * head_weight[j] * head_weight[at]
                    count[u] += 1
                    count[v] += 1
                    count[w] += 1
                    product[u] += value
                    product[v] += value
                    product[w] += value
        for i in range(start[u], start[u + 1]):
            mark[head[i]] = -1
    return count, product


@compiled
def core_numbers(indptr: Int64, indices: Int32) -> Int64:
    """Return per node the largest k for which it lies in a subgraph of degrees k or more (Batagelj, Zaversnik 2003)."""
    n = len(indptr) - 1
    degree = np.empty(n, np.int64)
    largest = 0
    for u in range(n):
        degree[u] = indptr[u + 1] - indptr[u]
        largest = max(largest, degree[u])
    first = np.zeros(largest + 2, np.int64)  # where each degree's bin begins in `ordered`
    for u in range(n):
        first[degree[u] + 1] += 1
    for d in range(largest + 1):
        first[d + 1] += first[d]
    ordered = np.empty(n, np.int64)
    position = np.empty(n, np.int64)
    fill = first.copy()
    for u in range(n):
        position[u] = fill[degree[u]]
        ordered[position[u]] = u
        fill[degree[u]] += 1
    for at in range(n):
        u = ordered[at]
        for k in range(indptr[u], indptr[u + 1]):
            v = indices[k]
            if degree[v] > degree[u]:
                # Swap v with the first node of its bin and move the bin's border over it.
                border = first[degree[v]]
                other = ordered[border]
                if other != v:
                    ordered[position[v]] = other
                    position[other] = position[v]
                    ordered[border] = v
                    position[v] = border
                first[degree[v]] += 1
                degree[v] -= 1
    return degree
