"""What was known of the labels of an account's own payments.

A label counts from when it became known, though not before its payment happened; of several the latest known holds.
A payment with a label counts whatever its status: that a fraud was reversed or failed takes nothing from the knowledge.
Windows look back over when labels became known, so that they suit any delay of labels.
"""

from __future__ import annotations

import numpy as np

from graph_features.activity import ALL_TIME, SIDES, known_where, ratio
from graph_features.catalog import View, feature
from graph_features.clock import SECOND_MS
from graph_features.edges import Int64
from graph_features.kernels.ledgers import label_timeline, named_counterparties
from graph_features.kernels.sweeps import LabelState, label_state
from graph_features.kernels.timeline import Side
from graph_features.rows import AccountRows, Column
from graph_features.schema import Cadence, DType, Renewal
from graph_features.window_spec import LABEL_WINDOWS, Window

EXPOSURE = View(
    name="account_exposure",
    entity="account",
    cadence=Cadence.EVENT,
    renewed_by=(Renewal.TRANSACTION, Renewal.STATUS, Renewal.LABEL),
    description="Known frauds among the account's own payments: how many, how recent, in what run.",
    modules=(
        __name__,
        "graph_features.kernels.timeline",
        "graph_features.kernels.sorting",
        "graph_features.kernels.columns",
        "graph_features.kernels.ledgers",
        "graph_features.kernels.known_labels",
        "graph_features.kernels.recent",
        "graph_features.kernels.quartiles",
        "graph_features.kernels.unusual",
    ),
)

GENUINE, FRAUD = 0, 1
WINDOWS = (*LABEL_WINDOWS, ALL_TIME)


def _labels(rows: AccountRows, side: Side) -> LabelState:
    return rows.memo(
        ("labels", side),
        lambda: label_state(label_timeline(rows.edges, side), rows.account, rows.as_of_ms, LABEL_WINDOWS),
    )


def _ordinary_labels(rows: AccountRows, side: Side) -> LabelState:
    """What is known of the payments whose amount was not unusual for the account."""

    def compute() -> LabelState:
        return label_state(label_timeline(rows.edges, side, ordinary_only=True), rows.account, rows.as_of_ms, ())

    return rows.memo(("ordinary_labels", side), compute)


def _count(rows: AccountRows, side: Side, kind: int, window: Window) -> Int64:
    labels = _labels(rows, side)
    if window.length_ms is None:
        return np.asarray(labels.count[kind])
    return np.asarray(labels.window_count[kind][LABEL_WINDOWS.index(window)])


def _last(rows: AccountRows, side: Side, kind: int) -> Column:
    labels = _labels(rows, side)
    return known_where(labels.last_ms[kind], labels.count[kind] > 0)


def _last_known(rows: AccountRows, side: Side, kind: int) -> Column:
    labels = _labels(rows, side)
    return known_where(labels.last_known_ms[kind], labels.count[kind] > 0)


@feature(view=EXPOSURE, sides=SIDES, windows=WINDOWS, dtype=DType.INT64, unit="payments", range="0 or more", empty=0)
def known_fraud_count(rows: AccountRows, side: Side, window: Window) -> Column:
    """Payments {side} that are known as fraud; label window: {window}."""
    return _count(rows, side, FRAUD, window)


@feature(
    view=EXPOSURE, sides=SIDES, windows=(ALL_TIME,), dtype=DType.INT64, unit="payments", range="0 or more", empty=0
)
def known_genuine_count(rows: AccountRows, side: Side, window: Window) -> Column:
    """Payments {side} that are known as genuine; label window: {window}."""
    return _count(rows, side, GENUINE, window)


