"""Running totals and label timelines, laid out for the kernels from an EdgeTable; each is built once and kept on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from graph_features.edges import EdgeTable, Int64
from graph_features.kernels.sweeps import Queries
from graph_features.kernels.timeline import (
    COMPLETED,
    Deltas,
    Side,
    deltas,
    grouping,
    known_ms,
    read_only,
    timeline,
)
from graph_features.kernels.unusual import unusual_edges

if TYPE_CHECKING:
    from graph_features.kernels.known_labels import LabelTimeline
    from graph_features.kernels.recent import Ledger

GENUINE = 0
NAMES_SENDER, NAMES_RECEIVER = 1, 2
"""Bits of a fraud label's value in EdgeTable.labels."""


def payment_ledger(edges: EdgeTable, side: Side) -> Ledger:
    """Return running count and amount of the payments that count, per group of `side`."""

    def build() -> Ledger:
        from graph_features.kernels.recent import Ledger, merge_payments
        from graph_features.kernels.sorting import by_code_and_time

        taken = deltas(edges, edges.statuses, edges.statuses.value == COMPLETED, before=True)
        groups = grouping(edges, side)
        item, group, _ = groups.spread(taken.edge)
        offsets, order = by_code_and_time(group, taken.ts_ms[item], groups.n_groups)
        item = item[order]
        change = np.stack((taken.delta, taken.delta * edges.amount[taken.edge]))[:, item]
        offsets, ts_ms, totals = merge_payments(
            timeline(edges, side), read_only(offsets), read_only(taken.ts_ms[item]), read_only(change)
        )
        return Ledger(offsets=read_only(offsets), ts_ms=read_only(ts_ms), totals=read_only(totals))

    return edges.memo(("payment_ledger", side), build)


def fraud_ledger(edges: EdgeTable, side: Side) -> Ledger:
    """Return the running count of payments known as fraud, per group of `side`."""

    def build() -> Ledger:
        known = deltas(edges, edges.labels, edges.labels.value != GENUINE, before=False)
        return _ledger(edges, side, known.edge, known.ts_ms, known.delta[None, :])

    return edges.memo(("fraud_ledger", side), build)


def _ledger(edges: EdgeTable, side: Side, edge: Int64, ts_ms: Int64, steps: Int64) -> Ledger:
    from graph_features.kernels.recent import Ledger
    from graph_features.kernels.sorting import by_code_and_time

    groups = grouping(edges, side)
    item, group, _ = groups.spread(edge)
    offsets, order = by_code_and_time(group, ts_ms[item], groups.n_groups)
    item = item[order]
    totals = np.zeros((len(steps), len(item) + 1), np.int64)
    np.cumsum(steps[:, item], axis=1, out=totals[:, 1:])
    return Ledger(
        offsets=read_only(offsets),
        ts_ms=read_only(ts_ms[item]),
        totals=read_only(totals),
    )


def totals_at(ledger: Ledger, group: npt.NDArray[np.integer], as_of_ms: Int64) -> Int64:
    """Return the ledger's totals (columns, n) before as_of, for (group, as_of) in any order."""
    from graph_features.kernels.recent import look_up

    return np.asarray(look_up(ledger, read_only(group), read_only(as_of_ms)))


def label_timeline(edges: EdgeTable, side: Side, *, ordinary_only: bool = False) -> LabelTimeline:
    """Return the labels of each account's sent or received payments in the order in which they became known.

    `ordinary_only` leaves payments of unusual amount out (see kernels.unusual).
    """
    return edges.memo(("label_timeline", side, ordinary_only), lambda: _label_timeline(edges, side, ordinary_only))


def _label_timeline(edges: EdgeTable, side: Side, ordinary_only: bool) -> LabelTimeline:
    from graph_features.kernels.known_labels import LabelTimeline
    from graph_features.kernels.sorting import by_code, by_code_and_time

    account = (edges.sender if side is Side.SENT else edges.receiver).astype(np.int64)
    unusual = unusual_edges(edges, side)
    wanted = ~unusual[edges.labels.edge] if ordinary_only else np.ones(len(edges.labels.edge), np.bool_)
    label_edge = edges.labels.edge[wanted]
    has_label = np.zeros(edges.n_edges, np.bool_)
    has_label[label_edge] = True
    labelled = np.flatnonzero(has_label)
    slot_offsets, by_account = by_code(account[labelled], edges.n_accounts)
    slots = labelled[by_account]
    slot_of = np.full(edges.n_edges, -1, np.int64)
    slot_of[slots] = np.arange(len(slots))
    known, group = known_ms(edges, edges.labels)[wanted], account[label_edge]
    change_offsets, order = by_code_and_time(group, known, edges.n_accounts)
    slot = slot_of[label_edge] - slot_offsets[group]
    fraud = edges.labels.value[wanted] != GENUINE
    return LabelTimeline(
        slot_offsets=read_only(slot_offsets),
        slot_ts_ms=read_only(edges.ts_ms[slots]),
        slot_ordinary=read_only(~unusual[slots], np.int8),
        change_offsets=read_only(change_offsets),
        change_slot=read_only(slot[order]),
        change_ts_ms=read_only(known[order]),
        change_fraud=read_only(fraud[order], np.int8),
    )


def named_counterparties(edges: EdgeTable, account: npt.NDArray[np.integer], as_of_ms: Int64) -> Int64:
    """Return how many other accounts are named fraudulent by labels of the account's own payments before as_of."""
    from graph_features.kernels.recent import sweep_distinct

    offsets, ts_ms, code, delta, n_codes = edges.memo("named", lambda: _named(edges))
    queries = Queries.of(account, as_of_ms)
    seen = np.zeros(n_codes, np.int32)
    return queries.restore(sweep_distinct(offsets, ts_ms, code, delta, seen, queries.group, queries.as_of_ms))


def _named(edges: EdgeTable) -> tuple[Int64, Int64, Int64, Int64, int]:
    from graph_features.kernels.sorting import by_code_and_time

    sender, receiver = edges.sender.astype(np.int64), edges.receiver.astype(np.int64)
    receivers = _naming(edges, NAMES_RECEIVER)
    senders = _naming(edges, NAMES_SENDER)
    account = np.concatenate((sender[receivers.edge], receiver[senders.edge]))
    other = np.concatenate((receiver[receivers.edge], sender[senders.edge]))
    ts_ms = np.concatenate((receivers.ts_ms, senders.ts_ms))
    delta = np.concatenate((receivers.delta, senders.delta))
    apart = account != other
    account, other, ts_ms, delta = account[apart], other[apart], ts_ms[apart], delta[apart]
    pairs, code = np.unique(account * max(edges.n_accounts, 1) + other, return_inverse=True)
    offsets, order = by_code_and_time(account, ts_ms, edges.n_accounts)
    return (
        read_only(offsets),
        read_only(ts_ms[order]),
        read_only(code[order]),
        read_only(delta[order]),
        len(pairs),
    )


def _naming(edges: EdgeTable, bit: int) -> Deltas:
    return deltas(edges, edges.labels, (edges.labels.value & bit) != 0, before=False)
