"""Figures against scikit-learn and against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from graph_features.clock import DAY_MS
from training.metrics import (
    average_precision,
    budget_threshold,
    calibration,
    card_precision,
    precision_recall,
    roc_auc,
)

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=60)


@given(ROWS)
def test_ranking_figures_equal_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    """AUC and AP are scikit-learn's, ties included; they are NaN where a class is missing."""
    is_fraud = np.array([fraud for fraud, _ in rows])
    score = np.array([value for _, value in rows]) / 8
    if is_fraud.all() or not is_fraud.any():
        assert math.isnan(roc_auc(is_fraud, score))
    else:
        assert roc_auc(is_fraud, score) == pytest.approx(roc_auc_score(is_fraud, score))
    if is_fraud.any():
        assert average_precision(is_fraud, score) == pytest.approx(average_precision_score(is_fraud, score))
    else:
        assert math.isnan(average_precision(is_fraud, score))


def test_precision_recall_takes_ties_as_one_step() -> None:
    """Equal scores are one point of the curve."""
    precision, recall, score = precision_recall(np.array([True, False, True]), np.array([0.9, 0.5, 0.5]))
    np.testing.assert_allclose(precision, [1.0, 2 / 3])
    np.testing.assert_allclose(recall, [0.5, 1.0])
    np.testing.assert_allclose(score, [0.9, 0.5])


def test_card_precision_by_hand() -> None:
    """The k best senders a day count once each, a detected one never again, and the divisor is k."""
    sender = np.array(["a", "a", "b", "c", "a", "b", "c"], dtype=object)
    day = np.array([0, 0, 0, 0, 1, 1, 1])
    is_fraud = np.array([True, False, False, True, True, True, False])
    score = np.array([0.1, 0.9, 0.8, 0.2, 0.99, 0.7, 0.6])
    # Day 0: a (0.9, compromised) and b (0.8, not) are the two best. Day 1: a is gone; b (compromised) and c are left.
    assert card_precision(is_fraud, score, day * DAY_MS, sender, k=2) == [0.5, 0.5]
    assert card_precision(is_fraud, score, day * DAY_MS, sender, k=100) == [0.02, 0.01]


def test_calibration_of_a_perfect_and_a_biased_score() -> None:
    """Scores that equal the observed share have no error; ones that are too high by 0.3 have 0.3."""
    is_fraud = np.arange(1_000) % 5 == 0
    right, biased = np.full(1_000, 0.2), np.full(1_000, 0.5)
    assert calibration(is_fraud, right, bins=1).expected_error == pytest.approx(0)
    assert calibration(is_fraud, biased, bins=1).expected_error == pytest.approx(0.3)
    assert calibration(is_fraud, right).brier == pytest.approx(0.16)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(1, 50))
def test_threshold_keeps_the_budget(values: list[int], budget: int) -> None:
    """No threshold raises more alerts than the budget of its days, however many scores are equal."""
    score = np.array(values, np.float32) / 20
    event_ms = np.arange(len(values)) * DAY_MS // 50
    threshold = budget_threshold(score, event_ms, alerts_per_day=budget, largest_share=0.5)
    days = max(1.0, (event_ms[-1] - event_ms[0]) / DAY_MS)
    assert (score >= threshold).sum() <= min(budget * days, 0.5 * len(values))
    lower = np.unique(score[score < threshold])
    if len(lower):
        # And the next lower one would raise too many.
        assert (score >= lower[-1]).sum() > int(min(budget * days, 0.5 * len(values)))
