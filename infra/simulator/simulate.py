"""Runs the simulation day by day, a bounded number of payments at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from graph_features.clock import DAY_MS, MAX_EVENT_MS, MIN_EVENT_MS, from_ms, to_ms
from graph_features.errors import InvalidInputError
from infra.simulator.everyday import everyday
from infra.simulator.files import SimulationFiles
from infra.simulator.fraud import fraud
from infra.simulator.outcomes import labels, statuses
from infra.simulator.payments import GENUINE, SCENARIOS, Payments
from infra.simulator.population import Population, populate

START = datetime(2025, 1, 1, tzinfo=UTC)
MIN_ACCOUNTS, MIN_DAYS = 50, 2
_ROWS_AT_ONCE = 200_000
_LONGEST_DELAY_MS = 365 * DAY_MS  # labels and reversals lie after the last payment

Progress = Callable[[float, float | None, str], None]
"""progress(days done, days, text)"""


@dataclass(frozen=True, kw_only=True)
class SimulationReport:
    """What was written to `out`: rows per file, and fraudulent payments per scenario."""

    out: Path
    accounts: int
    transactions: int
    statuses: int
    labels: int
    scenarios: dict[str, int]

    @property
    def frauds(self) -> int:
        return sum(self.scenarios.values())


def simulate(
    *,
    accounts: int,
    days: int,
    seed: int,
    out: Path,
    start: datetime = START,
    payments_per_day: float = 0.5,
    progress: Progress | None = None,
) -> SimulationReport:
    """Write `days` days in the life of `accounts` customers to the folder `out`; same arguments, same bytes.

    `payments_per_day` is what a customer does on average; shops, cash machines, employers and landlords come on top of
    the customers. Files of an earlier run are replaced at the end. Raises InvalidInputError.
    """
    start_ms = _checked(accounts, days, seed, start, payments_per_day)
    rng = np.random.Generator(np.random.PCG64(seed))
    people = populate(rng, customers=accounts, days=days, per_day=payments_per_day)
    planted = fraud(rng, people, days=days, expected=accounts * days * payments_per_day)
    planted = planted.with_times(start_ms + planted.ts_ms)
    counts = dict.fromkeys(("transactions", "statuses", "labels"), 0)
    days_at_once = max(1, int(_ROWS_AT_ONCE / (accounts * payments_per_day)))
    with SimulationFiles(out, people) as files:
        for first_day in range(0, days, days_at_once):
            last_day = min(first_day + days_at_once, days)
            payments = _part(rng, people, planted, first_day, last_day, start_ms)
            known, named = statuses(rng, payments), labels(rng, payments)
            files.write(payments, known, named)
            for name, rows in (("transactions", payments.ts_ms), ("statuses", known.row), ("labels", named.row)):
                counts[name] += len(rows)
            if progress is not None:
                progress(last_day, days, f"{counts['transactions']:,} payments")
        report = SimulationReport(out=out, accounts=len(people.accounts.ids), scenarios=_scenarios(planted), **counts)
        files.write_readme(_facts(report, days, seed, start_ms))
    return report


def _checked(accounts: int, days: int, seed: int, start: datetime, payments_per_day: float) -> int:
    if accounts < MIN_ACCOUNTS:
        raise InvalidInputError(field="accounts", expected=f"{MIN_ACCOUNTS} or more", got=accounts)
    if days < MIN_DAYS:
        raise InvalidInputError(field="days", expected=f"{MIN_DAYS} or more", got=days)
    if seed < 0:
        raise InvalidInputError(field="seed", expected="0 or more", got=seed)
    if not 0 < payments_per_day <= 100:
        raise InvalidInputError(field="payments_per_day", expected="more than 0, at most 100", got=payments_per_day)
    start_ms = to_ms(start)
    if not MIN_EVENT_MS <= start_ms <= MAX_EVENT_MS - days * DAY_MS - _LONGEST_DELAY_MS:
        raise InvalidInputError(field="start", expected="a time that leaves room before 2100", got=start)
    return start_ms


def _part(
    rng: np.random.Generator, people: Population, planted: Payments, first_day: int, last_day: int, start_ms: int
) -> Payments:
    """All payments of the days [first_day, last_day), in order of time."""
    bounds = [start_ms + first_day * DAY_MS, start_ms + last_day * DAY_MS]
    first, last = np.searchsorted(planted.ts_ms, bounds)
    genuine = everyday(rng, people, first_day=first_day, last_day=last_day, start_ms=start_ms)
    return Payments.concat([genuine, planted.take(slice(int(first), int(last)))]).sorted()


def _scenarios(planted: Payments) -> dict[str, int]:
    rows = np.bincount(planted.scenario[planted.scenario != GENUINE], minlength=len(SCENARIOS))
    return {name: int(count) for name, count in zip(SCENARIOS, rows, strict=True)}


def _facts(report: SimulationReport, days: int, seed: int, start_ms: int) -> str:
    lines = [
        f"{report.accounts:,} accounts, {days} days from {from_ms(start_ms):%Y-%m-%d}, seed {seed}",
        f"{report.transactions:,} payments, {report.frauds:,} of them fraudulent:",
        *(f"  {name:22}{count:8,}" for name, count in report.scenarios.items()),
    ]
    return "\n".join(lines)
