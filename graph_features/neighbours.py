"""Whom an account dealt with last, and what was known of them: what the network samples from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from graph_features.catalog import View, feature
from graph_features.clock import DAY_MS
from graph_features.edges import EdgeTable, Float64, Int64
from graph_features.kernels.ledgers import fraud_ledger, payment_ledger, totals_at
from graph_features.kernels.sweeps import check_sums, recent_payments
from graph_features.kernels.timeline import Side, grouping
from graph_features.neighbour_spec import NEIGHBOUR_COUNT, RECEIVED, SENT
from graph_features.rows import AccountRows, Column, ListColumn
from graph_features.schema import Cadence, DType, Renewal
from graph_features.standings import STANDING

NEIGHBOURS = View(
    name="account_neighbours",
    entity="account",
    cadence=Cadence.EVENT,
    renewed_by=(Renewal.TRANSACTION, Renewal.STATUS),
    description="The last payments in either direction, newest first, and what was known of each counterparty.",
    modules=(
        __name__,
        "graph_features.neighbour_spec",
        "graph_features.kernels.timeline",
        "graph_features.kernels.ledgers",
        "graph_features.kernels.recent",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Recent:
    """The last payments of n rows, one after the other: row i holds items offsets[i]:offsets[i + 1], newest first."""

    offsets: Int64
    edge: Int64
    sent: np.ndarray[tuple[int], np.dtype[np.bool_]]
    neighbour: Int64
    as_of_ms: Int64


def last_payments(edges: EdgeTable, account: np.ndarray[tuple[int], np.dtype[np.int32]], as_of_ms: Int64) -> Recent:
    """Return the last NEIGHBOUR_COUNT payments that count of each (account, as_of), in either direction."""
    number, found = recent_payments(edges, account, as_of_ms, NEIGHBOUR_COUNT)
    edge = found[found >= 0]
    sent = edges.sender[edge] == np.repeat(account, number)
    return Recent(
        offsets=np.concatenate(([0], np.cumsum(number))),
        edge=edge,
        sent=sent,
        neighbour=np.where(sent, edges.receiver[edge], edges.sender[edge]).astype(np.int64),
        as_of_ms=np.repeat(as_of_ms, number),
    )


def _recent(rows: AccountRows) -> Recent:
    return rows.memo("recent", lambda: last_payments(rows.edges, rows.account, rows.as_of_ms))


def profiles(edges: EdgeTable, account: Int64, as_of_ms: Int64) -> Float64:
    """Return the (n, P) profile of accounts before as_of; the columns are NEIGHBOUR_PROFILE."""
    totals = _totals(edges, account, as_of_ms) if edges.standings is None else _told(edges, account, as_of_ms)
    sent_count, sent_sum, received_count, received_sum, first_ms, sent_frauds, received_frauds = totals
    return np.stack(
        (
            np.log1p(sent_count),
            np.log1p(received_count),
            np.log1p(sent_sum / np.maximum(sent_count, 1)),
            np.log1p(received_sum / np.maximum(received_count, 1)),
            (as_of_ms - first_ms) / DAY_MS,
            (sent_frauds + received_frauds).astype(np.float64),
        ),
        axis=1,
    )


def _totals(edges: EdgeTable, account: Int64, as_of_ms: Int64) -> Int64:
    """Return the numbers of STANDING, (len(STANDING), n), from the accounts' payments."""
    for side in (Side.SENT, Side.RECEIVED):
        check_sums(edges, side, account)
    (sent, received), frauds = (
        [totals_at(ledger(edges, side), account, as_of_ms) for side in (Side.SENT, Side.RECEIVED)]
        for ledger in (payment_ledger, fraud_ledger)
    )
    everything = grouping(edges, Side.EITHER)
    first_ms = edges.ts_ms[everything.edge[everything.offsets[account]]]
    return np.stack((*sent, *received, first_ms, *np.concatenate(frauds)))


def _told(edges: EdgeTable, account: Int64, as_of_ms: Int64) -> Int64:
    """The same, from the table's standings where it brings the account's."""
    standings = edges.standings
    assert standings is not None
    accounts, at = np.unique(account, return_inverse=True)
    ids = edges.account_ids[accounts].tolist()
    known = standings.knows(ids)
    told = known[at]
    totals = np.empty((len(STANDING), len(account)), np.int64)
    place = np.cumsum(known) - 1
    totals[:, told] = standings.totals(
        [ids[at] for at in np.flatnonzero(known).tolist()], place[at[told]], as_of_ms[told]
    )
    if told.all():
        return totals
    totals[:, ~told] = _totals(edges, account[~told], as_of_ms[~told])
    return totals


@feature(view=NEIGHBOURS, dtype=DType.STRING_LIST, unit="account ids", range="16 at most")
def neighbour_ids(rows: AccountRows) -> Column:
    """Counterparties of the last payments, newest first; an account as often as it occurs."""
    recent = _recent(rows)
    ids = rows.edges.memo("account_ids", lambda: pa.array(rows.edges.account_ids, pa.string()))
    return ListColumn(offsets=recent.offsets, values=ids.take(pa.array(recent.neighbour)))


@feature(view=NEIGHBOURS, dtype=DType.INT64_LIST, unit="sent 1, received 0", range="0 or 1, 16 at most")
def neighbour_directions(rows: AccountRows) -> Column:
    """Whether the account sent or received each of these payments; one to itself counts as sent."""
    recent = _recent(rows)
    return ListColumn(offsets=recent.offsets, values=np.where(recent.sent, SENT, RECEIVED))


@feature(view=NEIGHBOURS, dtype=DType.INT64_LIST, unit="minor units", range="0 or more, 16 at most")
def neighbour_amounts(rows: AccountRows) -> Column:
    """Amounts of these payments."""
    recent = _recent(rows)
    return ListColumn(offsets=recent.offsets, values=rows.edges.amount[recent.edge])


@feature(view=NEIGHBOURS, dtype=DType.INT64_LIST, unit="epoch milliseconds, UTC", range="before as_of, 16 at most")
def neighbour_timestamps(rows: AccountRows) -> Column:
    """Times of these payments."""
    recent = _recent(rows)
    return ListColumn(offsets=recent.offsets, values=rows.edges.ts_ms[recent.edge])


@feature(view=NEIGHBOURS, dtype=DType.FLOAT64_LIST, unit="see NEIGHBOUR_PROFILE", range="0 or more, 16 x 6 at most")
def neighbour_profile(rows: AccountRows) -> Column:
    """What each counterparty had done before as_of, row by row: the columns of neighbour_spec.NEIGHBOUR_PROFILE."""
    recent = _recent(rows)
    profile = profiles(rows.edges, recent.neighbour, recent.as_of_ms)
    return ListColumn(offsets=recent.offsets * profile.shape[1], values=profile.ravel())
