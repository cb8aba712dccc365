"""Batches, neighbour truncation, and slicing of tuples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_features.tuples import InputTuples
from training.sampler import BatchSampler, positive_weight, recent_neighbours


@given(st.lists(st.booleans(), min_size=1, max_size=80), st.integers(1, 20), st.integers(0, 5))
def test_an_epoch_holds_every_row_once(labels: list[bool], batch_rows: int, seed: int) -> None:
    """Batches partition the rows, are as many as announced, and repeat for the same seed and epoch."""
    sampler = BatchSampler(labels=np.array(labels), batch_rows=batch_rows, seed=seed)
    batches = list(sampler.batches(3))
    assert len(batches) == sampler.count()
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(labels)))
    for batch, again in zip(batches, sampler.batches(3), strict=True):
        np.testing.assert_array_equal(batch, again)


def test_thinning_keeps_all_frauds_and_changes_the_rest() -> None:
    """Negative subsampling keeps every fraud, the stated number of genuine rows, and takes others each epoch."""
    labels = np.arange(1_000) % 100 == 0
    sampler = BatchSampler(labels=labels, batch_rows=16, seed=0, negatives_per_positive=5)
    first, second = sampler.rows(1), sampler.rows(2)
    assert labels[first].sum() == 10
    assert len(first) == 60
    assert sampler.count() == 4
    assert set(first[~labels[first]]) != set(second[~labels[second]])


def test_weight_is_the_root_of_the_odds_within_its_limit() -> None:
    """One fraud in 26 weighs 5, one in 10,001 the limit, and a balanced set 1."""
    assert positive_weight(np.arange(26) == 0, limit=50) == pytest.approx(5)
    assert positive_weight(np.arange(10_001) == 0, limit=7) == 7
    assert positive_weight(np.array([True, False]), limit=7) == 1


def test_only_the_most_recent_neighbours_stay(make_tuples: Callable[..., InputTuples]) -> None:
    """Truncation keeps each side's first k edges, which are its newest, and no other."""
    tuples = make_tuples(50)
    kept = recent_neighbours(tuples, 2)
    for side in range(100):
        before = tuples.neighbour_x[tuples.neighbour_index == side]
        np.testing.assert_array_equal(kept.neighbour_x[kept.neighbour_index == side], before[:2])


def test_take_and_concat_are_inverse(make_tuples: Callable[..., InputTuples]) -> None:
    """Tuples split anywhere and put together again are the same, edges in place."""
    tuples = make_tuples(31)
    parts = [tuples.take(rows) for rows in np.array_split(np.arange(31), [4, 4, 20])]
    for name, array in InputTuples.concat(parts).feeds().items():
        np.testing.assert_array_equal(array, tuples.feeds()[name], err_msg=name)


def test_take_follows_the_order_asked_for(make_tuples: Callable[..., InputTuples]) -> None:
    """Each taken payment brings its own edges to its new place, sender's and receiver's side alike."""
    tuples, rows = make_tuples(9), np.array([7, 0, 7, 3])
    taken = tuples.take(rows)
    np.testing.assert_array_equal(taken.transaction_x, tuples.transaction_x[rows])
    for place, row in enumerate(rows):
        for new_side, old_side in ((place, row), (place + 4, row + 9)):
            np.testing.assert_array_equal(
                taken.neighbour_x[taken.neighbour_index == new_side],
                tuples.neighbour_x[tuples.neighbour_index == old_side],
            )
    assert (np.diff(taken.neighbour_index) >= 0).all()
