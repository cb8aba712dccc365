"""Nearness to known fraud against slow, obvious computations, and without use of the account's own label."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features import communities
from graph_features.graphs import graph_at, known_frauds
from graph_features.proximity import PROXIMITY

ACCOUNTS = "abcdefghij"
NOW = 1_000

payments = st.lists(
    st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from(ACCOUNTS), st.integers(0, 2 * NOW)), min_size=1, max_size=30
)
labels = st.lists(
    st.tuples(st.integers(0, 29), st.sampled_from(["sender", "receiver", "both", None]), st.integers(0, 2 * NOW)),
    max_size=12,
)
statuses = st.lists(
    st.tuples(st.integers(0, 29), st.sampled_from(["failed", "completed", "reversed"]), st.integers(0, 2 * NOW)),
    max_size=6,
)
examples = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def frauds_of(paid: Any, label: Any) -> set[str]:
    """Accounts named by the latest known labels, the slow way."""
    known = sorted((entry for entry in label if entry[2] < NOW), key=lambda entry: entry[2])
    latest = {payment: party for payment, party, _ in known}
    named: set[str] = set()
    for payment, party in latest.items():
        sender, receiver, ts_ms = paid[payment]
        if ts_ms < NOW:
            named |= {"sender": {sender}, "receiver": {receiver}, "both": {sender, receiver}, None: set()}[party]
    return named


def expected(graph: Any, label: Any, names: list[str], frauds: set[str]) -> dict[str, list[Any]]:
    """Every feature by NetworkX and dense matrices, the account itself taken out of the frauds each time."""
    weights = graph.together.matrix().toarray()
    both = nx.relabel_nodes(nx.from_numpy_array(weights), dict(enumerate(names)))
    strength = weights.sum(1, keepdims=True)
    walk = np.divide(weights, strength, out=np.zeros_like(weights), where=strength > 0)
    group = dict(zip(names, label, strict=True))
    result: dict[str, list[Any]] = {feature.schema.name: [] for feature in PROXIMITY.features}
    for i, u in enumerate(names):
        others = frauds - {u}
        hops = nx.single_source_shortest_path_length(both, u)
        start = np.array([name in others for name in names], float)
        mass = sum(0.85**k * (start @ np.linalg.matrix_power(walk, k))[i] for k in (1, 2, 3))
        result["connected_to_fraud_count"].append(len(set(both[u]) & others))
        result["fraud_neighbours_2hop"].append(sum(hops.get(f) == 2 for f in others))
        result["fraud_propagation_score"].append(0.15 * mass / len(others) if others else 0.0)
        result["distance_to_nearest_fraud"].append(min((hops[f] for f in others if f in hops), default=None))
        result["common_neighbors_with_frauds"].append(sum(bool(set(both[w]) & others) for w in both[u]))
        result["fraud_cluster_membership"].append(int(any(group[f] == group[u] for f in others)))
    return result


@examples
@given(paid=payments, label=labels, status=statuses)
def test_every_feature_equals_the_slow_way(paid: Any, label: Any, status: Any, history: Any, rows_at: Any) -> None:
    """Counts must be equal and the score equal to 1e-9, whatever the graph and the labels."""
    label = [entry for entry in label if entry[0] < len(paid)]
    status = [entry for entry in status if entry[0] < len(paid)]
    edges = history(payments=paid, statuses=status, labels=label).edges()
    graph = graph_at(edges, NOW)
    names = [a for a, node in zip(edges.account_ids, graph.node_of_account, strict=True) if node >= 0]
    frauds = frauds_of(paid, label)
    assert {names[i] for i in np.flatnonzero(known_frauds(edges, graph))} == frauds
    wanted = expected(graph, communities.communities(graph.together), names, frauds)
    rows = rows_at(edges, NOW, names)
    for feature in PROXIMITY.features:
        column = feature.compute(rows)
        if feature.schema.name == "fraud_propagation_score":
            np.testing.assert_allclose(column, wanted[feature.schema.name], rtol=1e-9, atol=1e-12)
        else:
            assert column.tolist() == wanted[feature.schema.name], feature.schema.name


@examples
@given(paid=payments, label=labels, account=st.sampled_from(ACCOUNTS))
def test_an_accounts_own_label_is_no_feature(paid: Any, label: Any, account: str, history: Any, rows_at: Any) -> None:
    """Whether an account itself is known as fraudulent must not change its row."""
    label = [entry for entry in label if entry[0] < len(paid)]
    # A payment to itself names the account and nobody else, and is no edge.
    paid = [*paid, (account, account, 0)]
    accused = [*label, (len(paid) - 1, "sender", 1)]
    plain, known = (history(payments=paid, labels=chosen).edges() for chosen in (label, accused))
    one, two = rows_at(plain, NOW, [account]), rows_at(known, NOW, [account])
    for feature in PROXIMITY.features:
        innocent, guilty = feature.compute(one), feature.compute(two)
        if feature.schema.name == "fraud_propagation_score":
            np.testing.assert_allclose(innocent, guilty, rtol=0, atol=1e-12)
        else:
            assert innocent.tolist() == guilty.tolist(), feature.schema.name


def test_a_lone_pair_shows_nothing_of_its_own(history: Any, by_account: Any) -> None:
    """Two accounts that deal with each other only must not hand one's own label back to it."""
    edges = history(payments=[("a", "b", 1), ("x", "y", 1)], labels=[(0, "sender", 2)]).edges()
    score = by_account(edges, NOW, PROXIMITY.features[2].compute)
    assert score["a"] == 0.0
    assert score["b"] > 0.0
    assert score["x"] == score["y"] == 0.0


