"""Trees over accounts and their payments' graph: what they see of partners, and that no held-out label is seen."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from training.account_trees import AccountGraph, AccountTrees
from training.accounts import cross_validate_trees
from training.tabular import Columns
from training.trees import TreeSettings

SMALL = TreeSettings(rounds=30, members=1, bins=64, columns=1.0, least_weight=1.0)


def _graph(*pairs: tuple[str, str]) -> AccountGraph:
    senders, receivers = zip(*pairs, strict=True)
    payments = pa.table({"sender_id": pa.array(senders), "receiver_id": pa.array(receivers)})
    return AccountGraph.of(np.array(list("abcd"), object), payments)


def test_structure_counts_partners_and_triangles() -> None:
    """a and b pay each other, c closes a triangle; payments twice, to oneself and of strangers add nothing."""
    graph = _graph(("a", "b"), ("a", "b"), ("b", "a"), ("b", "c"), ("a", "c"), ("d", "d"), ("d", "x"), ("x", "a"))
    found = dict(zip(graph.structure.names, graph.structure.x.T, strict=True))
    assert found["partners_out"].tolist() == [2, 2, 0, 0]
    assert found["partners_in"].tolist() == [1, 1, 2, 0]
    assert found["partners"].tolist() == [2, 2, 2, 0]
    assert found["partners_both_ways"].tolist() == [1, 1, 0, 0]
    assert found["triangles"].tolist() == [1, 1, 1, 0]
    assert found["partners_rarity"].tolist() == [1, 1, 1, 0]


def test_an_accounts_own_value_does_not_come_back_to_it() -> None:
    """Whatever an account's value is, what its partners add up to for it stays the same."""
    graph = _graph(("a", "b"), ("b", "a"), ("b", "c"), ("a", "c"), ("c", "d"))
    value = np.array([0.1, 0.9, 0.4, 0.2])
    for account in range(4):
        other = value.copy()
        other[account] = 100.0
        np.testing.assert_array_equal(graph.spread("", value).x[account], graph.spread("", other).x[account])


def _world(accounts: int = 600, seed: int = 0) -> tuple[Columns, AccountGraph, pa.Table]:
    """Rings of five: half of their members look odd themselves, the others only deal with those who do."""
    draw = np.random.default_rng(seed)
    is_fraud = np.arange(accounts) < accounts // 6
    odd = is_fraud & (draw.random(accounts) < 0.5)
    own = draw.normal(size=(accounts, 3)).astype(np.float32)
    own[:, 0] += 6 * odd
    ids = np.array([f"a{number:04d}" for number in range(accounts)], object)
    pairs = [(draw.integers(accounts), draw.integers(accounts)) for _ in range(2 * accounts)]
    for first in range(0, accounts // 6, 5):
        pairs += [(first + i, first + j) for i in range(5) for j in range(5) if i != j]
    senders, receivers = np.array(pairs).T
    payments = pa.table({"sender_id": ids[senders].tolist(), "receiver_id": ids[receivers].tolist()})
    labels = pa.table({"account_id": ids.tolist(), "is_fraud": is_fraud})
    return Columns(names=("x", "y", "z"), x=own), AccountGraph.of(ids, payments), labels


def test_partners_give_members_away() -> None:
    """Members that look ordinary are found through those that do not; shuffled labels find nothing."""
    own, graph, labels = _world()
    report = cross_validate_trees(own, graph, labels, folds=3, trees=SMALL, seed=0)
    assert report.average_precision > 0.9
    shuffled = np.random.default_rng(1).permutation(labels["is_fraud"].to_numpy())
    blind = labels.set_column(1, "is_fraud", pa.array(shuffled))
    chance = cross_validate_trees(own, graph, blind, folds=3, trees=SMALL, seed=0)
    assert chance.average_precision < 2 * shuffled.mean()


def test_a_held_out_label_changes_no_score() -> None:
    """Scores of held-out accounts are the same whatever their own labels are."""
    own, graph, labels = _world(300)
    is_fraud = labels["is_fraud"].to_numpy().copy()
    held_out = np.arange(0, 300, 3)
    train = np.setdiff1d(np.arange(300), held_out)
    model = AccountTrees(own=own, graph=graph, settings=SMALL, seed=0)
    before = model.scores(is_fraud, train, held_out)
    is_fraud[held_out] = ~is_fraud[held_out]
    np.testing.assert_array_equal(before, model.scores(is_fraud, train, held_out))


@pytest.mark.parametrize("empty", [True, False])
def test_no_payment_among_them_is_no_error(empty: bool) -> None:
    """Accounts without any payment between them have a structure of zeros."""
    pairs = {"sender_id": pa.array([] if empty else ["x"], pa.string())}
    payments = pa.table({**pairs, "receiver_id": pairs["sender_id"]})
    graph = AccountGraph.of(np.array(["a", "b"], object), payments)
    assert not graph.structure.x.any()
