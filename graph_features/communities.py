"""Communities of the undirected payment graph: modularity moved locally, level by level, without a random number."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csgraph, csr_array

from graph_features.edges import Float64, Int32, Int64
from graph_features.graphs import Adjacency
from graph_features.kernels.compiled import compiled

_MAX_LEVELS = 32


def communities(together: Adjacency) -> Int64:
    """Return per node its community (0, 1, ... in the order of their first nodes).

    Louvain's method (Blondel et al. 2008) on payment counts with Leiden's queue (Traag et al. 2019): nodes are visited
    in canonical order, ties go to the smallest label, and at the end each community is split into its connected parts.
    """
    label = np.arange(together.n_nodes, dtype=np.int64)
    level = together
    for _ in range(_MAX_LEVELS):
        moved = _by_first_node(_local_moves(level.indptr, level.indices, level.weight, level.strength))
        n_communities = int(moved.max(initial=-1)) + 1
        label = moved[label]
        if n_communities == level.n_nodes:
            break
        level = Adjacency.of(moved[level.row], moved[level.indices], level.weight, n_communities)
    return _connected_parts(together, label)


def components(together: Adjacency) -> Int64:
    """Return per node its connected component (0, 1, ... in the order of their first nodes)."""
    return _by_first_node(csgraph.connected_components(together.pattern(), directed=False)[1].astype(np.int64))


def _connected_parts(together: Adjacency, label: Int64) -> Int64:
    inside = label[together.row] == label[together.indices]
    shape = (together.n_nodes, together.n_nodes)
    kept = csr_array((np.ones(int(inside.sum())), (together.row[inside], together.indices[inside])), shape=shape)
    return _by_first_node(csgraph.connected_components(kept, directed=False)[1].astype(np.int64))


def _by_first_node(label: Int64) -> Int64:
    """Renumber labels in the order in which nodes first carry them."""
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse]


@compiled
def _local_moves(indptr: Int64, indices: Int32, weight: Float64, strength: Float64) -> Int64:
    """Move nodes to the neighbouring community of largest gain until none gains; return the community of each."""
    n = len(indptr) - 1
    total = np.sum(strength)
    label = np.arange(n)
    volume = strength.copy()
    towards = np.zeros(n)  # weight from the current node to each community it touches
    touched = np.empty(n, np.int64)
    queue = np.arange(n)  # a ring: every node stands in it at most once
    queued = np.ones(n, np.bool_)
    head, waiting, budget = 0, n, 64 * n
    while waiting > 0 and budget > 0:
        budget -= 1
        u = queue[head]
        head = head + 1 if head + 1 < n else 0
        waiting -= 1
        queued[u] = False
        own = label[u]
        volume[own] -= strength[u]
        n_touched = 0
        for k in range(indptr[u], indptr[u + 1]):
            v = indices[k]
            if v == u:
                continue
            if towards[label[v]] == 0.0:
                touched[n_touched] = label[v]
                n_touched += 1
            towards[label[v]] += weight[k]
        share = strength[u] / total if total > 0.0 else 0.0
        best = own
        stay = towards[own] - share * volume[own]
        # A gain below rounding is none: without this, two equal choices could alternate for ever.
        best_gain = stay + 1e-9 * (1.0 + abs(stay))
        for i in range(n_touched):
            candidate = touched[i]
            gain = towards[candidate] - share * volume[candidate]
            if gain > best_gain or (best != own and gain == best_gain and candidate < best):
                best = candidate
                best_gain = gain
        for i in range(n_touched):
            towards[touched[i]] = 0.0
        volume[best] += strength[u]
        if best == own:
            continue
        label[u] = best
        for k in range(indptr[u], indptr[u + 1]):
            v = indices[k]
            if v != u and not queued[v] and label[v] != best:
                tail = head + waiting
                queue[tail - n if tail >= n else tail] = v
                queued[v] = True
                waiting += 1
    return label
