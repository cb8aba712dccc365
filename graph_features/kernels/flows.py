"""Payments of a period by who made and who received them, and which of them money may have flowed between.

A step leads from a payment e into an account to a payment f that this account made later (ties in time are no step). It
is followed when f is among the first `NEAR` payments that the account made after e, and e among the last `NEAR` that it
received before f. Accounts with up to `NEAR` payments each way in a period lose nothing; of a hub's, only what passes
through quickly is followed, so that the cost of a search is bounded whatever the degrees.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graph_features.edges import Int32, Int64
from graph_features.kernels.compiled import compiled

NEAR = 8
"""Payments that are followed per account and direction."""


class Flows(NamedTuple):
    """m payments, none to oneself, by (time, transaction id), and their places in each account's lists.

    Those that account a made are `made[made_start[a]:made_start[a + 1]]`, oldest first; `received` likewise. Per
    payment: `made_at` and `received_at` are its own positions in these lists; `next_made` is the position of the first
    payment that its receiver made after it, `past_received` one past the last that its sender received before it,
    `next_received` that of the first that its sender received after it, `past_made` one past the last that its receiver
    made before it.
    """

    sender: Int32
    receiver: Int32
    ts_ms: Int64
    amount: Int64
    made_start: Int64
    made: Int64
    made_at: Int64
    received_start: Int64
    received: Int64
    received_at: Int64
    next_made: Int64
    past_received: Int64
    next_received: Int64
    past_made: Int64


def flows_of(sender: Int32, receiver: Int32, ts_ms: Int64, amount: Int64, n_accounts: int) -> Flows:
    """Index payments that are sorted by (time, transaction id)."""
    starts = [np.zeros(n_accounts + 1, np.int64) for _ in range(2)]
    for start, account in zip(starts, (sender, receiver), strict=True):
        np.cumsum(np.bincount(account, minlength=n_accounts), out=start[1:])
    at = _positions(sender, receiver, ts_ms, *starts)
    orders = [np.empty(len(ts_ms), np.int64) for _ in range(2)]
    orders[0][at[0]] = orders[1][at[1]] = np.arange(len(ts_ms))
    return Flows(
        sender=sender,
        receiver=receiver,
        ts_ms=ts_ms,
        amount=amount,
        made_start=starts[0],
        made=orders[0],
        made_at=at[0],
        received_start=starts[1],
        received=orders[1],
        received_at=at[1],
        next_made=at[2],
        past_received=at[3],
        next_received=at[4],
        past_made=at[5],
    )


@compiled
def _positions(sender: Int32, receiver: Int32, ts_ms: Int64, made_start: Int64, received_start: Int64) -> Int64:
    """Return the six positions of Flows, instant by instant, so that payments of one instant do not see each other."""
    n = len(ts_ms)
    at = np.empty((6, n), np.int64)
    made = made_start[:-1].copy()
    received = received_start[:-1].copy()
    first = 0
    while first < n:
        end = first
        while end < n and ts_ms[end] == ts_ms[first]:
            at[3, end] = received[sender[end]]
            at[5, end] = made[receiver[end]]
            end += 1
        for e in range(first, end):
            at[0, e] = made[sender[e]]
            at[1, e] = received[receiver[e]]
            made[sender[e]] += 1
            received[receiver[e]] += 1
        for e in range(first, end):
            at[2, e] = made[receiver[e]]
            at[4, e] = received[sender[e]]
        first = end
    return at
