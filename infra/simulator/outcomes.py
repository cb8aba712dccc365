"""What becomes known about payments later: statuses, and labels after a delay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graph_features.clock import DAY_MS, HOUR_MS
from graph_features.contracts import STATUSES
from infra.simulator.payments import BOTH, GENUINE, Payments
from infra.simulator.places import TRANSFER
from infra.simulator.population import Int

COMPLETED, FAILED, REVERSED = (STATUSES.index(name) for name in ("completed", "failed", "reversed"))

LABEL_DELAY_MS = 7 * DAY_MS


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Events about payments: `row` is the payment's position, `value` a status, or whether it is fraud."""

    row: Int
    ts_ms: Int
    value: Int
    party: Int

    def sorted(self) -> Outcomes:
        order = np.lexsort((self.row, self.ts_ms))
        return Outcomes(row=self.row[order], ts_ms=self.ts_ms[order], value=self.value[order], party=self.party[order])


def statuses(rng: np.random.Generator, payments: Payments) -> Outcomes:
    """Some fail within seconds; some transfers are confirmed within a day; some of the rest are reversed days later."""
    n = len(payments)
    is_fraud = payments.scenario != GENUINE
    failed = rng.random(n) < np.where(is_fraud, 0.05, 0.012)
    confirmed = ~failed & (payments.channel == TRANSFER) & (rng.random(n) < 0.4)
    reverse = ~failed & (rng.random(n) < np.where(is_fraud, 0.35, 0.003))
    parts = (
        (np.flatnonzero(failed), FAILED, rng.integers(0, 5_000, n)),
        (np.flatnonzero(confirmed), COMPLETED, rng.integers(1_000, DAY_MS, n)),
        (np.flatnonzero(reverse), REVERSED, 2 * DAY_MS + rng.exponential(6 * DAY_MS, n).astype(np.int64)),
    )
    row = np.concatenate([rows for rows, _, _ in parts])
    return Outcomes(
        row=row,
        ts_ms=np.concatenate([payments.ts_ms[rows] + delay[rows] for rows, _, delay in parts]),
        value=np.concatenate([np.full(len(rows), status) for rows, status, _ in parts]),
        party=np.full(len(row), BOTH),
    ).sorted()


def labels(rng: np.random.Generator, payments: Payments) -> Outcomes:
    """All are labelled after about a week; many frauds are reported sooner, some are first taken for genuine."""
    n = len(payments)
    is_fraud = payments.scenario != GENUINE
    overlooked = is_fraud & (rng.random(n) < 0.12)
    reported = is_fraud & ~overlooked & (rng.random(n) < 0.7)
    usual_ms = payments.ts_ms + LABEL_DELAY_MS + rng.integers(0, DAY_MS, n)
    early_ms = payments.ts_ms + rng.integers(6 * HOUR_MS, LABEL_DELAY_MS, n)
    late_ms = usual_ms + rng.integers(DAY_MS, 14 * DAY_MS, n)
    corrected = np.flatnonzero(overlooked)
    row = np.concatenate([np.arange(n), corrected])
    value = np.concatenate([is_fraud & ~overlooked, np.ones(len(corrected), np.bool_)]).astype(np.int64)
    party = np.where(value == 1, payments.party[row], BOTH)
    ts_ms = np.concatenate([np.where(reported, early_ms, usual_ms), late_ms[corrected]])
    return Outcomes(row=row, ts_ms=ts_ms, value=value, party=party).sorted()
