"""Kernels from known fraud accounts into the graph. Each leaves out what an account's own label would add.

All take the undirected projection as CSR (see centrality) and `fraud`, a flag per node.
"""

from __future__ import annotations

import numpy as np

from graph_features.edges import Float64, Int32, Int64
from graph_features.graphs import Adjacency, Flags
from graph_features.kernels.compiled import compiled
from graph_features.spectral import DAMPING

PROPAGATION_STEPS = 3
"""Steps of the random walk. Closed walks up to this length can be counted exactly without a search per account."""


def propagation(together: Adjacency, fraud: Flags, triangle_weight: Float64) -> Float64:
    """Return per node v the personalised PageRank that reaches it within three steps from known frauds other than v.

    With P the walk along payments in proportion to their count and F the frauds without v:
    (1 - d) / |F| * sum over k = 1..3 of d ** k * sum over f in F of (P ** k)[f, v], d = 0.85. The walk restarts from
    the frauds as in personalised PageRank (Page et al. 1999); it is cut at three steps so that the mass which a fraud
    sends back to itself, (P ** k)[v, v], has a closed form (there and back, and around triangles) and is taken out
    exactly: v's own label moves nothing in v's row. `triangle_weight` is the second result of `triangle_sums`.
    """
    n = together.n_nodes
    strength = together.strength
    inverse = np.divide(1.0, strength, out=np.zeros(n), where=strength > 0)
    walk = together.matrix()  # symmetric, so it is its own transpose
    arriving = fraud.astype(np.float64)
    total = np.zeros(n)
    for k in range(1, PROPAGATION_STEPS + 1):
        arriving = walk @ (arriving * inverse)
        total += DAMPING**k * arriving
    total -= np.where(fraud, _own_return(together, inverse, triangle_weight), 0.0)
    others = int(fraud.sum()) - fraud.astype(np.int64)
    # What the subtraction leaves of rounding (1e-16) would still tell frauds from others.
    total = np.maximum(np.round(total, 12), 0.0)
    return np.divide((1.0 - DAMPING) * total, others, out=np.zeros(n), where=others > 0)


def _own_return(together: Adjacency, inverse: Float64, triangle_weight: Float64) -> Float64:
    """Return d**2 (P**2)[v, v] + d**3 (P**3)[v, v] per node v."""
    back = together.weight**2 * inverse[together.indices]
    there_and_back = np.bincount(together.row, weights=back, minlength=together.n_nodes) * inverse
    return np.asarray(DAMPING**2 * there_and_back + DAMPING**3 * 2.0 * triangle_weight, np.float64)


@compiled
def fraud_neighbours(indptr: Int64, indices: Int32, fraud: Flags) -> Int64:
    """Return per node how many of its neighbours are known frauds."""
    n = len(indptr) - 1
    count = np.zeros(n, np.int64)
    for u in range(n):
        for k in range(indptr[u], indptr[u + 1]):
            if fraud[indices[k]]:
                count[u] += 1
    return count


@compiled
def shared_neighbours(indptr: Int64, indices: Int32, fraud: Flags, n_fraud: Int64) -> Int64:
    """Return per node how many neighbours it shares with any other known fraud; `n_fraud` is from fraud_neighbours."""
    n = len(indptr) - 1
    count = np.zeros(n, np.int64)
    for u in range(n):
        own = 1 if fraud[u] else 0
        for k in range(indptr[u], indptr[u + 1]):
            if n_fraud[indices[k]] > own:
                count[u] += 1
    return count


@compiled
def frauds_at_two_hops(indptr: Int64, indices: Int32, fraud: Flags) -> Int64:
    """Return per node how many distinct known frauds lie exactly two hops away.

    Frauds are handled 64 at a time as bits that spread twice over the edges: edges * frauds / 64 in all, whatever the
    degrees, where listing pairs would be quadratic in a hub's.
    """
    n = len(indptr) - 1
    count = np.zeros(n, np.int64)
    sources = np.flatnonzero(fraud)
    one = np.zeros(n, np.uint64)
    two = np.zeros(n, np.uint64)
    for block in range(0, len(sources), 64):
        members = sources[block : block + 64]
        for bit in range(len(members)):
            u = members[bit]
            for k in range(indptr[u], indptr[u + 1]):
                one[indices[k]] |= np.uint64(1) << np.uint64(bit)
        for u in range(n):
            if one[u] != 0:
                for k in range(indptr[u], indptr[u + 1]):
                    two[indices[k]] |= one[u]
        for bit in range(len(members)):
            two[members[bit]] &= ~(np.uint64(1) << np.uint64(bit))
        for u in range(n):
            rest = two[u] & ~one[u]
            while rest != 0:
                rest &= rest - np.uint64(1)
                count[u] += 1
            one[u] = 0
            two[u] = 0
    return count


@compiled
def hops_to_other_fraud(indptr: Int64, indices: Int32, fraud: Flags) -> Int64:
    """Return per node the hops to the nearest known fraud other than itself, -1 where none is reached.

    One search from all frauds at once remembers which fraud reached a node first. The nearest other fraud of a fraud f
    lies over an edge that leaves f's territory, so looking at every such edge once is enough (Mehlhorn 1988).
    """
    n = len(indptr) - 1
    hops = np.full(n, -1, np.int64)
    owner = np.full(n, -1, np.int64)
    order = np.empty(n, np.int64)
    found = 0
    for u in range(n):
        if fraud[u]:
            hops[u] = 0
            owner[u] = u
            order[found] = u
            found += 1
    head = 0
    while head < found:
        u = order[head]
        head += 1
        for k in range(indptr[u], indptr[u + 1]):
            v = indices[k]
            if hops[v] < 0:
                hops[v] = hops[u] + 1
                owner[v] = owner[u]
                order[found] = v
                found += 1
    nearest = np.full(n, -1, np.int64)
    for u in range(n):
        if hops[u] < 0:
            continue
        if not fraud[u]:
            nearest[u] = hops[u]
        for k in range(indptr[u], indptr[u + 1]):
            v = indices[k]
            f = owner[u]
            if owner[v] != f:
                over = hops[u] + 1 + hops[v]
                if nearest[f] < 0 or over < nearest[f]:
                    nearest[f] = over
    return nearest
