"""Amounts against the account's own robust history: quartiles, and which payments were unusually large.

Whatever became of a payment, it counts from when it was tried, so that nothing here ever changes but by payments.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from graph_features.edges import EdgeTable, Int64
from graph_features.kernels.timeline import Side, read_only, timeline

FENCE_RANGES: Final = 1.5
LEAST_BEFORE: Final = 4
"""An amount is unusual when it lies more than 1.5 interquartile ranges above the upper quartile of the amounts that the
account sent, or received, before it, four at least. Source: Tukey 1977, Exploratory Data Analysis."""

Flags = npt.NDArray[np.bool_]


def tried_before(
    edges: EdgeTable, side: Side, account: npt.NDArray[np.integer], as_of_ms: Int64
) -> tuple[Int64, Int64]:
    """Return where each account's entries begin in the timeline of `side`, and how many of them lie before as_of."""
    from graph_features.kernels.quartiles import count_until

    payments = timeline(edges, side)
    tried = count_until(payments.offsets, payments.ts_ms, read_only(account), read_only(as_of_ms))
    return payments.offsets[np.maximum(account, 0)], tried


def amount_quartiles(edges: EdgeTable, side: Side) -> Int64:
    """Return int64 (3, n): quartiles of each entry's amount and those of its account before it, by nearest rank."""

    def build() -> Int64:
        from graph_features.kernels.quartiles import sweep_quartiles

        payments = timeline(edges, side)
        return np.asarray(sweep_quartiles(payments.offsets, payments.amount))

    return edges.memo(("quartiles", side), build)


def unusual_amounts(edges: EdgeTable, side: Side) -> Flags:
    """Return per entry of the timeline of `side` whether its amount was unusual when it was tried."""

    def build() -> Flags:
        payments = timeline(edges, side)
        account = np.repeat(np.arange(len(payments.offsets) - 1), np.diff(payments.offsets))
        start, tried = tried_before(edges, side, account, payments.ts_ms)
        lower, _, upper = amount_quartiles(edges, side)[:, np.maximum(start + tried - 1, 0)]
        return np.asarray((tried >= LEAST_BEFORE) & (payments.amount - upper > FENCE_RANGES * (upper - lower)))

    return edges.memo(("unusual", side), build)


def unusual_before(edges: EdgeTable, side: Side) -> Int64:
    """Return int64 [n + 1]: how many entries before each place in the timeline are unusual."""
    return edges.memo(
        ("unusual_before", side),
        lambda: np.concatenate(([0], np.cumsum(unusual_amounts(edges, side), dtype=np.int64))),
    )


def unusual_ms(edges: EdgeTable, side: Side) -> Int64:
    """Return when each of the unusual entries was tried, in the timeline's order."""
    return edges.memo(
        ("unusual_ms", side),
        lambda: np.asarray(timeline(edges, side).ts_ms[unusual_amounts(edges, side)], np.int64),
    )


def unusual_edges(edges: EdgeTable, side: Side) -> Flags:
    """Return the same per payment of the table: unusual for its sender, or for its receiver."""

    def build() -> Flags:
        unusual = np.zeros(edges.n_edges, np.bool_)
        unusual[timeline(edges, side).edge] = unusual_amounts(edges, side)
        return unusual

    return edges.memo(("unusual_edges", side), build)
