"""Centralities by power iteration over sparse matrices: PageRank, Katz and the leading eigenvector.

Sums run in a fixed order on one thread (no BLAS), so that the same graph gives the same bits.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh_tridiagonal

from graph_features.edges import Float64
from graph_features.graphs import Adjacency, Flags, Matrix

DAMPING = 0.85
KATZ_SHARE = 0.85
"""Katz' alpha is this over the largest eigenvalue of the undirected projection, which bounds the directed one."""

_TOLERANCE = 1e-13
_MAX_STEPS = 1_000
_BASIS = 20


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


def leading(together: Adjacency, members: Flags) -> tuple[float, Float64]:
    """Return the largest eigenvalue of the subgraph of `members` and its eigenvector (n,): unit length, zero elsewhere.

    `members` (n,) flags one connected component. Lanczos' method, begun anew from the best vector so far every
    20 steps (Saad, "Numerical Methods for Large Eigenvalue Problems", 6.3), until the residual is below 1e-13 of the
    eigenvalue. Stops after 1000 steps at the latest, when a component with a tiny spectral gap (a long chain) is not
    settled yet.
    """
    # It begins inside the component, and no step leads out of it.
    start = members.astype(np.float64)
    if not members.any() or len(together.indices) == 0:
        return 0.0, _unit(start)
    matrix = together.pattern()
    value, vector = 0.0, _unit(start)
    for _ in range(_MAX_STEPS // _BASIS):
        value, vector, residual = _lanczos(matrix, vector)
        if residual <= _TOLERANCE * value:
            break
    return value, np.abs(vector)  # none is negative (Perron, Frobenius); what differs from zero by rounding may be


def largest_eigenvalue(together: Adjacency, members: Flags, inside: float) -> float:
    """Return the largest eigenvalue of the whole undirected projection, given that of the component `members`."""
    if np.max(together.degree, where=~members, initial=0) <= inside:
        return inside  # no eigenvalue is above the largest degree
    return max(inside, leading(together, ~members)[0])


def _lanczos(matrix: Matrix, start: Float64) -> tuple[float, Float64, float]:
    """Return the largest Ritz value of up to _BASIS steps from `start`, its unit vector and its residual."""
    basis = np.empty((_BASIS, len(start)))
    diagonal, beside = np.zeros(_BASIS), np.zeros(_BASIS)
    vector, size = start, 0
    while size < _BASIS:
        basis[size] = vector
        vector = matrix @ vector
        known = basis[: size + 1]
        for _ in range(2):  # the second takes out what rounding left of the first
            along = np.einsum("ij,j->i", known, vector)
            vector = vector - np.einsum("i,ij->j", along, known)
            diagonal[size] += along[size]
        beside[size] = np.sqrt(np.sum(vector * vector))
        size += 1
        if beside[size - 1] <= _TOLERANCE * np.max(diagonal + beside):
            break
        vector = vector / beside[size - 1]
    values, vectors = eigh_tridiagonal(diagonal[:size], beside[: size - 1])
    weights = vectors[:, -1]
    return float(values[-1]), _unit(np.einsum("i,ij->j", weights, basis[:size])), abs(beside[size - 1] * weights[-1])


def _unit(vector: Float64) -> Float64:
    length = np.sqrt(np.sum(vector * vector))
    return vector / length if length > 0 else vector
