"""Tuples as columns, and trees over them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from graph_features.errors import ModelError
from training.ladder import blend_weights
from training.tabular import OWN_VIEWS, Columns, columns
from training.trees import Trees, TreeSettings

SMALL = TreeSettings(rounds=16, members=2, bins=64, columns=1.0, most_columns=4)


def test_every_input_has_its_column(worlds: ModuleType) -> None:
    """Columns are the tuples' own values under their names; without the graph, only own payments and the request."""
    dataset, spec = worlds.World.make(payments=200).dataset(3, 9, cut_day=30), worlds.spec()
    tuples = dataset.tuples
    whole, own = columns(spec, tuples, graph=True), columns(spec, tuples, graph=False)
    assert len(whole.names) == len(set(whole.names)) == whole.x.shape[1]
    at = {name: place for place, name in enumerate(whole.names)}
    for place, name in enumerate(spec.account):
        np.testing.assert_array_equal(whole.x[:, at[f"receiver_{name}"]], tuples.receiver_x[:, place], err_msg=name)
    for place, name in enumerate(spec.transaction_names):
        np.testing.assert_array_equal(whole.x[:, at[name]], tuples.transaction_x[:, place], err_msg=name)
    for row in (0, len(tuples) // 2, len(tuples) - 1):
        edges = tuples.neighbour_x[tuples.neighbour_index == len(tuples) + row]
        found = whole.x[row, at["receiver_amount_log_mean"]]
        assert np.isnan(found) if len(edges) == 0 else found == pytest.approx(edges[:, 0].mean(), rel=1e-6)
    for name, values in zip(own.names, own.x.T, strict=True):
        np.testing.assert_array_equal(values, whole.x[:, at[name]], err_msg=name)
    views = {
        name.partition(":")[0].removeprefix("sender_").removeprefix("receiver_") for name in own.names if ":" in name
    }
    assert views == set(OWN_VIEWS)
    assert not any(name.startswith(("paid_", "reverse_")) for name in own.names)


def _table(rows: int = 400) -> tuple[Columns, Any]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows, 8)).astype(np.float32)
    x[:, 1], x[draw.random(rows) < 0.2, 3] = 7, np.nan
    names = tuple(f"c{place}" for place in range(8))
    return Columns(names=names, x=x), np.nan_to_num(x[:, 3]) + x[:, 5] > 1.5


def test_the_same_rows_give_the_same_trees() -> None:
    """Two fits agree bit for bit; what never varies is no column, and what decides is kept and brings the gain."""
    table, is_fraud = _table()
    one, other = (Trees.fit(table, is_fraud, SMALL, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.logit(table), other.logit(table))
    assert len(one.kept) <= SMALL.most_columns
    assert {3, 5} <= set(one.kept) <= {0, 2, 3, 4, 5, 6, 7}
    assert set(list(one.gain())[:2]) == {"c3", "c5"}
    assert sum(one.gain().values()) == pytest.approx(1)


def test_other_columns_are_refused() -> None:
    """Columns under other names are no input, and labels of one kind nothing to learn from."""
    table, is_fraud = _table()
    fitted = Trees.fit(table, is_fraud, SMALL, seed=0)
    with pytest.raises(ModelError, match="columns"):
        fitted.logit(Columns(names=tuple(reversed(table.names)), x=table.x))
    with pytest.raises(ModelError, match="both fraud and genuine"):
        Trees.fit(table, np.zeros(len(table.x), bool), SMALL, seed=0)


def test_a_blend_leans_to_the_better_model() -> None:
    """Noise gets a smaller share than knowledge, two equals get equal ones, and no weight is negative."""
    draw = np.random.default_rng(1)
    is_fraud = draw.random(2_000) < 0.1
    good, noise = 4.0 * is_fraud + draw.normal(size=2_000), draw.normal(size=2_000)
    first, second = blend_weights(good, noise, is_fraud)
    assert first > 5 * second >= 0
    same = blend_weights(good, good, is_fraud)
    assert sum(same) == pytest.approx(sum(blend_weights(good, good.copy(), is_fraud)))
    assert min(same) > 0
