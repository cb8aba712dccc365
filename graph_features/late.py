"""Which neighbour rows of an account lack what one of its counterparties did late.

A neighbour row tells of counterparties, whose news renew no row of the account. What comes late, after the row was
made, though before its as_of, changes the row all the same. Only records that are out of order can be late: of a time
that is not after that of every record ingested before.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from graph_features.clock import NEVER_MS
from graph_features.edges import EdgeTable, Int64
from graph_features.events import AS_OF_AFTER_MS, Coverage, EventIndex, events
from graph_features.kernels.timeline import Side, grouping, known_ms
from graph_features.late_records import Late, out_of_order
from graph_features.neighbours import last_payments
from graph_features.schema import EntityKey, ViewSchema
from graph_features.search import first_not_below


def late_records(edges: EdgeTable) -> Late:
    """Return what was late of a table that holds everything."""
    return edges.memo("late", lambda: _late_records(edges))


def _late_records(edges: EdgeTable) -> Late:
    changes = (edges.statuses, edges.labels)
    edge = np.concatenate((np.arange(edges.n_edges), *(change.edge for change in changes)))
    ts_ms = np.concatenate((edges.ts_ms, *(known_ms(edges, change) for change in changes)))
    seq = np.concatenate((edges.seq, *(change.seq for change in changes)))
    late = np.flatnonzero(out_of_order(seq, ts_ms))
    item, account, _ = grouping(edges, Side.EITHER).spread(edge[late])
    return Late(account=account, ts_ms=ts_ms[late][item], seq=seq[late][item])


def stale_rows(edges: EdgeTable, view: ViewSchema, covered: Mapping[int, Coverage], late: Late) -> tuple[Int64, Int64]:
    """Return (account, as_of_ms) of the stored neighbour rows that lack something, by account and time.

    `covered` says per account code what its stored rows cover: all of them, what was ingested up to `seq`. `late` holds
    what was late of their counterparties, at least what was ingested since.
    """
    index = events(edges, view)
    accounts = np.array(sorted(covered), np.int64)
    bounds = [covered[account] for account in accounts.tolist()]
    if not len(accounts) or not len(late.seq):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    as_of_of, seq_of = np.full((2, edges.n_accounts), -1)
    as_of_of[accounts] = [bound.as_of_ms for bound in bounds]
    seq_of[accounts] = [min(bound.seq, NEVER_MS) for bound in bounds]
    since = late.seq > seq_of[accounts].min()
    if not since.any():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first, end = index.offsets[accounts], index.offsets[accounts + 1]
    row = _ranges(first, end - first)
    account, as_of_ms = np.repeat(accounts, end - first), index.ts_ms[row] + AS_OF_AFTER_MS
    stored = (as_of_ms <= as_of_of[account]) & (as_of_ms > late.ts_ms[since].min())
    account, as_of_ms = account[stored], as_of_ms[stored]
    recent = last_payments(edges, account.astype(np.int32), as_of_ms)
    row = np.repeat(np.arange(len(account)), np.diff(recent.offsets))
    first_ms = _first_since(late, edges.n_accounts, recent.neighbour, seq_of[account[row]])
    stale = np.unique(row[first_ms < recent.as_of_ms])
    return account[stale], as_of_ms[stale]


def _ranges(first: Int64, length: Int64) -> Int64:
    """Return first[0], first[0] + 1, ..., length[0] of them, then the same for each further one."""
    before = np.cumsum(length) - length
    return np.asarray(np.arange(int(length.sum())) + np.repeat(first - before, length))


def _first_since(late: Late, n_accounts: int, account: Int64, seq: Int64) -> Int64:
    """Return the earliest time of what was late of each account and ingested after `seq`; NEVER_MS if nothing was."""
    order = np.lexsort((late.seq, late.account))
    offsets = np.searchsorted(late.account[order], np.arange(n_accounts + 1))
    by_seq, ts_ms = late.seq[order], late.ts_ms[order]
    # Running minima from the last of each account backwards: accounts are set apart by more than times differ.
    start, span = int(ts_ms.min()), int(np.ptp(ts_ms)) + 1
    rank = np.cumsum(np.diff(late.account[order], prepend=-1) != 0)
    apart = (ts_ms - start) + rank * span
    earliest = np.minimum.accumulate(apart[::-1])[::-1] - rank * span + start
    end = offsets[account + 1]
    at = first_not_below(by_seq, offsets[account], end, seq + 1)
    return np.where(at < end, np.append(earliest, NEVER_MS)[at], NEVER_MS)


def first_late_ms(edges: EdgeTable, accounts: Int64, seq: Int64, late: Late) -> Int64:
    """Return since when something counts that was late of each account and ingested after `seq`; NEVER_MS if never."""
    if not len(late.seq):
        return np.full(len(accounts), NEVER_MS)
    return _first_since(late, edges.n_accounts, accounts, seq)


def touched_accounts(edges: EdgeTable, accounts: npt.NDArray[np.integer], since_ms: Int64, last_ms: Int64) -> Int64:
    """Return the counterparties of accounts that something happened to, `last_ms` per code, since `since_ms`."""
    bound = np.full(edges.n_accounts, NEVER_MS)
    bound[accounts] = since_ms
    touched = np.zeros(edges.n_accounts, np.bool_)
    for one, other in ((edges.sender, edges.receiver), (edges.receiver, edges.sender)):
        touched[other[last_ms[other] >= bound[one]]] = True
    return np.flatnonzero(touched)


def last_events(index: EventIndex) -> Int64:
    """Return per group the time of its last event, -1 without any."""
    last = index.last_before(NEVER_MS)
    return np.where(last >= 0, np.append(index.ts_ms, -1)[last], -1)


def coverage_of(edges: EdgeTable, covered: Mapping[EntityKey, Coverage]) -> dict[int, Coverage]:
    """Return by account code what rows cover; accounts that are not in the table left out."""
    keys = list(covered)
    codes = edges.codes([key[0] for key in keys]).tolist()
    return {code: covered[key] for code, key in zip(codes, keys, strict=True) if code >= 0}