@examples
@given(paid=payments, label=labels, later=payments)
def test_the_future_changes_no_bit(paid: Any, label: Any, later: Any, history: Any, rows_at: Any) -> None:
    """Payments, statuses and labels at or after as_of must leave every past row as it was, bit for bit."""
    label = [entry for entry in label if entry[0] < len(paid)]
    new = [(s, f"A{r}", NOW + ts) for s, r, ts in later]
    verdicts = [(i, "both" if i % 2 else None, NOW + i) for i in range(len(paid) + len(new))]
    failures = [(i, "failed", NOW) for i in range(len(paid))]
    before = history(payments=paid, labels=label).edges()
    after = history(payments=[*paid, *new], labels=[*label, *verdicts], statuses=failures).edges()
    accounts = sorted({a for s, r, ts in paid if ts < NOW for a in (s, r)})
    then, now = rows_at(before, NOW, accounts), rows_at(after, NOW, accounts)
    for feature in PROXIMITY.features:
        one, two = feature.compute(then), feature.compute(now)
        assert one.tolist() == two.tolist(), feature.schema.name


def test_a_corrected_label_clears_the_account(history: Any, by_account: Any) -> None:
    """The latest known label wins: once found genuine, an account must stop counting as fraud."""
    edges = history(payments=[("a", "b", 1)], labels=[(0, "sender", 2), (0, None, 50)]).edges()
    connected = PROXIMITY.features[0].compute
    assert by_account(edges, 50, connected)["b"] == 1
    assert by_account(edges, 51, connected)["b"] == 0


def test_more_than_64_frauds_at_two_hops(history: Any, by_account: Any) -> None:
    """Frauds beyond the first word of 64 bits must be counted, each once, through a hub."""
    frauds = [f"f{i:03d}" for i in range(150)]
    paid = [(f, hub, 1) for f in frauds for hub in ("hub1", "hub2")] + [("hub1", "me", 2), ("hub2", "me", 2)]
    edges = history(payments=paid, labels=[(2 * i, "sender", 3) for i in range(150)]).edges()
    count = by_account(edges, NOW, PROXIMITY.features[1].compute)
    assert count["me"] == 150
    assert count["f000"] == 149
    assert count["hub1"] == 0
