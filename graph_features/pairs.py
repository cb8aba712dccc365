"""What one account paid another. Payments that count: completed, as far as was known before as_of."""

from __future__ import annotations

from graph_features.activity import known_where, ratio
from graph_features.catalog import View, feature
from graph_features.edges import Int64
from graph_features.kernels.sweeps import Rhythm, WindowSums, rhythm, window_sums
from graph_features.kernels.timeline import Side, pair_index
from graph_features.rows import Column, PairRows
from graph_features.schema import Cadence, DType, Renewal

PAIR = View(
    name="pair_history",
    entity="pair",
    cadence=Cadence.EVENT,
    renewed_by=(Renewal.TRANSACTION, Renewal.STATUS),
    description="What the sender paid this receiver before.",
    modules=(
        __name__,
        "graph_features.kernels.timeline",
        "graph_features.kernels.sorting",
        "graph_features.kernels.columns",
        "graph_features.kernels.int128",
        "graph_features.kernels.windows",
        "graph_features.kernels.rhythm",
    ),
)


def _pairs(rows: PairRows) -> Int64:
    return rows.memo("pairs", lambda: pair_index(rows.edges).codes(rows.sender, rows.receiver))


def _sums(rows: PairRows) -> WindowSums:
    sums = rows.memo("sums", lambda: window_sums(rows.edges, Side.PAIRS, _pairs(rows), rows.as_of_ms, [None]))
    return sums.at(0)


def _rhythm(rows: PairRows) -> Rhythm:
    return rows.memo("rhythm", lambda: rhythm(rows.edges, Side.PAIRS, _pairs(rows), rows.as_of_ms))


@feature(view=PAIR, dtype=DType.INT64, unit="payments", range="0 or more", empty=0)
def paid_count_all(rows: PairRows) -> Column:
    """Payments from the sender to the receiver."""
    return _sums(rows).count


@feature(view=PAIR, dtype=DType.INT64, unit="minor units", range="0 or more", empty=0)
def paid_amount_sum_all(rows: PairRows) -> Column:
    """Sum of their amounts."""
    return _sums(rows).total


@feature(view=PAIR, dtype=DType.FLOAT64, unit="minor units", range="0 or more")
def paid_amount_mean_all(rows: PairRows) -> Column:
    """Mean of their amounts; null without a payment."""
    return ratio(_sums(rows).total, _sums(rows).count)


@feature(view=PAIR, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def paid_first_timestamp(rows: PairRows) -> Column:
    """Time of the first of them; null without a payment."""
    times = _rhythm(rows)
    return known_where(times.first_ms, times.total_count > 0)


@feature(view=PAIR, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def paid_last_timestamp(rows: PairRows) -> Column:
    """Time of the last of them; null without a payment."""
    times = _rhythm(rows)
    return known_where(times.last_ms, times.total_count > 0)
