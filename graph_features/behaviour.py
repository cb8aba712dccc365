"""How an account pays. Every payment it tried to make counts, failed and reversed ones included; the histograms alone
hold payments that count elsewhere too: completed, as far as was known before as_of."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_features.activity import SIDES, known_where, ratio
from graph_features.catalog import View, feature
from graph_features.edges import EdgeTable, Int64
from graph_features.kernels import sweeps
from graph_features.kernels.sweeps import Conduct, conduct
from graph_features.kernels.timeline import Side, timeline
from graph_features.kernels.unusual import amount_quartiles, tried_before, unusual_before, unusual_ms
from graph_features.rows import AccountRows, Column
from graph_features.schema import Cadence, DType, Renewal
from graph_features.settings import FeatureSettings

BEHAVIOUR = View(
    name="account_behaviour",
    entity="account",
    cadence=Cadence.EVENT,
    renewed_by=(Renewal.TRANSACTION, Renewal.STATUS),
    description="How the account pays: amounts it prefers, channels, borders, failures, reversals, bursts.",
    modules=(
        __name__,
        "graph_features.histogram",
        "graph_features.kernels.timeline",
        "graph_features.kernels.sorting",
        "graph_features.kernels.columns",
        "graph_features.kernels.conduct",
        "graph_features.kernels.bins",
        "graph_features.kernels.known_labels",
        "graph_features.kernels.quartiles",
        "graph_features.kernels.unusual",
    ),
)

ROUND_UNITS = 10
"""A round amount is a whole multiple of so many units of the base currency."""

JUST_BELOW_PERCENT = 5
"""An amount is just below a limit when it is under it by at most this share of the limit."""

HOURS_PER_DAY = 24

NEWEST = (5, 20)
"""Among how many of an account's newest payments the unusual ones are counted."""

Flags = npt.NDArray[np.bool_]


def _conduct(rows: AccountRows) -> Conduct:
    return rows.memo("conduct", lambda: conduct(rows.edges, rows.account, rows.as_of_ms))


def _quartiles(rows: AccountRows, side: Side) -> tuple[Int64, Int64]:
    """Return (3, n) quartiles of the amounts tried before as_of, and of how many; they mean nothing for none."""

    def compute() -> tuple[Int64, Int64]:
        start, end = _tried(rows, side)
        some = np.flatnonzero(end > start)
        quartiles = np.zeros((3, len(rows)), np.int64)
        quartiles[:, some] = amount_quartiles(rows.edges, side)[:, end[some] - 1]
        return quartiles, end - start

    return rows.memo(("quartiles", side), compute)


def _tried(rows: AccountRows, side: Side) -> tuple[Int64, Int64]:
    """Return the entries of the timeline that were tried before as_of: the first of each row, and the end."""

    def compute() -> tuple[Int64, Int64]:
        start, tried = tried_before(rows.edges, side, rows.account, rows.as_of_ms)
        return start, start + tried

    return rows.memo(("tried", side), compute)


def _unusual_among(rows: AccountRows, side: Side, newest: int) -> Int64:
    before = unusual_before(rows.edges, side)
    start, end = _tried(rows, side)
    return np.asarray(before[end] - before[np.maximum(end - newest, start)], np.int64)


def _attempts_that(rows: AccountRows, key: Hashable, flags: Callable[[EdgeTable], Flags]) -> Int64:
    """Return how many of each row's attempts have the flag, which `key` names among the table's indexes."""
    sent = timeline(rows.edges, Side.SENT)
    running = rows.edges.memo(("running", key), lambda: _running(flags(rows.edges)[sent.edge]))
    start = sent.offsets[np.maximum(rows.account, 0)]
    return np.asarray(running[start + _conduct(rows).attempts] - running[start], np.int64)


def _running(flags: Flags) -> npt.NDArray[np.signedinteger[Any]]:
    """How many of the first k entries have the flag."""
    smallest = np.int32 if len(flags) < 2**31 else np.int64
    total: npt.NDArray[np.signedinteger[Any]] = np.zeros(len(flags) + 1, smallest)
    np.cumsum(flags, out=total[1:])
    return total


