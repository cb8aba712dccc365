"""Accounts that paid with one thing: a device, a card or an ip."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph_features.edges import EdgeTable, Int64
from graph_features.kernels.compiled import compiled
from graph_features.kernels.sorting import by_code

MOST = 100
"""Accounts are counted up to this number, so that a public address costs no more than a private one."""

Flags = npt.NDArray[np.bool_]


class Uses(NamedTuple):
    """First uses of things by accounts, grouped by thing: those of thing d are `offsets[d]:offsets[d + 1]`.

    `user` paid with it first at `since_ms`.
    """

    offsets: Int64
    user: Int64
    since_ms: Int64


class Sharing(NamedTuple):
    """Things and accounts at an instant: users of thing d are `user[by_thing[d]:by_thing[d + 1]]`, what account a used
    is `thing[by_account[a]:by_account[a + 1]]`."""

    by_thing: Int64
    user: Int64
    by_account: Int64
    thing: Int64


def uses_of(edges: EdgeTable, kind: str) -> Uses:
    """Return who paid with which `kind` (device, card or ip), whatever became of the payments; kept on the table."""

    def build() -> Uses:
        code = getattr(edges, kind)
        known = np.flatnonzero(code >= 0)
        thing, user = code[known].astype(np.int64), edges.sender[known].astype(np.int64)
        offsets, order = by_code(thing, int(code.max(initial=-1)) + 1)
        first = order[_is_first(offsets, order, user, edges.n_accounts)]
        sizes = np.bincount(thing[first], minlength=len(offsets) - 1)
        return Uses(offsets=_offsets(sizes), user=user[first], since_ms=edges.ts_ms[known[first]])

    return edges.memo(f"uses_of_{kind}", build)


def sharing_at(uses: Uses, as_of_ms: int, n_accounts: int) -> Sharing:
    """Return what was used strictly before `as_of_ms`."""
    keep = uses.since_ms < as_of_ms
    by_thing = _offsets(keep)[uses.offsets]
    user = uses.user[keep]
    thing = np.repeat(np.arange(len(by_thing) - 1), np.diff(by_thing))
    by_account, order = by_code(user, n_accounts)
    return Sharing(by_thing=by_thing, user=user, by_account=by_account, thing=thing[order])


def others(sharing: Sharing, chosen: Flags | None = None) -> Int64:
    """Return per account how many others used a thing that it used, MOST or more being MOST; `chosen` ones if given."""
    by_thing, user = sharing.by_thing, sharing.user
    if chosen is not None:
        keep = chosen[user]
        by_thing, user = _offsets(keep)[by_thing], user[keep]
    return _count_others(by_thing, user, sharing.by_account, sharing.thing)


def _offsets(sizes: npt.NDArray[np.generic]) -> Int64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


@compiled
def _is_first(offsets: Int64, order: Int64, user: Int64, n_accounts: int) -> Flags:
    """Return per place in `order` whether its user comes for the first time in its group."""
    first = np.zeros(len(order), np.bool_)
    last_seen = np.full(n_accounts, -1, np.int64)
    for d in range(len(offsets) - 1):
        for k in range(offsets[d], offsets[d + 1]):
            if last_seen[user[order[k]]] != d:
                last_seen[user[order[k]]] = d
                first[k] = True
    return first


@compiled
def _count_others(by_thing: Int64, user: Int64, by_account: Int64, thing: Int64) -> Int64:
    n = len(by_account) - 1
    count = np.zeros(n, np.int64)
    counted_for = np.full(n, -1, np.int64)
    for a in range(n):
        counted_for[a] = a
        for j in range(by_account[a], by_account[a + 1]):
            k = by_thing[thing[j]]
            end = by_thing[thing[j] + 1]
            while k < end and count[a] < MOST:
                if counted_for[user[k]] != a:
                    counted_for[user[k]] = a
                    count[a] += 1
                k += 1
    return count
