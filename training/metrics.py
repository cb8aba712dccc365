"""How good scores are: ranking (AUC, AP, CP@k), calibration, and the threshold that an alert budget allows.

NumPy only. Ties are handled exactly: equal scores count as one step of the curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_features.clock import DAY_MS

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


def roc_auc(is_fraud: Bools, score: Floats) -> float:
    """Probability that a fraud scores above a genuine payment, ties one half; NaN unless both classes are there."""
    positives = int(is_fraud.sum())
    negatives = len(is_fraud) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    return float((rank[inverse][is_fraud].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def precision_recall(is_fraud: Bools, score: Floats) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and score at every distinct score, highest first; each [n]."""
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], np.cumsum(is_fraud[order])
    last_of_tie = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1) if len(ranked) else np.empty(0, np.int64)
    flagged = last_of_tie + 1
    found = hits[last_of_tie]
    return found / np.maximum(flagged, 1), found / max(1, int(is_fraud.sum())), ranked[last_of_tie]


def average_precision(is_fraud: Bools, score: Floats) -> float:
    """Area under the precision-recall steps (no interpolation); NaN without any fraud."""
    if not is_fraud.any():
        return float("nan")
    precision, recall, _ = precision_recall(is_fraud, score)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def card_precision(is_fraud: Bools, score: Floats, event_ms: Int64, sender: npt.NDArray[Any], *, k: int) -> list[float]:
    """Per day with payments, oldest first: the share of compromised senders among the `k` highest ones (CP@k).

    A sender counts with the highest score and the highest label of the day. A compromised sender that was among the
    `k` is detected, and removed on later days. Days are UTC. The divisor is always `k`.
    Source: Le Borgne et al., Reproducible Machine Learning for Credit Card Fraud Detection, section "Card Precision".
    """
    codes = np.unique(sender, return_inverse=True)[1]
    day = event_ms // DAY_MS
    detected = np.zeros(int(codes.max(initial=-1)) + 1, bool)
    precision: list[float] = []
    for one_day in np.unique(day):
        rows = np.flatnonzero((day == one_day) & ~detected[codes])
        best = np.full(len(detected), -np.inf)
        compromised = np.zeros(len(detected), bool)
        np.maximum.at(best, codes[rows], score[rows])
        np.logical_or.at(compromised, codes[rows], is_fraud[rows])
        top = np.argsort(-best, kind="stable")[:k]
        found = top[np.isfinite(best[top]) & compromised[top]]
        detected[found] = True
        precision.append(len(found) / k)
    return precision


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far scores are from observed shares. `bins` holds (mean score, observed share, rows) of equal-count bins."""

    brier: float
    expected_error: float
    bins: tuple[tuple[float, float, int], ...]


def calibration(is_fraud: Bools, score: Floats, *, bins: int = 20) -> Calibration:
    """Measure calibration over equal-count bins of the score; NaN figures without rows."""
    if len(score) == 0:
        return Calibration(brier=float("nan"), expected_error=float("nan"), bins=())
    order = np.argsort(score, kind="stable")
    groups = [group for group in np.array_split(order, min(bins, len(order))) if len(group)]
    table = tuple((float(score[g].mean()), float(is_fraud[g].mean()), len(g)) for g in groups)
    error = sum(abs(mean - share) * rows for mean, share, rows in table) / len(score)
    return Calibration(brier=float(np.mean((score - is_fraud) ** 2)), expected_error=float(error), bins=table)


def budget_threshold(score: Floats, event_ms: Int64, *, alerts_per_day: int, largest_share: float) -> float:
    """The lowest threshold that raises on average at most `alerts_per_day`, and never more than `largest_share` of all.

    A payment is an alert when its score is at or above the threshold. Returns a value in (0, 1].
    """
    if len(score) == 0:
        return 1.0
    days = max(1.0, (int(event_ms.max()) - int(event_ms.min())) / DAY_MS)
    alerts = int(min(alerts_per_day * days, largest_share * len(score)))
    ranked = np.sort(score)[::-1]
    if alerts >= len(ranked):
        return float(ranked[-1])
    # The first score that is one too many must stay below.
    above = ranked[ranked > ranked[alerts]]
    return float(above[-1]) if len(above) else float(np.nextafter(np.float32(ranked[0]), np.float32(2)))
