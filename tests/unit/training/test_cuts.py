"""Cut points of columns: where they lie, which are kept, and what the network sees of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from training.cuts import CutPoints
from training.model import Cuts
from training.scaling import OUTLIER_LIMIT


def payments(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """4,000 payments: noise, amounts of which those above 220 are frauds, a constant, nothing, and another's trace."""
    rng = np.random.default_rng(seed)
    amount = rng.exponential(40, 4_000)
    is_fraud = amount > 220
    trace = np.where(rng.random(4_000) < 0.5, np.nan, is_fraud * 3 + rng.normal(size=4_000))
    x = np.stack([rng.normal(size=4_000), amount, np.ones(4_000), np.full(4_000, np.nan), trace], axis=1)
    return x.astype(np.float32), is_fraud


def test_an_edge_is_found_where_it_is() -> None:
    """The cut point that tells most lies between the largest genuine and the smallest fraudulent amount."""
    x, is_fraud = payments()
    found = CutPoints.find(x, is_fraud, most=5)
    assert len(found) == 5
    assert found.column[0] == 1
    assert x[~is_fraud, 1].max() <= found.at[0] < x[is_fraud, 1].min()
    assert set(found.column) <= {0, 1, 4}


@pytest.mark.parametrize("most", [0, 1, 3, 1_000])
def test_no_more_than_wanted_and_the_best_first(most: int) -> None:
    """A smaller set is the beginning of a larger one; without any wanted, or no fraud to tell, there is none."""
    x, is_fraud = payments()
    all_of_them, some = CutPoints.find(x, is_fraud, most=1_000), CutPoints.find(x, is_fraud, most=most)
    assert len(some) == min(most, len(all_of_them))
    for name in ("column", "at", "below", "above"):
        np.testing.assert_array_equal(getattr(some, name), getattr(all_of_them, name)[:most])
    assert len(CutPoints.find(x, np.zeros(len(x), np.bool_), most=5)) == 0


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, (60, 2), elements=st.sampled_from([0.0, 1.0, np.nextafter(np.float32(1), 2), 3e30, np.nan])),
    hnp.arrays(np.bool_, 60),
)
def test_what_the_network_sees_is_standardised(x: np.ndarray, is_fraud: np.ndarray) -> None:
    """Whatever the columns, each input has two finite values, one for below and null alike; mean 0, deviation 1."""
    found = CutPoints.find(x, is_fraud, most=8)
    module = Cuts(len(found))
    module.load(found)
    seen = module.beside(torch.zeros(60, 1), torch.from_numpy(x)).numpy()[:, 1:]
    assert seen.shape == (60, len(found))
    for at, column in enumerate(found.column):
        beyond = x[:, column] > found.at[at]
        assert 0 < beyond.sum() < 60
        np.testing.assert_array_equal(seen[:, at], np.where(beyond, found.above[at], found.below[at]))
    assert np.abs(seen).max(initial=0) <= OUTLIER_LIMIT
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std(axis=0), 1, atol=1e-5)
