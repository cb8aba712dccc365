"""How much and how often an account pays and is paid.

Payments that count are those whose latest status known before as_of is completed, which is what they start with.
"""

from __future__ import annotations

import numpy as np

from graph_features.catalog import View, feature
from graph_features.clock import DAY_MS, SECOND_MS
from graph_features.edges import Float64, Int64
from graph_features.kernels.sweeps import Rhythm, WindowSums, rhythm, window_sums
from graph_features.kernels.timeline import Side
from graph_features.rows import AccountRows, Column
from graph_features.schema import Cadence, DType, Renewal
from graph_features.window_spec import BOTH_WAYS_WINDOWS, BY_NAME, COUNTERPARTY_WINDOWS, FLOW_WINDOW, WINDOWS, Window

ACTIVITY = View(
    name="account_activity",
    entity="account",
    cadence=Cadence.EVENT,
    renewed_by=(Renewal.TRANSACTION, Renewal.STATUS),
    description="Counts, amounts, counterparties and rhythm of the payments that an account sent and received.",
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

SIDES = (Side.SENT, Side.RECEIVED)
ALL_TIME = BY_NAME["all"]


def _sums(rows: AccountRows, side: Side, window: Window) -> WindowSums:
    sums = rows.memo(
        ("window_sums", side),
        lambda: window_sums(rows.edges, side, rows.account, rows.as_of_ms, WINDOWS, distinct=True),
    )
    return sums.at(WINDOWS.index(window))


def _rhythm(rows: AccountRows) -> Rhythm:
    return rows.memo("rhythm", lambda: rhythm(rows.edges, Side.EITHER, rows.account, rows.as_of_ms))


def ratio(numerator: Int64 | Float64, denominator: Int64) -> Float64:
    """Return numerator / denominator, NaN where the denominator is 0 or less."""
    from graph_features.kernels.columns import ratios

    return ratios(np.ascontiguousarray(numerator), np.ascontiguousarray(denominator, np.int64))


def known_where(values: Int64, known: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Column:
    """Return integers that are null where not `known`."""
    return np.ma.MaskedArray(values, mask=~known)


@feature(view=ACTIVITY, sides=SIDES, windows=WINDOWS, dtype=DType.INT64, unit="payments", range="0 or more", empty=0)
def count(rows: AccountRows, side: Side, window: Window) -> Column:
    """Payments {side}, window: {window}."""
    return _sums(rows, side, window).count


@feature(view=ACTIVITY, sides=SIDES, windows=WINDOWS, dtype=DType.INT64, unit="minor units", range="0 or more", empty=0)
def amount_sum(rows: AccountRows, side: Side, window: Window) -> Column:
    """Sum of amounts {side}, window: {window}."""
    return _sums(rows, side, window).total


@feature(view=ACTIVITY, sides=SIDES, windows=WINDOWS, dtype=DType.FLOAT64, unit="minor units", range="0 or more")
def amount_mean(rows: AccountRows, side: Side, window: Window) -> Column:
    """Mean amount {side}, window: {window}; null without a payment."""
    sums = _sums(rows, side, window)
    return ratio(sums.total, sums.count)


@feature(view=ACTIVITY, sides=SIDES, windows=WINDOWS, dtype=DType.INT64, unit="minor units", range="0 or more")
def amount_max(rows: AccountRows, side: Side, window: Window) -> Column:
    """Largest amount {side}, window: {window}; null without a payment."""
    sums = _sums(rows, side, window)
    return known_where(sums.largest, sums.count > 0)


@feature(view=ACTIVITY, sides=SIDES, windows=WINDOWS, dtype=DType.FLOAT64, unit="minor units", range="0 or more")
def amount_std(rows: AccountRows, side: Side, window: Window) -> Column:
    """Sample standard deviation of amounts {side}, window: {window}; null below two payments."""
    sums = _sums(rows, side, window)
    return np.sqrt(ratio(sums.deviations, sums.count - 1))


@feature(view=ACTIVITY, windows=(FLOW_WINDOW, ALL_TIME), dtype=DType.INT64, unit="minor units", range="any", empty=0)
def net_flow(rows: AccountRows, window: Window) -> Column:
    """Sum of amounts received less sum of amounts sent, window: {window}."""
    return _sums(rows, Side.RECEIVED, window).total - _sums(rows, Side.SENT, window).total


@feature(
    view=ACTIVITY,
    windows=(*COUNTERPARTY_WINDOWS, ALL_TIME),
    dtype=DType.INT64,
    unit="accounts",
    range="0 or more",
    empty=0,
)
def unique_receivers(rows: AccountRows, window: Window) -> Column:
    """Distinct accounts paid, window: {window}."""
    return _sums(rows, Side.SENT, window).distinct


@feature(
    view=ACTIVITY,
    windows=(*COUNTERPARTY_WINDOWS, ALL_TIME),
    dtype=DType.INT64,
    unit="accounts",
    range="0 or more",
    empty=0,
)
def unique_senders(rows: AccountRows, window: Window) -> Column:
    """Distinct accounts that paid this one, window: {window}."""
    return _sums(rows, Side.RECEIVED, window).distinct


@feature(view=ACTIVITY, windows=BOTH_WAYS_WINDOWS, dtype=DType.INT64, unit="payments", range="0 or more", empty=0)
def transaction_count(rows: AccountRows, window: Window) -> Column:
    """Payments sent plus payments received, so that one to oneself counts twice, window: {window}."""
    return _sums(rows, Side.SENT, window).count + _sums(rows, Side.RECEIVED, window).count


@feature(view=ACTIVITY, dtype=DType.FLOAT64, unit="payments per day", range="above 0")
def transaction_frequency(rows: AccountRows) -> Column:
    """Payments sent or received over the days from the first to the last; null where both are one instant."""
    times = _rhythm(rows)
    span_ms = np.where(times.total_count > 0, times.last_ms - times.first_ms, 0)
    return ratio(times.total_count * DAY_MS, span_ms)


@feature(view=ACTIVITY, dtype=DType.FLOAT64, unit="seconds", range="0 or more")
def transaction_gap_mean_all(rows: AccountRows) -> Column:
    """Mean time between one payment sent or received and the next; null below two payments."""
    times = _rhythm(rows)
    return ratio((times.last_ms - times.first_ms) / SECOND_MS, times.total_count - 1)


@feature(view=ACTIVITY, dtype=DType.FLOAT64, unit="seconds squared", range="0 or more")
def transaction_gap_variance_all(rows: AccountRows) -> Column:
    """Sample variance of the time between one payment sent or received and the next; null below three payments."""
    times = _rhythm(rows)
    return ratio(times.gap_deviations / SECOND_MS**2, times.total_count - 2)


@feature(view=ACTIVITY, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def first_transaction_timestamp(rows: AccountRows) -> Column:
    """Time of the first payment sent or received; null without one."""
    times = _rhythm(rows)
    return known_where(times.first_ms, times.total_count > 0)


@feature(view=ACTIVITY, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def last_transaction_timestamp(rows: AccountRows) -> Column:
    """Time of the last payment sent or received; null without one."""
    times = _rhythm(rows)
    return known_where(times.last_ms, times.total_count > 0)


@feature(view=ACTIVITY, dtype=DType.INT64, unit="hour, UTC", range="0 to 23")
def hour_of_day_mode(rows: AccountRows) -> Column:
    """Hour with most payments sent or received, the earliest of equals; null without one."""
    times = _rhythm(rows)
    return known_where(times.hour, times.total_count > 0)


@feature(view=ACTIVITY, dtype=DType.INT64, unit="weekday, Monday 0", range="0 to 6")
def day_of_week_mode(rows: AccountRows) -> Column:
    """Weekday (UTC) with most payments sent or received, the earliest of equals; null without one."""
    times = _rhythm(rows)
    return known_where(times.weekday, times.total_count > 0)
