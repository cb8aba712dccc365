"""What windows are finished from when time goes on without an event: see `graph_features.finish`, which reads it.

Per direction, the payments that count of the last 30 days (and of what quantisation adds) in buckets: of a minute for
what the window of an hour holds, of an hour up to 7 days, of a day beyond. A window begins at the start of a bucket, at
as_of and at any later instant, so that whole buckets leave it. Likewise the labels, by when they became known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graph_features.catalog import View, feature
from graph_features.clock import MINUTE_MS
from graph_features.edges import Int64
from graph_features.kernels.ledgers import label_timeline
from graph_features.kernels.sweeps import Queries, check_sums
from graph_features.kernels.timeline import COMPLETED, Side, counterparties, read_only, timeline
from graph_features.rows import AccountRows, Column, ListColumn
from graph_features.schema import Cadence, DType, Renewal
from graph_features.window_spec import LABEL_LEVELS, PAYMENT_LEVELS, WINDOWS_VIEW, Window

ACCOUNT_WINDOWS = View(
    name=WINDOWS_VIEW,
    entity="account",
    cadence=Cadence.EVENT,
    renewed_by=(Renewal.TRANSACTION, Renewal.STATUS, Renewal.LABEL),
    description="Payments and labels of the last 30 days in buckets, from which windows are finished for any instant.",
    modules=(
        __name__,
        "graph_features.window_spec",
        "graph_features.finish",
        "graph_features.kernels.timeline",
        "graph_features.kernels.sorting",
        "graph_features.kernels.ledgers",
        "graph_features.kernels.windows",
        "graph_features.kernels.levels",
        "graph_features.kernels.buckets",
        "graph_features.kernels.int128",
    ),
)

SIDES = (Side.SENT, Side.RECEIVED)


@dataclass(frozen=True, kw_only=True)
class PaymentBuckets:
    """Per row its buckets, and of those of two payments or more the maxima and squared deviations."""

    buckets: ListColumn
    maxima: ListColumn
    deviations: ListColumn


def _levels(windows: tuple[Window, ...]) -> tuple[Int64, Int64, int]:
    """Reach in milliseconds and grain in minutes of each level, and twice what all of them can hold."""
    reaches_ms = np.array([window.length_ms for window in windows], np.int64)
    grains = np.array([window.grain_ms // MINUTE_MS for window in windows], np.int64)
    return read_only(reaches_ms), read_only(grains), 2 * int(np.sum(reaches_ms // (grains * MINUTE_MS) + 2))


def _payments(rows: AccountRows, side: Side) -> PaymentBuckets:
    return rows.memo(("payment_buckets", side), lambda: _payment_buckets(rows, side))


def _payment_buckets(rows: AccountRows, side: Side) -> PaymentBuckets:
    from graph_features.kernels.buckets import sweep_buckets

    check_sums(rows.edges, side, rows.account)
    queries = Queries.of(rows.account, rows.as_of_ms)
    offsets, buckets, offsets_many, maxima, deviations = sweep_buckets(
        timeline(rows.edges, side),
        counterparties(rows.edges, side),
        queries.group,
        queries.as_of_ms,
        *_levels(PAYMENT_LEVELS),
        COMPLETED,
    )
    return PaymentBuckets(
        buckets=queries.restore_lists(offsets, buckets),
        maxima=queries.restore_lists(offsets_many, maxima),
        deviations=queries.restore_lists(offsets_many, deviations),
    )


def _label_buckets(rows: AccountRows, side: Side) -> ListColumn:
    from graph_features.kernels.buckets import sweep_label_buckets

    queries = Queries.of(rows.account, rows.as_of_ms)
    labels = label_timeline(rows.edges, side)
    found = sweep_label_buckets(labels, queries.group, queries.as_of_ms, *_levels(LABEL_LEVELS))
    return queries.restore_lists(*found)


@feature(
    view=ACCOUNT_WINDOWS, sides=SIDES, dtype=DType.INT64_LIST, unit="see BUCKET", range="0 or more, 253 x 4 at most"
)
def buckets(rows: AccountRows, side: Side) -> Column:
    """Payments {side} that count, oldest bucket first: for each the items of window_spec.BUCKET; none is empty."""
    return _payments(rows, side).buckets


@feature(view=ACCOUNT_WINDOWS, sides=SIDES, dtype=DType.INT64_LIST, unit="minor units", range="0 or more, 253 at most")
def bucket_amount_maxima(rows: AccountRows, side: Side) -> Column:
    """Largest amount of each of these buckets that holds two payments {side} or more, in their order."""
    return _payments(rows, side).maxima


@feature(
    view=ACCOUNT_WINDOWS,
    sides=SIDES,
    dtype=DType.FLOAT64_LIST,
    unit="minor units squared",
    range="0 or more, 253 at most",
)
def bucket_amount_deviations(rows: AccountRows, side: Side) -> Column:
    """Sum of squared deviations of the amounts from their mean, of the same buckets of payments {side}."""
    return _payments(rows, side).deviations


@feature(
    view=ACCOUNT_WINDOWS,
    sides=SIDES,
    dtype=DType.INT64_LIST,
    unit="see LABEL_BUCKET",
    range="0 or more, 193 x 3 at most",
)
def label_buckets(rows: AccountRows, side: Side) -> Column:
    """Labels of payments {side} by when they became known: for each bucket the items of window_spec.LABEL_BUCKET."""
    return _label_buckets(rows, side)
