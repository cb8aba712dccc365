"""Compiled kernels for measures of shortest paths. One thread, fixed order, no randomness.

Kernels take `indptr` int64 (n + 1), `indices` int32 of a simple graph without self-loops.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.edges import Float64, Int32, Int64
from graph_features.kernels.compiled import compiled

BITS = 64
LANES = 16


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

    LANES searches go on at once, as in `harmonic_sums`: an edge is visited once for all that cross it at that level.
    Sums run in the order of a search of its own per source, so that the bits do not depend on LANES.
    """
    n = len(indptr) - 1
    total = np.zeros(n)
    paths = np.empty((n, LANES))  # from each source; on the way back the dependency takes their place
    share = np.zeros((n, LANES))  # (1 + dependency) / paths: what a node gives to each path that arrives
    seen = np.empty(n, np.uint16)  # sources whose search has been here
    level = np.zeros(n, np.uint16)  # those that are here at the level in hand
    node = np.empty(n * min(LANES, max(len(sources), 1)), np.int32)  # who is reached, level by level, and by which
    lanes = np.empty(len(node), np.uint16)
    ends = np.empty(n + 1, np.int64)  # of the levels
    received = np.empty(LANES)
    for first in range(0, len(sources), LANES):
        paths[:] = 0.0
        seen[:] = 0
        found = 0
        for lane in range(min(LANES, len(sources) - first)):
            u = sources[first + lane]
            if level[u] == 0:
                node[found] = u
                found += 1
            level[u] |= np.uint16(1 << lane)
            paths[u, lane] = 1.0
        n_levels, at = 0, 0
        while at < found:
            end = found
            for i in range(at, end):
                u = node[i]
                lanes[i] = level[u]
                seen[u] |= level[u]
                level[u] = 0
            for i in range(at, end):
                u = np.uint32(node[i])
                here = lanes[i]
                for k in range(indptr[u], indptr[u + 1]):
                    v = np.uint32(indices[k])
                    new = np.int64(here & ~seen[v])
                    if new != 0:
                        if level[v] == 0:
                            node[found] = v
                            found += 1
                        level[v] |= np.uint16(new)
                        for lane in range(LANES):
                            paths[v, lane] += paths[u, lane] * np.float64(new >> lane & 1)
            ends[n_levels] = end
            n_levels += 1
            at = end
        for depth in range(n_levels - 1, -1, -1):
            start = ends[depth - 1] if depth > 0 else 0
            # `level` still tells who is one level further on.
            for i in range(start, ends[depth]):
                u = np.uint32(node[i])
                here = lanes[i]
                received[:] = 0.0
                for k in range(indptr[u], indptr[u + 1]):
                    v = np.uint32(indices[k])
                    both = np.int64(here & level[v])
                    if both != 0:
                        for lane in range(LANES):
                            received[lane] += share[v, lane] * np.float64(both >> lane & 1)
                for lane in range(LANES):
                    if here >> lane & 1:
                        dependency = paths[u, lane] * received[lane]
                        share[u, lane] = (1.0 + dependency) / paths[u, lane]
                        paths[u, lane] = dependency if depth > 0 else 0.0
            further = ends[depth + 1] if depth + 1 < n_levels else ends[depth]
            for i in range(ends[depth], further):
                level[node[i]] = 0
            for i in range(start, ends[depth]):
                level[node[i]] = lanes[i]
        for i in range(ends[0]):
            level[node[i]] = 0
        for u in range(n):
            for lane in range(LANES):
                total[u] += paths[u, lane]
    return total
