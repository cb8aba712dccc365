"""The graph of payments at one instant, as sparse matrices over canonically ordered nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graph_features.contracts import STATUSES
from graph_features.edges import Changes, EdgeTable, Float64, Int8, Int32, Int64
from graph_features.kernels.timeline import pair_index
from graph_features.rows import AccountRows

T = TypeVar("T")

Matrix = Any
"""A scipy.sparse.csr_array of float64; its stubs cannot say so across versions."""

Flags = npt.NDArray[np.bool_]

_VOID = (STATUSES.index("failed"), STATUSES.index("reversed"))


@dataclass(frozen=True, kw_only=True)
class Adjacency:
    """A sparse matrix in CSR form: the neighbours of node `u` are `indices[indptr[u]:indptr[u + 1]]`, ascending."""

    indptr: Int64
    indices: Int32
    weight: Float64

    @property
    def n_nodes(self) -> int:
        return len(self.indptr) - 1

    @cached_property
    def degree(self) -> Int64:
        return np.diff(self.indptr)

    @cached_property
    def row(self) -> Int32:
        """The row of every stored element."""
        return np.repeat(np.arange(self.n_nodes, dtype=np.int32), self.degree)

    @cached_property
    def strength(self) -> Float64:
        """The sum of each row's weights."""
        return np.bincount(self.row, weights=self.weight, minlength=self.n_nodes).astype(np.float64)

    def matrix(self) -> Matrix:
        """Weights as a SciPy matrix."""
        shape = (self.n_nodes, self.n_nodes)
        return sparse.csr_array((self.weight, self.indices, self.indptr), shape=shape)

    def pattern(self) -> Matrix:
        """Ones where there is an edge."""
        shape = (self.n_nodes, self.n_nodes)
        return sparse.csr_array((np.ones(len(self.indices)), self.indices, self.indptr), shape=shape)

    @classmethod
    def of(cls, row: npt.NDArray[Any], column: npt.NDArray[Any], weight: npt.NDArray[Any], n_nodes: int) -> Adjacency:
        """Sum parallel edges and sort, so that equal edges give equal bits whatever order they came in.

        Weights must be whole numbers (exact in float64 up to 2**53), so that their sums do not depend on order.
        """
        from graph_features.kernels.sorting import by_two_codes

        order = by_two_codes(row, column, n_nodes)
        row, column = row[order], column[order]
        first = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(column, prepend=-1) != 0))
        sums = np.add.reduceat(weight[order].astype(np.float64), first) if len(first) else np.empty(0)
        return cls.of_sorted(row[first], column[first], sums, n_nodes)

    @classmethod
    def of_sorted(cls, row: npt.NDArray[Any], column: npt.NDArray[Any], weight: Float64, n_nodes: int) -> Adjacency:
        """Take edges that are distinct and sorted by row, then column."""
        indptr = np.zeros(n_nodes + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=n_nodes), out=indptr[1:])
        return cls(indptr=indptr, indices=column.astype(np.int32), weight=weight)

    def turned(self) -> Adjacency:
        """Return the matrix with every edge turned around."""
        from graph_features.kernels.sorting import by_code

        indptr, order = by_code(self.indices, self.n_nodes)
        return Adjacency(indptr=indptr, indices=self.row[order], weight=self.weight[order])

    def plus(self, other: Adjacency) -> Adjacency:
        """Return the sum of both matrices."""
        from graph_features.kernels.adjacency import union

        both = union(self.indptr, self.indices, self.weight, other.indptr, other.indices, other.weight)
        return Adjacency(indptr=both[0], indices=both[1], weight=both[2])


@dataclass(frozen=True, kw_only=True)
class PaymentGraph:
    """Accounts that sent or received before as_of, and who paid whom how often.

    Nodes are numbered in the order of account ids, only accounts active by then count, so that later payments change
    neither a number nor the order of a sum. A payment that had failed or was reversed by as_of is no edge, nor is one
    to oneself; both still make their accounts nodes. `paid` and `paid_by` hold payment counts per direction,
    `together` is the undirected projection with the counts of both directions added.
    """

    as_of_ms: int
    node_of_account: Int32
    """Node of each account code, -1 for accounts that were not active yet."""
    paid: Adjacency
    paid_by: Adjacency
    together: Adjacency

    @property
    def n_nodes(self) -> int:
        return self.paid.n_nodes