@feature(view=EXPOSURE, sides=SIDES, windows=WINDOWS, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def known_fraud_ratio(rows: AccountRows, side: Side, window: Window) -> Column:
    """Share of fraud among payments {side} with a known label; label window: {window}; null without a label."""
    frauds = _count(rows, side, FRAUD, window)
    return ratio(frauds, frauds + _count(rows, side, GENUINE, window))


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def last_fraud_timestamp(rows: AccountRows, side: Side) -> Column:
    """Time of the last payment {side} that is known as fraud; null without one."""
    return _last(rows, side, FRAUD)


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def last_fraud_label_timestamp(rows: AccountRows, side: Side) -> Column:
    """When the newest fraud label of payments {side} became known; null without one."""
    return _last_known(rows, side, FRAUD)


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def last_genuine_timestamp(rows: AccountRows, side: Side) -> Column:
    """Time of the last payment {side} that is known as genuine; null without one."""
    return _last(rows, side, GENUINE)


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def last_genuine_label_timestamp(rows: AccountRows, side: Side) -> Column:
    """When the newest genuine label of payments {side} became known; null without one."""
    return _last_known(rows, side, GENUINE)


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.INT64, unit="yes 1, no 0", range="0 or 1")
def run_is_fraud(rows: AccountRows, side: Side) -> Column:
    """Whether the newest labelled payment {side} is known as fraud; null without a label."""
    labels = _labels(rows, side)
    return known_where(labels.run_kind, labels.run_kind >= 0)


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.INT64, unit="payments", range="0 or more", empty=0)
def run_length(rows: AccountRows, side: Side) -> Column:
    """Labelled payments {side}, newest backwards, up to the first with the other label."""
    return _labels(rows, side).run_length


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def run_start_timestamp(rows: AccountRows, side: Side) -> Column:
    """Time of the oldest payment of that run; null without a label."""
    labels = _labels(rows, side)
    return known_where(labels.run_start_ms, labels.run_kind >= 0)


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.INT64, unit="payments", range="0 or more", empty=0)
def ordinary_fraud_count(rows: AccountRows, side: Side) -> Column:
    """Known frauds {side} of no unusual amount for the account (see the guide)."""
    return _labels(rows, side).ordinary_frauds


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def last_ordinary_fraud_timestamp(rows: AccountRows, side: Side) -> Column:
    """Time of the last of these; null without one."""
    labels = _ordinary_labels(rows, side)
    return known_where(labels.last_ms[FRAUD], labels.count[FRAUD] > 0)


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def last_ordinary_genuine_timestamp(rows: AccountRows, side: Side) -> Column:
    """Time of the last payment {side} that is known as genuine, of no unusual amount for the account; null without."""
    labels = _ordinary_labels(rows, side)
    return known_where(labels.last_ms[GENUINE], labels.count[GENUINE] > 0)


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.INT64, unit="yes 1, no 0", range="0 or 1")
def ordinary_run_is_fraud(rows: AccountRows, side: Side) -> Column:
    """Like {side}_run_is_fraud, of the payments of no unusual amount for the account; null without a label."""
    labels = _ordinary_labels(rows, side)
    return known_where(labels.run_kind, labels.run_kind >= 0)


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.INT64, unit="payments", range="0 or more", empty=0)
def ordinary_run_length(rows: AccountRows, side: Side) -> Column:
    """Like {side}_run_length, of the same payments."""
    return _ordinary_labels(rows, side).run_length


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def ordinary_run_start_timestamp(rows: AccountRows, side: Side) -> Column:
    """Like {side}_run_start_timestamp, of the same payments; null without a label."""
    labels = _ordinary_labels(rows, side)
    return known_where(labels.run_start_ms, labels.run_kind >= 0)


@feature(view=EXPOSURE, sides=SIDES, dtype=DType.FLOAT64, unit="seconds", range="0 or more")
def ordinary_run_gap(rows: AccountRows, side: Side) -> Column:
    """Time from the last of the same payments with the other label to that start; null without one."""
    labels = _ordinary_labels(rows, side)
    other = np.where(labels.run_kind == FRAUD, GENUINE, FRAUD)
    before_ms = np.take_along_axis(labels.last_ms, other[None, :], axis=0)[0]
    known = np.take_along_axis(labels.count, other[None, :], axis=0)[0] > 0
    return np.where(known, (labels.run_start_ms - before_ms) / SECOND_MS, np.nan)


@feature(view=EXPOSURE, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def fraudulent_counterparty_count(rows: AccountRows) -> Column:
    """Distinct other accounts that known labels of the account's own payments name as fraudulent."""
    return named_counterparties(rows.edges, rows.account, rows.as_of_ms)
