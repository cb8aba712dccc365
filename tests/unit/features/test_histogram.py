"""Bins of amounts and the percentiles read from them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_features.contracts import MAX_AMOUNT_MINOR
from graph_features.histogram import HISTOGRAM_BINS, HISTOGRAM_EDGES, amount_percentiles, histogram_bin

amounts = st.integers(1, MAX_AMOUNT_MINOR)


def test_edges_ascend_through_every_power_of_ten() -> None:
    """Edges are distinct, ascending and hold each decade from 1 to the largest amount."""
    assert np.all(np.diff(HISTOGRAM_EDGES) > 0)
    assert set(HISTOGRAM_EDGES.tolist()) >= {10**k for k in range(16)}
    ratios = HISTOGRAM_EDGES[40:] / HISTOGRAM_EDGES[39:-1]
    assert ratios == pytest.approx(np.full(len(ratios), 10 ** (1 / 8)), rel=1e-3)


@given(amounts)
def test_an_amount_lies_in_its_bin(amount: int) -> None:
    """The bin's lower edge is at most the amount, the next edge is above it."""
    (found,) = histogram_bin([amount])
    assert HISTOGRAM_EDGES[found] <= amount
    assert found == HISTOGRAM_BINS - 1 or amount < HISTOGRAM_EDGES[found + 1]


@given(st.lists(st.tuples(st.lists(amounts, max_size=8), amounts), min_size=1, max_size=6))
def test_percentiles_are_mid_ranks_of_bins(rows: list[tuple[list[int], int]]) -> None:
    """Rank = (lower bins + half of the own bin) over all; NaN without history; a slice of a column reads the same."""
    lists, wanted = [], []
    for past, amount in rows:
        bins = histogram_bin(past)
        lists.append([v for b in np.unique(bins) for v in (int(b), int(np.sum(bins == b)))])
        (own,) = histogram_bin([amount])
        wanted.append((np.sum(bins < own) + np.sum(bins == own) / 2) / len(past) if past else np.nan)
    values = np.array([v for one in lists for v in one], np.int64)
    offsets = np.concatenate(([0], np.cumsum([len(one) for one in lists])))
    asked = np.array([amount for _, amount in rows])
    assert amount_percentiles(offsets, values, asked) == pytest.approx(np.array(wanted), nan_ok=True)
    tail = amount_percentiles(offsets[1:], values, asked[1:])
    assert tail == pytest.approx(np.array(wanted[1:]), nan_ok=True)


@pytest.mark.parametrize("module", ["histogram", "neighbour_spec", "catalog", "schema"])
def test_what_scoring_and_listing_read_needs_no_kernels(module: str) -> None:
    """Light modules, and the whole catalogue, come without numba."""
    code = f"""
import sys
from graph_features.{module} import *
globals().get('catalog', dict)()
sys.exit('numba' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
