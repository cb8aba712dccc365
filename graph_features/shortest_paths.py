"""Compiled kernels for measures of shortest paths. One thread, fixed order, no randomness.

Kernels take `indptr` int64 (n + 1), `indices` int32 of a simple graph without self-loops.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.edges import Float64, Int32, Int64
from graph_features.kernels.compiled import compiled

BITS = 64


@compiled
def _ones(bits: Any) -> Any:
    """Return how many bits of a 64-bit word are set."""
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (bits * np.uint64(0x0101010101010101)) >> np.uint64(56)


@compiled
def harmonic_sums(indptr: Int64, indices: Int32, sources: Int64) -> Float64:
    """Return per node the sum of 1 / hops from each of `sources` to it, nothing from those that do not reach it.

    64 searches go on at once, as bits: one visit of an edge serves all that cross it at that level (Then et al. 2014,
    "The more the merrier").
    """
    n = len(indptr) - 1
    total = np.zeros(n)
    seen = np.empty(n, np.uint64)  # sources whose search has been here
    front = np.zeros(n, np.uint64)  # those that got here at this level
    ahead = np.zeros(n, np.uint64)  # those that get here at the next
    nodes = np.empty(n, np.int32)
    next_nodes = np.empty(n, np.int32)
    for first in range(0, len(sources), BITS):
        seen[:] = np.uint64(0)
        n_nodes = 0
        for bit in range(min(BITS, len(sources) - first)):
            u = sources[first + bit]
            if front[u] == 0:
                nodes[n_nodes] = u
                n_nodes += 1
            front[u] |= np.uint64(1) << np.uint64(bit)
            seen[u] = front[u]
        hops = 0
        while n_nodes > 0:
            hops += 1
            n_next = 0
            for i in range(n_nodes):
                u = nodes[i]
                here = front[u]
                front[u] = np.uint64(0)
                for k in range(indptr[u], indptr[u + 1]):
                    v = indices[k]
                    new = here & ~seen[v]
                    if new != 0:
                        if ahead[v] == 0:
                            next_nodes[n_next] = v
                            n_next += 1
                        ahead[v] |= new
            for i in range(n_next):
                v = next_nodes[i]
                seen[v] |= ahead[v]
                total[v] += _ones(ahead[v]) / hops
            nodes, next_nodes = next_nodes, nodes
            front, ahead = ahead, front
            n_nodes = n_next
    return total


@compiled
def betweenness_sums(indptr: Int64, indices: Int32, sources: Int64) -> Float64:
    """Return per node its dependency summed over `sources` (Brandes 2001), following the direction of edges.

    The way back reads only the edges of shortest paths, in the order in which the way there found them.
    """
    n = len(indptr) - 1
    total = np.zeros(n)
    hops = np.full(n, -1, np.int32)
    paths = np.empty(n)
    share = np.empty(n)  # (1 + dependency) / paths: what a node gives to each path that arrives
    order = np.empty(n, np.uint32)
    onward = np.empty(len(indices), np.uint32)  # successors of order[i], up to ends[i]
    ends = np.empty(n + 1, np.int64)
    ends[0] = 0
    for source in sources:
        order[0] = source
        hops[source] = 0
        paths[source] = 1.0
        found, head, at = 1, 0, 0
        while head < found:
            u = order[head]
            head += 1
            further = np.int32(hops[u] + 1)
            arriving = paths[u]
            for k in range(indptr[u], indptr[u + 1]):
                v = np.uint32(indices[k])
                if hops[v] < 0:
                    hops[v] = further
                    paths[v] = arriving
                    order[found] = v
                    found += 1
                    onward[at] = v
                    at += 1
                elif hops[v] == further:
                    paths[v] += arriving
                    onward[at] = v
                    at += 1
            ends[head] = at
        for position in range(found - 1, -1, -1):
            u = order[position]
            received = 0.0
            for k in range(ends[position], ends[position + 1]):
                received += share[onward[k]]
            dependency = paths[u] * received
            share[u] = (1.0 + dependency) / paths[u]
            hops[u] = -1
            if position > 0:
                total[u] += dependency
    return total
