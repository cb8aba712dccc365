"""How near an account stands to known fraud at a slice.

A known fraud account is one that a payment made before as_of names as fraudulent (sender, receiver or both) by the
latest label known strictly before as_of. The graph is that of `topology`, direction ignored. No row uses the account's
own label: every measure counts fraud accounts other than itself, so a row stays the same, bit for bit in the counts
and to 1e-12 in the score, whether or not its account is known as fraudulent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# What needs Numba is imported where it runs, so that reading the catalogue stays cheap.
from graph_features.catalog import View, feature
from graph_features.edges import Int64
from graph_features.graphs import Adjacency, Flags, at_slice, graph_of, known_frauds, per_row
from graph_features.rows import AccountRows, Column
from graph_features.schema import Cadence, DType
from graph_features.topology import communities_of, triangles_of

PROXIMITY = View(
    name="account_proximity",
    entity="account",
    cadence=Cadence.SLICE,
    description="How near the account stands to known fraud accounts in the graph of payments.",
    max_age_s=3 * 86_400,
    modules=(
        __name__,
        "graph_features.graphs",
        "graph_features.kernels.sorting",
        "graph_features.kernels.adjacency",
        "graph_features.kernels.timeline",
        "graph_features.topology",
        "graph_features.communities",
        "graph_features.fraud_paths",
    ),
)


def _frauds(rows: AccountRows) -> Flags:
    return at_slice(rows, "known_frauds", lambda: known_frauds(rows.edges, graph_of(rows)))


def _direct(rows: AccountRows) -> Int64:
    from graph_features import fraud_paths

    return at_slice(rows, "fraud_neighbours", lambda: _run(rows, fraud_paths.fraud_neighbours))


def _run(rows: AccountRows, kernel: Callable[..., Int64]) -> Int64:
    together: Adjacency = graph_of(rows).together
    return kernel(together.indptr, together.indices, _frauds(rows))


@feature(view=PROXIMITY, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def connected_to_fraud_count(rows: AccountRows) -> Column:
    """Distinct neighbours that are known fraud accounts."""
    return per_row(rows, _direct(rows))


@feature(view=PROXIMITY, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def fraud_neighbours_2hop(rows: AccountRows) -> Column:
    """Distinct known fraud accounts exactly two hops away."""
    from graph_features import fraud_paths

    return per_row(rows, _run(rows, fraud_paths.frauds_at_two_hops))


@feature(view=PROXIMITY, dtype=DType.FLOAT64, unit="share", range="0 to 1", empty=0)
def fraud_propagation_score(rows: AccountRows) -> Column:
    """Personalised PageRank mass that arrives within three steps from known fraud accounts other than this one.

    Damping 0.85, steps in proportion to payment counts, restart spread evenly over those other frauds; what an account
    would send back to itself is taken out exactly. 0 without other frauds.
    """
    from graph_features import fraud_paths

    graph, fraud = graph_of(rows), _frauds(rows)
    return per_row(rows, fraud_paths.propagation(graph.together, fraud, triangles_of(rows)[1]))


@feature(view=PROXIMITY, dtype=DType.INT64, unit="hops", range="1 or more")
def distance_to_nearest_fraud(rows: AccountRows) -> Column:
    """Hops to the nearest other known fraud account, null when none can be reached."""
    from graph_features import fraud_paths

    hops = per_row(rows, _run(rows, fraud_paths.hops_to_other_fraud))
    return np.ma.masked_array(hops, mask=hops <= 0)


@feature(view=PROXIMITY, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def common_neighbors_with_frauds(rows: AccountRows) -> Column:
    """Distinct neighbours that this account shares with any other known fraud account."""
    from graph_features import fraud_paths

    together = graph_of(rows).together
    shared = fraud_paths.shared_neighbours(together.indptr, together.indices, _frauds(rows), _direct(rows))
    return per_row(rows, shared)


@feature(view=PROXIMITY, dtype=DType.INT64, unit="flag", range="0 or 1", empty=0)
def fraud_cluster_membership(rows: AccountRows) -> Column:
    """1 when the account's community (see community_size) holds a known fraud account other than itself."""
    community, fraud = communities_of(rows), _frauds(rows)
    others = np.bincount(community[fraud], minlength=len(community))[community] - fraud if len(community) else community
    return per_row(rows, np.asarray(others > 0, np.int64))
