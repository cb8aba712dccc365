"""Where an account stands in the whole graph of payments at a slice.

The graph holds every payment made before as_of except those known by then as failed or reversed, and except payments
to oneself (see graphs.PaymentGraph). Neighbours are distinct counterparties. Betweenness and closeness are exact up to
`EXACT_NODES` accounts; above, they are means over a fixed number of sources that are drawn once with a fixed seed from
the canonical order of accounts, and their descriptions state the error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# What needs Numba is imported where it runs, so that reading the catalogue stays cheap.
from graph_features.catalog import View, feature
from graph_features.edges import Float64, Int64
from graph_features.graphs import Adjacency, Flags, PaymentGraph, at_slice, graph_of, per_row, triangle_return_weights
from graph_features.rows import AccountRows, Column
from graph_features.schema import Cadence, DType

TOPOLOGY = View(
    name="account_topology",
    entity="account",
    cadence=Cadence.SLICE,
    description="Where the account stands in the whole graph of payments: degrees, centralities, cohesion.",
    max_age_s=3 * 86_400,
    modules=(
        __name__,
        "graph_features.graphs",
        "graph_features.kernels.sorting",
        "graph_features.kernels.adjacency",
        "graph_features.kernels.timeline",
        "graph_features.centrality",
        "graph_features.shortest_paths",
        "graph_features.spectral",
        "graph_features.communities",
    ),
)

EXACT_NODES = 2_000
BETWEENNESS_SOURCES = 128
CLOSENESS_SOURCES = 256
SOURCE_SEED = 20_240_229


def sample_sources(n_nodes: int, n_sources: int) -> Int64:
    """Return every node of a small graph, else `n_sources` distinct ones, ascending; the same for the same n_nodes."""
    if n_nodes <= EXACT_NODES:
        return np.arange(n_nodes, dtype=np.int64)
    drawn = np.random.default_rng(SOURCE_SEED).choice(n_nodes, n_sources, replace=False)
    return np.sort(drawn).astype(np.int64)


def betweenness(paid: Adjacency, sources: Int64) -> Float64:
    """Return per node the share, 0 to 1, of ordered pairs of others whose shortest paths run through it."""
    n = paid.n_nodes
    if n < 3:
        return np.zeros(n)
    from graph_features import shortest_paths

    sums = shortest_paths.betweenness_sums(paid.indptr, paid.indices, sources)
    # A node is the source of no path through itself, so each draw stands for n / k of the n - 1 others.
    scale = n / len(sources) / ((n - 1.0) * (n - 2.0))
    return np.asarray(sums * scale, np.float64)


def closeness(paid: Adjacency, sources: Int64) -> Float64:
    """Return per node the mean of 1 / hops from the sources other than itself to it, 0 to 1 (harmonic closeness)."""
    n = paid.n_nodes
    if n < 2:
        return np.zeros(n)
    from graph_features import shortest_paths

    others = np.full(n, float(len(sources)))
    others[sources] -= 1.0
    return np.asarray(shortest_paths.harmonic_sums(paid.indptr, paid.indices, sources) / others, np.float64)


def triangles_of(rows: AccountRows) -> tuple[Int64, Float64]:
    """Return per node its triangles and their summed return weights, shared with the exposure features."""

    def compute() -> tuple[Int64, Float64]:
        from graph_features import centrality

        together = graph_of(rows).together
        return centrality.triangle_sums(together.indptr, together.indices, triangle_return_weights(together))

    return at_slice(rows, "triangles", compute)


def communities_of(rows: AccountRows) -> Int64:
    """Return per node its community, shared with the exposure features."""
    from graph_features import communities

    return at_slice(rows, "communities", lambda: communities.communities(graph_of(rows).together))


def _components_of(rows: AccountRows) -> Int64:
    from graph_features import communities

    return at_slice(rows, "components", lambda: communities.components(graph_of(rows).together))


def _largest_component(rows: AccountRows) -> Flags:
    """Flag the nodes of the largest component, of equals the one with the first node."""
    component = _components_of(rows)
    return np.asarray(component == (np.argmax(np.bincount(component)) if len(component) else 0))


def _leading_of(rows: AccountRows) -> tuple[float, Float64]:
    """Return the leading eigenvalue and eigenvector of the largest component."""
    from graph_features import spectral

    return at_slice(rows, "leading", lambda: spectral.leading(graph_of(rows).together, _largest_component(rows)))


def _sizes(label: Int64) -> Int64:
    """Return per node how many nodes carry its label."""
    return np.bincount(label)[label] if len(label) else np.empty(0, np.int64)


def _measure(rows: AccountRows, compute: Callable[[PaymentGraph], Any]) -> Column:
    return per_row(rows, compute(graph_of(rows)))


def _ratio(numerator: Any, denominator: Any) -> Float64:
    """numerator / denominator, NaN where the denominator is zero."""
    top: Float64 = np.asarray(numerator, np.float64)
    bottom: Float64 = np.asarray(denominator, np.float64)
    return np.asarray(np.divide(top, bottom, out=np.full(len(bottom), np.nan), where=bottom != 0), np.float64)


@feature(view=TOPOLOGY, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def in_degree(rows: AccountRows) -> Column:
    """Distinct accounts that paid this one."""
    return _measure(rows, lambda graph: graph.paid_by.degree)


@feature(view=TOPOLOGY, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def out_degree(rows: AccountRows) -> Column:
    """Distinct accounts that this one paid."""
    return _measure(rows, lambda graph: graph.paid.degree)


@feature(view=TOPOLOGY, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def total_degree(rows: AccountRows) -> Column:
    """In-degree plus out-degree: who pays and is paid counts twice."""
    return _measure(rows, lambda graph: graph.paid.degree + graph.paid_by.degree)


@feature(view=TOPOLOGY, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def degree_centrality(rows: AccountRows) -> Column:
    """Total degree over 2 (n - 1), n being the accounts active so far; 0 for a lone account."""

    def compute(graph: PaymentGraph) -> Float64:
        degree = (graph.paid.degree + graph.paid_by.degree).astype(np.float64)
        return np.asarray(degree / max(2.0 * (graph.n_nodes - 1), 1.0), np.float64)

    return _measure(rows, compute)


@feature(view=TOPOLOGY, dtype=DType.FLOAT64, unit="share", range="0 to 1, above 1 only as a sampling error")
def betweenness_centrality(rows: AccountRows) -> Column:
    """Share of directed shortest paths between other accounts that run through this one, in hops.

    Exact up to 2,000 accounts. Above, an unbiased estimate from 128 sources (Brandes and Pich 2007) with a standard
    error of at most 0.045, and of sqrt(b / 128) for an account of true betweenness b. Brandes 2001.
    """
    return _measure(rows, lambda graph: betweenness(graph.paid, sample_sources(graph.n_nodes, BETWEENNESS_SOURCES)))


@feature(view=TOPOLOGY, dtype=DType.FLOAT64, unit="1/hops", range="0 to 1")
def closeness_centrality(rows: AccountRows) -> Column:
    """Mean of 1 / hops from every other account to this one along payments, 0 for those that do not reach it.

    Harmonic, so that disconnected graphs are defined. Exact up to 2,000 accounts; above, the mean over 256 sampled
    sources, with a standard error of at most 0.032. Marchiori and Latora 2000.
    """
    return _measure(rows, lambda graph: closeness(graph.paid, sample_sources(graph.n_nodes, CLOSENESS_SOURCES)))


@feature(view=TOPOLOGY, dtype=DType.FLOAT64, unit="share", range="0 to 1, all accounts together 1")
def pagerank_score(rows: AccountRows) -> Column:
    """PageRank with damping 0.85, following payments in proportion to their count."""
    from graph_features import spectral

    return _measure(rows, lambda graph: spectral.pagerank(graph.paid))


@feature(view=TOPOLOGY, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def clustering_coefficient(rows: AccountRows) -> Column:
    """Share of pairs of neighbours that deal with each other, direction ignored; 0 below two neighbours."""

    def compute(graph: PaymentGraph) -> Float64:
        degree = graph.together.degree
        return np.nan_to_num(_ratio(2.0 * triangles_of(rows)[0], degree * (degree - 1.0)))

    return _measure(rows, compute)


@feature(view=TOPOLOGY, dtype=DType.FLOAT64, unit="of unit length over all accounts", range="0 to 1")
def katz_centrality(rows: AccountRows) -> Column:
    """Walks of any length that end at this account, each step counted with alpha, over distinct payer edges.

    alpha = 0.85 / (largest eigenvalue of the undirected projection, at least 1), below one over the directed one.
    """
    from graph_features import spectral

    def compute(graph: PaymentGraph) -> Float64:
        inside, members = _leading_of(rows)[0], _largest_component(rows)
        return spectral.katz(graph.paid, spectral.largest_eigenvalue(graph.together, members, inside))

    return _measure(rows, compute)


@feature(view=TOPOLOGY, dtype=DType.FLOAT64, unit="of unit length over all accounts", range="0 to 1")
def eigenvector_centrality(rows: AccountRows) -> Column:
    """Leading eigenvector of the undirected projection on its largest component, 0 elsewhere.

    Of components of one size the one with the first account id counts.
    """
    return per_row(rows, _leading_of(rows)[1])


@feature(view=TOPOLOGY, dtype=DType.FLOAT64, unit="accounts", range="1 or more")
def average_neighbor_degree(rows: AccountRows) -> Column:
    """Mean total degree of the distinct neighbours, null without any."""

    def compute(graph: PaymentGraph) -> Float64:
        total = (graph.paid.degree + graph.paid_by.degree).astype(np.float64)
        return _ratio(graph.together.pattern() @ total, graph.together.degree)

    return _measure(rows, compute)


@feature(view=TOPOLOGY, dtype=DType.INT64, unit="triangles", range="0 or more", empty=0)
def triangles_count(rows: AccountRows) -> Column:
    """Triples of accounts, this one among them, in which each deals with both others."""
    return _measure(rows, lambda _: triangles_of(rows)[0])


@feature(view=TOPOLOGY, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def core_number(rows: AccountRows) -> Column:
    """Largest k for which the account lies in a group where each deals with k others of the group."""
    from graph_features import centrality

    return _measure(rows, lambda graph: centrality.core_numbers(graph.together.indptr, graph.together.indices))


@feature(view=TOPOLOGY, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def component_size(rows: AccountRows) -> Column:
    """Accounts that are connected with this one by any chain of payments, itself included."""
    return _measure(rows, lambda _: _sizes(_components_of(rows)))


@feature(view=TOPOLOGY, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def community_size(rows: AccountRows) -> Column:
    """Accounts in this one's community, itself included: modularity on payment counts, direction ignored."""
    return _measure(rows, lambda _: _sizes(communities_of(rows)))


@feature(view=TOPOLOGY, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def reciprocity(rows: AccountRows) -> Column:
    """Share of the edges from and to this account that are answered in the other direction, null without any."""

    def compute(graph: PaymentGraph) -> Float64:
        total = graph.paid.degree + graph.paid_by.degree
        return _ratio(2 * (total - graph.together.degree), total)

    return _measure(rows, compute)
