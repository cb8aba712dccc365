"""Every whole-graph measure against NetworkX on small random multigraphs."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features import communities, spectral, topology
from graph_features.graphs import graph_at
from graph_features.topology import TOPOLOGY

ACCOUNTS = "abcdefghij"
NOW = 1_000

# Few accounts make multi-edges, self-loops and reciprocal edges common; failed payments make isolated nodes.
payments = st.lists(
    st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from(ACCOUNTS), st.integers(0, 2 * NOW)), min_size=1, max_size=40
)
failures = st.lists(
    st.tuples(st.integers(0, 39), st.sampled_from(["failed", "completed", "reversed"]), st.integers(0, 2 * NOW)),
    max_size=15,
)
examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def networkx_graph(paid: list[tuple[str, str, int]], status: list[tuple[int, str, int]]) -> nx.DiGraph:
    """The same graph built the slow, obvious way."""
    known = sorted((s for s in status if s[2] < NOW), key=lambda s: s[2])
    latest = {payment: value for payment, value, _ in known}
    graph = nx.DiGraph()
    for position, (sender, receiver, ts_ms) in enumerate(paid):
        if ts_ms >= NOW:
            continue
        graph.add_nodes_from([sender, receiver])
        if sender == receiver or latest.get(position) in {"failed", "reversed"}:
            continue
        count = graph.get_edge_data(sender, receiver, {"count": 0})["count"]
        graph.add_edge(sender, receiver, count=count + 1)
    return graph


def expected(graph: nx.DiGraph) -> dict[str, dict[str, float]]:
    """Every topology feature by NetworkX."""
    both = graph.to_undirected()
    n = len(graph)
    total = {u: graph.in_degree(u) + graph.out_degree(u) for u in graph}
    parts = {u: part for part in nx.connected_components(both) for u in part}
    biggest = max(nx.connected_components(both), key=lambda part: (len(part), -ord(min(part))))
    values, vectors = np.linalg.eigh(nx.to_numpy_array(both.subgraph(biggest), sorted(biggest), weight=None))
    leading = dict(zip(sorted(biggest), np.abs(vectors[:, np.argmax(values)]), strict=True))
    radius = max(np.linalg.eigvalsh(nx.to_numpy_array(both, weight=None)).max(), 1.0)
    return {
        "in_degree": dict(graph.in_degree()),
        "out_degree": dict(graph.out_degree()),
        "total_degree": total,
        "degree_centrality": {u: total[u] / max(2 * (n - 1), 1) for u in graph},
        "betweenness_centrality": nx.betweenness_centrality(graph),
        "closeness_centrality": {u: h / max(n - 1, 1) for u, h in nx.harmonic_centrality(graph).items()},
        "pagerank_score": nx.pagerank(graph, alpha=0.85, weight="count", tol=1e-13, max_iter=10_000),
        "clustering_coefficient": nx.clustering(both),
        "katz_centrality": nx.katz_centrality_numpy(graph, alpha=0.85 / radius) if n > 1 else dict.fromkeys(graph, 1.0),
        "eigenvector_centrality": {u: leading.get(u, 0.0) for u in graph},
        "average_neighbor_degree": {
            u: sum(total[v] for v in both[u]) / len(both[u]) if len(both[u]) else math.nan for u in graph
        },
        "triangles_count": nx.triangles(both),
        "core_number": nx.core_number(both),
        "component_size": {u: len(parts[u]) for u in graph},
        "reciprocity": {u: nx.reciprocity(graph, u) if total[u] else math.nan for u in graph},
    }


@settings(examples, max_examples=200)
@given(paid=payments, status=failures)
def test_every_measure_equals_networkx(paid: Any, status: Any, history: Any, rows_at: Any) -> None:
    """All measures but the community (a heuristic) must equal NetworkX to 1e-6 on any small multigraph."""
    status = [s for s in status if s[0] < len(paid)]
    edges = history(payments=paid, statuses=status).edges()
    graph = networkx_graph(paid, status)
    active = sorted(graph)
    rows = rows_at(edges, NOW, active)
    wanted = expected(graph) if active else {}
    for feature in TOPOLOGY.features:
        column = feature.compute(rows)
        if feature.schema.name in wanted:
            reference = [wanted[feature.schema.name][u] for u in active]
            np.testing.assert_allclose(column, reference, rtol=1e-6, atol=1e-6, err_msg=feature.schema.name)
        assert len(column) == len(active)


@examples
@given(paid=payments, status=failures)
def test_communities_are_connected_and_no_worse_than_singletons(paid: Any, status: Any, history: Any) -> None:
    """Every community must be connected, and moving nodes must not have lost modularity."""
    status = [s for s in status if s[0] < len(paid)]
    edges = history(payments=paid, statuses=status).edges()
    both = networkx_graph(paid, status).to_undirected()
    graph = graph_at(edges, NOW)
    label = communities.communities(graph.together)
    names = [a for a, node in zip(edges.account_ids, graph.node_of_account, strict=True) if node >= 0]
    groups = [{names[i] for i in np.flatnonzero(label == c)} for c in range(label.max(initial=-1) + 1)]
    assert all(nx.is_connected(both.subgraph(group)) for group in groups)
    if both.number_of_edges():
        weighted = nx.Graph()
        weighted.add_nodes_from(both)
        row, column, count = graph.together.row, graph.together.indices, graph.together.weight
        weighted.add_weighted_edges_from((names[i], names[j], w) for i, j, w in zip(row, column, count, strict=True))
        alone = nx.community.modularity(weighted, [{u} for u in weighted])
        assert nx.community.modularity(weighted, groups) >= alone


def test_communities_find_planted_cliques(history: Any, by_account: Any) -> None:
    """Two cliques joined by one payment must be two communities."""
    left = [(u, v, 1) for u in "abcd" for v in "abcd" if u < v]
    right = [(u, v, 1) for u in "wxyz" for v in "wxyz" if u < v]
    edges = history(payments=[*left, *right, ("d", "w", 2)]).edges()
    assert set(by_account(edges, NOW, topology.community_size).values()) == {4}


@examples
@given(paid=payments, status=failures, later=payments)
def test_the_future_changes_no_bit(paid: Any, status: Any, later: Any, history: Any, rows_at: Any) -> None:
    """Payments, accounts and statuses at or after as_of must leave every past row as it was, bit for bit."""
    status = [s for s in status if s[0] < len(paid)]
    new = [(f"{s}2" if ts % 3 == 0 else s, f"A{r}" if ts % 5 == 0 else r, NOW + ts) for s, r, ts in later]
    before = history(payments=paid, statuses=status).edges()
    reversals = [(i, "reversed", NOW + i) for i in range(len(paid))]
    after = history(payments=[*paid, *new], statuses=[*status, *reversals]).edges()
    accounts = sorted({a for s, r, ts in paid if ts < NOW for a in (s, r)})
    then, now = rows_at(before, NOW, accounts), rows_at(after, NOW, accounts)
    for feature in TOPOLOGY.features:
        assert feature.compute(then).tobytes() == feature.compute(now).tobytes(), feature.schema.name


def test_an_account_without_history_has_no_measures(history: Any, rows_at: Any) -> None:
    """Counts must be 0 and measures null for an account that was not active yet or is unknown."""
    rows = rows_at(history(payments=[("a", "b", 1), ("c", "a", NOW)]).edges(), NOW, ["c", "nobody"])
    for feature in TOPOLOGY.features:
        column = feature.compute(rows)
        if feature.schema.empty == 0:
            assert column.tolist() == [0, 0]
        else:
            assert np.isnan(column).all()


def test_empty_graph_and_no_rows(history: Any, rows_at: Any) -> None:
    """Nothing asked, or nothing known yet, must be answered with as many values as rows."""
    edges = history(payments=[("a", "b", 5)]).edges()
    for rows, length in ((rows_at(edges, 1), 2), (rows_at(edges, NOW, []), 0)):
        assert all(len(feature.compute(rows)) == length for feature in TOPOLOGY.features)


def test_rows_of_two_slices_are_refused(history: Any, rows_at: Any) -> None:
    """Rows of different instants cannot share one graph, and the error must say so."""
    rows = rows_at(history(payments=[("a", "b", 5)]).edges(), NOW)
    rows.as_of_ms[0] -= 1
    with pytest.raises(ValueError, match="one as_of"):
        topology.in_degree(rows)


@pytest.fixture(scope="module")
def big(history: Any) -> Any:
    """2,500 accounts with a few hubs: above the size up to which betweenness is exact."""
    rng = np.random.default_rng(7)
    accounts = [f"{i:05d}" for i in range(2_500)]
    paid = [
        (accounts[min(int(s), 2_499)], accounts[int(r)], int(t))
        for s, r, t in zip(rng.pareto(0.8, 9_000) * 40, rng.integers(0, 2_500, 9_000), range(9_000), strict=True)
    ]
    return graph_at(history(payments=paid).edges(), 10_000)


def test_sampled_betweenness_and_closeness_are_near_the_exact(big: Any) -> None:
    """Above the exact size the estimate must not be zero and must keep the stated standard errors."""
    everyone = np.arange(big.n_nodes, dtype=np.int64)
    sources = topology.sample_sources(big.n_nodes, topology.BETWEENNESS_SOURCES)
    assert len(sources) == topology.BETWEENNESS_SOURCES
    exact = topology.betweenness(big.paid, everyone)
    assert exact.max() > 0
    sampled = topology.betweenness(big.paid, sources)
    assert np.corrcoef(sampled, exact)[0, 1] > 0.7
    assert np.mean((sampled - exact) ** 2) <= 2 * np.mean(exact) / 128
    assert np.abs(sampled - exact).max() <= 4 * 0.045
    sources = topology.sample_sources(big.n_nodes, topology.CLOSENESS_SOURCES)
    off = topology.closeness(big.paid, sources) - topology.closeness(big.paid, everyone)
    assert (np.abs(off) <= 4 * 0.032).all()


def test_alpha_stays_below_the_radius(big: Any) -> None:
    """The eigenvalue that bounds Katz' alpha must be that of the undirected projection."""
    dense = big.together.pattern().toarray()
    exact = np.linalg.eigvalsh(dense).max()
    everyone = np.ones(big.n_nodes, np.bool_)
    inside, vector = spectral.leading(big.together, everyone)
    assert spectral.largest_eigenvalue(big.together, everyone, inside) == pytest.approx(exact, rel=1e-12)
    assert dense @ vector == pytest.approx(exact * vector, abs=1e-9)
    assert spectral.largest_eigenvalue(big.together, ~everyone, 0.0) == pytest.approx(exact, rel=1e-12)


def test_a_second_run_gives_the_same_bits(history: Any, rows_at: Any) -> None:
    """The same payments in another order of arrival must give the same bits."""
    rng = np.random.default_rng(3)
    paid = [(f"{s:03d}", f"{r:03d}", int(t)) for t, (s, r) in enumerate(rng.integers(0, 300, (2_000, 2)))]
    order = rng.permutation(len(paid))
    first, second = history(payments=paid).edges(), history(payments=[paid[i] for i in order]).edges()
    one, two = rows_at(first, 3_000), rows_at(second, 3_000)
    for feature in TOPOLOGY.features:
        assert feature.compute(one).tobytes() == feature.compute(two).tobytes(), feature.schema.name
