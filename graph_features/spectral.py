"""Centralities by power iteration over sparse matrices: PageRank, Katz and the leading eigenvector.

Sums run in a fixed order on one thread (no BLAS), so that the same graph gives the same bits.
"""

from __future__ import annotations

import numpy as np

from graph_features.edges import Float64
from graph_features.graphs import Adjacency, Flags, Matrix

DAMPING = 0.85
KATZ_SHARE = 0.85
"""Katz' alpha is this over the largest eigenvalue of the undirected projection, which bounds the directed one."""

_TOLERANCE = 1e-13
_MAX_STEPS = 1_000


def pagerank(paid: Adjacency) -> Float64:
    """Return PageRank (n,), summing to one, of a surfer who follows payments in proportion to their count.

    Accounts that paid nobody jump anywhere. Page et al. 1999; stops when a step moves less than 1e-13 in all.
    """
    n = paid.n_nodes
    dangling = paid.strength == 0
    inverse = np.divide(1.0, paid.strength, out=np.zeros(n), where=~dangling)
    step = paid.matrix().T.tocsr()
    score = np.full(n, 1.0 / n) if n else np.empty(0)
    for _ in range(_MAX_STEPS):
        before = score
        jump = (1.0 - DAMPING + DAMPING * np.sum(score[dangling])) / max(n, 1)
        score = DAMPING * (step @ (score * inverse)) + jump
        score /= np.sum(score) or 1.0
        if np.sum(np.abs(score - before)) < _TOLERANCE:
            break
    return score


def katz(paid: Adjacency, largest: float) -> Float64:
    """Return Katz centrality (n,), of unit length: x = alpha A' x + 1, the discounted walks that end at a node.

    Each distinct counterparty is one edge. alpha = KATZ_SHARE / `largest`, where `largest` is at least the spectral
    radius of `paid`, so that the sum converges. Katz 1953.
    """
    alpha = KATZ_SHARE / max(largest, 1.0)
    step = paid.pattern().T.tocsr()
    score = np.ones(paid.n_nodes)
    for _ in range(_MAX_STEPS):
        before = score
        score = alpha * (step @ score) + 1.0
        if np.max(np.abs(score - before), initial=0.0) < _TOLERANCE * np.max(score, initial=1.0):
            break
    return _unit(score)


def largest_eigenvalue(together: Adjacency) -> float:
    """Return the largest eigenvalue of the undirected projection, 0 without edges."""
    if len(together.indices) == 0:
        return 0.0
    return _leading(together.pattern())[0]


def leading_eigenvector(together: Adjacency, members: Flags) -> Float64:
    """Return the leading eigenvector (n,) of the subgraph of `members`, of unit length, and zero elsewhere.

    `members` (n,) flags one connected component.     Stops after 1000 steps at the latest, when a component with
    a tiny spectral gap (a long chain) is not settled yet.
    """
    result = np.zeros(together.n_nodes)
    nodes = np.flatnonzero(members)
    if len(nodes):
        result[nodes] = _leading(together.pattern()[nodes][:, nodes])[1]
    return result


def _leading(matrix: Matrix) -> tuple[float, Float64]:
    """Iterate with matrix + identity: bipartite graphs, which payments often form, would swing for ever without it."""
    vector = _unit(np.ones(matrix.shape[0]))
    for _ in range(_MAX_STEPS):
        before = vector
        vector = _unit(matrix @ vector + vector)
        if np.sum(np.abs(vector - before)) < _TOLERANCE * len(vector):
            break
    return float(np.sum(vector * (matrix @ vector))), vector


def _unit(vector: Float64) -> Float64:
    length = np.sqrt(np.sum(vector * vector))
    return vector / length if length > 0 else vector