def is_round(amount: Int64, settings: FeatureSettings) -> Flags:
    """Whether amounts in minor units are whole multiples of ROUND_UNITS."""
    return np.asarray(amount % (ROUND_UNITS * 10**settings.base_exponent) == 0)


def is_just_below_threshold(amount: Int64, settings: FeatureSettings) -> Flags:
    """Whether amounts in minor units lie within JUST_BELOW_PERCENT below one of the settings' thresholds."""
    below = np.zeros(len(amount), np.bool_)
    for units in settings.thresholds:
        limit = units * 10**settings.base_exponent
        lowest = -(-limit * (100 - JUST_BELOW_PERCENT) // 100)
        below |= (amount >= lowest) & (amount < limit)
    return below


def countries_known(edges: EdgeTable) -> Flags:
    """Whether both countries of each payment are known."""
    return np.asarray((edges.sender_country >= 0) & (edges.receiver_country >= 0))


def a_country_known(edges: EdgeTable) -> Flags:
    """Whether at least one country of each payment is known."""
    return np.asarray((edges.sender_country >= 0) | (edges.receiver_country >= 0))


def crosses_border(edges: EdgeTable) -> Flags:
    """Whether both countries of each payment are known and differ."""
    return np.asarray(countries_known(edges) & (edges.sender_country != edges.receiver_country))


def touches_high_risk(edges: EdgeTable, settings: FeatureSettings) -> Flags:
    """Whether either country of each payment is on the settings' list."""
    # One place more than there are countries: the code of an unknown one, -1, falls on it.
    listed = np.array([country in settings.high_risk_countries for country in (*edges.countries, None)], np.bool_)
    return np.asarray(listed[edges.sender_country] | listed[edges.receiver_country])


@feature(view=BEHAVIOUR, dtype=DType.INT64, unit="payments", range="0 or more", empty=0)
def sent_attempt_count_all(rows: AccountRows) -> Column:
    """Payments the account tried to make, whatever became of them."""
    return _conduct(rows).attempts


@feature(view=BEHAVIOUR, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def first_attempt_timestamp(rows: AccountRows) -> Column:
    """Time of the first payment sent or received, whatever became of it; null without one."""
    either = timeline(rows.edges, Side.EITHER)
    first = either.offsets[np.maximum(rows.account, 0)]
    some = (rows.account >= 0) & (first < either.offsets[rows.account + 1])
    first_ms = either.ts_ms[np.where(some, first, 0)] if len(either.ts_ms) else np.zeros(len(rows), np.int64)
    return known_where(first_ms, some & (first_ms < rows.as_of_ms))


@feature(view=BEHAVIOUR, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def failed_transaction_ratio(rows: AccountRows) -> Column:
    """Share of attempts whose latest known status is failed; null without an attempt."""
    return ratio(_conduct(rows).failed, _conduct(rows).attempts)


@feature(view=BEHAVIOUR, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def reversal_ratio(rows: AccountRows) -> Column:
    """Share of attempts whose latest known status is reversed; null without an attempt."""
    return ratio(_conduct(rows).reversed, _conduct(rows).attempts)


@feature(view=BEHAVIOUR, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def round_amount_ratio(rows: AccountRows) -> Column:
    """Share of attempts whose amount is a whole multiple of 10 units; null without an attempt."""
    settings = rows.settings
    key = ("round", settings.base_exponent)
    return ratio(_attempts_that(rows, key, lambda edges: is_round(edges.amount, settings)), _conduct(rows).attempts)


@feature(view=BEHAVIOUR, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def threshold_amount_ratio(rows: AccountRows) -> Column:
    """Share of attempts whose amount is up to 5 % below a reporting limit; null without an attempt."""
    settings = rows.settings
    key = ("just_below", settings.thresholds, settings.base_exponent)
    return ratio(
        _attempts_that(rows, key, lambda edges: is_just_below_threshold(edges.amount, settings)),
        _conduct(rows).attempts,
    )


@feature(view=BEHAVIOUR, dtype=DType.FLOAT64, unit="bits", range="0 or more")
def channel_entropy(rows: AccountRows) -> Column:
    """Shannon entropy of the channels of attempts; null where no channel is known."""
    return _conduct(rows).channel_entropy


@feature(view=BEHAVIOUR, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def cross_border_ratio(rows: AccountRows) -> Column:
    """Share of attempts between different countries among those with both countries known; null without one."""
    return ratio(
        _attempts_that(rows, "crosses_border", crosses_border),
        _attempts_that(rows, "countries_known", countries_known),
    )


@feature(view=BEHAVIOUR, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def high_risk_country_ratio(rows: AccountRows) -> Column:
    """Share of attempts from or to a high-risk country among those with a country known; null without one."""
    settings = rows.settings
    key = ("touches_high_risk", settings.high_risk_countries)
    return ratio(
        _attempts_that(rows, key, lambda edges: touches_high_risk(edges, settings)),
        _attempts_that(rows, "a_country_known", a_country_known),
    )


@feature(view=BEHAVIOUR, dtype=DType.FLOAT64, unit="times", range="0 or more")
def burst_score(rows: AccountRows) -> Column:
    """Most attempts within any one hour over the mean per hour of days with attempts (UTC); null without an attempt."""
    done = _conduct(rows)
    return ratio(done.busiest_hour * done.active_days * HOURS_PER_DAY, done.attempts)


@feature(view=BEHAVIOUR, sides=SIDES, dtype=DType.INT64, unit="minor units", range="0 or more")
def amount_median_all(rows: AccountRows, side: Side) -> Column:
    """Median amount of payments tried and {side}, the lower one of two; null without any."""
    quartiles, tried = _quartiles(rows, side)
    return known_where(quartiles[1], tried > 0)


@feature(view=BEHAVIOUR, sides=SIDES, dtype=DType.INT64, unit="minor units", range="0 or more")
def amount_iqr_all(rows: AccountRows, side: Side) -> Column:
    """Upper less lower quartile of amounts tried and {side}, by nearest rank; null without any."""
    quartiles, tried = _quartiles(rows, side)
    return known_where(quartiles[2] - quartiles[0], tried > 0)


@feature(view=BEHAVIOUR, sides=SIDES, dtype=DType.INT64, unit="payments", range="0 to 5", empty=0)
def unusual_amounts_of_last_5(rows: AccountRows, side: Side) -> Column:
    """Among the last 5 payments tried and {side}: those of unusual amount for the account then (see the guide)."""
    return _unusual_among(rows, side, NEWEST[0])


@feature(view=BEHAVIOUR, sides=SIDES, dtype=DType.INT64, unit="payments", range="0 to 20", empty=0)
def unusual_amounts_of_last_20(rows: AccountRows, side: Side) -> Column:
    """Among the last 20 payments tried and {side}: those of unusual amount for the account then (see the guide)."""
    return _unusual_among(rows, side, NEWEST[1])


@feature(view=BEHAVIOUR, sides=SIDES, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def last_unusual_amount_timestamp(rows: AccountRows, side: Side) -> Column:
    """Time of the last payment tried and {side} of unusual amount for the account then; null without one."""
    before, (start, end) = unusual_before(rows.edges, side), _tried(rows, side)
    some = before[end] > before[start]
    last_ms = np.zeros(len(rows), np.int64)
    last_ms[some] = unusual_ms(rows.edges, side)[before[end[some]] - 1]
    return known_where(last_ms, some)


@feature(
    view=BEHAVIOUR,
    sides=SIDES,
    dtype=DType.INT64_LIST,
    unit="bin, payments, ...",
    range="see graph_features.histogram",
)
def amount_histogram(rows: AccountRows, side: Side) -> Column:
    """Payments {side} by bin of amount: bin, count, bin, count, ... without empty bins; empty without a payment."""
    return sweeps.amount_histogram(rows.edges, side, rows.account, rows.as_of_ms)