def graph_at(edges: EdgeTable, as_of_ms: int) -> PaymentGraph:
    """Build the graph of what was known strictly before `as_of_ms`."""
    seen = int(np.searchsorted(edges.ts_ms, as_of_ms, side="left"))
    active = np.zeros(edges.n_accounts, np.bool_)
    active[edges.sender[:seen]] = True
    active[edges.receiver[:seen]] = True
    node_of_account = np.where(active, np.cumsum(active) - 1, -1).astype(np.int32)
    n_nodes = int(active.sum())

    pairs = pair_index(edges)
    count = np.bincount(pairs.of_edge[:seen][standing_before(edges, as_of_ms)], minlength=len(pairs.key))
    kept = np.flatnonzero(count)
    sender, receiver = node_of_account[pairs.sender[kept]], node_of_account[pairs.receiver[kept]]
    # Pairs come in order of sender, then receiver; node numbers ascend with account codes.
    paid = Adjacency.of_sorted(sender, receiver, count[kept].astype(np.float64), n_nodes)
    paid_by = paid.turned()
    return PaymentGraph(
        as_of_ms=as_of_ms,
        node_of_account=node_of_account,
        paid=paid,
        paid_by=paid_by,
        together=paid.plus(paid_by),
    )


def triangle_return_weights(together: Adjacency) -> Float64:
    """Return per edge the factor whose product around a triangle is the chance to walk it one way from any corner.

    w1 w2 w3 / (s1 s2 s3), where each strength s belongs to two of the three edges: hence the square roots.
    """
    return together.weight / np.sqrt(together.strength[together.row] * together.strength[together.indices])


def latest_before(changes: Changes, as_of_ms: int, n_edges: int) -> Int8:
    """Return per edge the latest value known strictly before `as_of_ms`, -1 where none was."""
    known = int(np.searchsorted(changes.ts_ms, as_of_ms, side="left"))
    latest = np.full(n_edges, -1, np.int8)
    latest[changes.edge[:known]] = changes.value[:known]  # of repeated indices NumPy keeps the last, the latest here
    return latest


def standing_before(edges: EdgeTable, as_of_ms: int) -> Flags:
    """Return per payment made before `as_of_ms` whether it is an edge: not void by then, and not to oneself."""
    seen = int(np.searchsorted(edges.ts_ms, as_of_ms, side="left"))
    void = np.isin(latest_before(edges.statuses, as_of_ms, edges.n_edges)[:seen], _VOID)
    return np.asarray(~void & (edges.sender[:seen] != edges.receiver[:seen]))


def fraud_accounts(edges: EdgeTable, as_of_ms: int) -> Flags:
    """Return per account whether a payment made before as_of names it as fraudulent by the latest label known then."""
    seen = int(np.searchsorted(edges.ts_ms, as_of_ms, side="left"))
    party = latest_before(edges.labels, as_of_ms, edges.n_edges)[:seen]
    fraud = np.zeros(edges.n_accounts, np.bool_)
    fraud[edges.sender[:seen][(party > 0) & (party & 1 > 0)]] = True
    fraud[edges.receiver[:seen][(party > 0) & (party & 2 > 0)]] = True
    return fraud


def known_frauds(edges: EdgeTable, graph: PaymentGraph) -> Flags:
    """Return the same per node of the graph."""
    fraud = np.zeros(graph.n_nodes, np.bool_)
    fraud[graph.node_of_account[fraud_accounts(edges, graph.as_of_ms)]] = True
    return fraud


def graph_of(rows: AccountRows) -> PaymentGraph:
    """Return the graph at the one as_of that all `rows` share, built once per slice.

    Raises ValueError where rows of several instants are asked for: a whole-graph measure has one as_of.
    """

    as_of_ms = rows.memo("as_of_ms", lambda: _one_instant(rows.as_of_ms))
    return at_slice(rows, "payment_graph", lambda: graph_at(rows.edges, as_of_ms))


def at_slice(rows: AccountRows, key: str, compute: Callable[[], T]) -> T:
    """Return what `compute` gave for this edge table and as_of, shared by all slice views and threads.

    Only the newest slice is kept: the graphs of a whole backfill would not fit. Threads that work on two slices at
    once compute some things twice.
    """
    as_of_ms = rows.memo("as_of_ms", lambda: _one_instant(rows.as_of_ms))
    return rows.edges.slices.of(as_of_ms).get(key, compute)


def _one_instant(as_of_ms: Int64) -> int:
    instants = np.unique(as_of_ms)
    if len(instants) > 1:
        raise ValueError(f"slice features take rows of one as_of, got {len(instants)}; ask slice by slice")
    return int(instants[0]) if len(instants) else 0


def per_row(rows: AccountRows, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return per row the value of its account's node; 0 (integers) or NaN where the account was not active yet."""
    account = rows.account.astype(np.int64)
    nodes = np.full(len(account), -1, np.int64)
    nodes[account >= 0] = graph_of(rows).node_of_account[account[account >= 0]]
    whole = values.dtype.kind in "iub"
    result = np.zeros(len(nodes), np.int64) if whole else np.full(len(nodes), np.nan)
    result[nodes >= 0] = values[nodes[nodes >= 0]]
    return result
