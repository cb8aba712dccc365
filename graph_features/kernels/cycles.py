"""Temporal cycles: payments that lead from account to account, later and later, and back to where they began."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graph_features.edges import Float64, Int64
from graph_features.kernels.compiled import compiled
from graph_features.kernels.flows import NEAR, Flows

LONGEST = 6
"""Payments of the longest cycle that is looked for."""

MOST = 1_000
"""Cycles are counted up to this number, per account and per first payment."""

_BACK = 3
"""Steps that are searched backwards from a cycle's end before those from its beginning."""


class Cycles(NamedTuple):
    """What each account takes part in. `round_trips` counts cycles of two payments; all else speaks of `longer` ones.

    `shortest` is in payments, `newest_ms` the time of the latest last payment, `kept` the largest ratio of a cycle's
    smallest to its largest amount; all three are 0 without a cycle. Counts are not cut at MOST yet.
    """

    round_trips: Int64
    longer: Int64
    shortest: Int64
    newest_ms: Int64
    kept: Float64


def cycles_of(flows: Flows, window_ms: int) -> Cycles:
    """Return per account the cycles through it that take less than `window_ms` from first payment to last.

    A cycle is 2 to LONGEST payments in strictly increasing times whose accounts are all different; it is found once,
    from its first payment. Each of its steps is a step that is followed (see flows), its last and first payment among
    them: the last is among the first NEAR payments that the account received after the first, and so on.

    From a payment's sender, the payments that lead back to it are marked backwards for _BACK steps with the number of
    payments that they are from the end; the walk forwards takes no step that the marks rule out. Both sides are thus
    NEAR ** 3 steps at most, where a walk alone is NEAR ** 5.
    """
    n = len(flows.made_start) - 1
    found = Cycles(
        round_trips=np.zeros(n, np.int64),
        longer=np.zeros(n, np.int64),
        shortest=np.zeros(n, np.int64),
        newest_ms=np.zeros(n, np.int64),
        kept=np.zeros(n),
    )
    _search(flows, window_ms, found)
    return found


@compiled
def _search(flows: Flows, window_ms: int, found: Cycles) -> None:
    n = len(flows.ts_ms)
    mark = np.full(n, -1, np.int64)
    queue = np.empty(min(n, NEAR + NEAR**2 + NEAR**3), np.int64)
    path = np.empty(LONGEST, np.int64)
    at = np.empty(LONGEST, np.int64)
    for root in range(n):
        before_ms = flows.ts_ms[root] + window_ms
        k = flows.next_made[root]
        if k == flows.made_start[flows.receiver[root] + 1] or flows.ts_ms[flows.made[k]] >= before_ms:
            continue
        ends = _mark_ends(flows, root, before_ms, mark, queue)
        if ends > 0:
            every = _mark_back(flows, root, ends, mark, queue)
            _walk(flows, root, before_ms, mark, every, path, at, found)


@compiled
def _mark_ends(flows: Flows, root: int, before_ms: int, mark: Int64, queue: Int64) -> int:
    """Mark the payments that may end a cycle which `root` begins; return their number."""
    start = flows.sender[root]
    first = flows.next_received[root]
    count = 0
    for k in range(first, min(first + NEAR, flows.received_start[start + 1])):
        e = flows.received[k]
        if flows.ts_ms[e] >= before_ms or flows.made_at[root] < flows.past_made[e] - NEAR:
            break
        mark[e] = root * (LONGEST + 1) + 1
        queue[count] = e
        count += 1
    return count


@compiled
def _mark_back(flows: Flows, root: int, ends: int, mark: Int64, queue: Int64) -> bool:
    """Mark what leads to the ends; return whether that is everything, however many steps away."""
    start, since_ms = flows.sender[root], flows.ts_ms[root]
    base = root * (LONGEST + 1)
    head, tail = 0, ends
    for left in range(2, _BACK + 1):
        level_end = tail
        while head < level_end:
            f = queue[head]
            head += 1
            past = flows.past_received[f]
            for k in range(past - 1, max(past - NEAR, flows.received_start[flows.sender[f]]) - 1, -1):
                e = flows.received[k]
                if flows.ts_ms[e] <= since_ms:
                    break
                if mark[e] < base and flows.sender[e] != start and flows.made_at[f] < flows.next_made[e] + NEAR:
                    mark[e] = base + left
                    queue[tail] = e
                    tail += 1
        if tail == level_end:
            return True
    return False


@compiled
def _walk(
    flows: Flows, root: int, before_ms: int, mark: Int64, every: bool, path: Int64, at: Int64, found: Cycles
) -> None:
    """Walk from `root`, oldest payment first, and record the cycles; `path` and `at` are scratch."""
    start = flows.sender[root]
    base = root * (LONGEST + 1)
    path[0] = root
    at[0] = flows.next_made[root]
    length = 1
    n_found = 0
    while length > 0 and n_found < MOST:
        e = path[length - 1]
        k = at[length - 1]
        at[length - 1] = k + 1
        if k >= min(flows.next_made[e] + NEAR, flows.made_start[flows.receiver[e] + 1]):
            length -= 1
            continue
        f = flows.made[k]
        if flows.ts_ms[f] >= before_ms:
            length -= 1
            continue
        to_end = max(mark[f] - base, 0)
        left = LONGEST - length
        if to_end > left or (to_end == 0 and (every or left <= _BACK)):
            continue
        if flows.received_at[e] < flows.past_received[f] - NEAR:
            continue
        if flows.receiver[f] == start:
            if to_end == 1:
                path[length] = f
                _record(flows, path[: length + 1], found)
                n_found += 1
        elif not _passes(flows, path[:length], flows.receiver[f]):
            path[length] = f
            at[length] = flows.next_made[f]
            length += 1


@compiled
def _passes(flows: Flows, path: Int64, account: int) -> bool:
    for e in path:  # noqa: SIM110  any() of a generator does not compile
        if flows.sender[e] == account or flows.receiver[e] == account:
            return True
    return False


@compiled
def _record(flows: Flows, path: Int64, found: Cycles) -> None:
    if len(path) == 2:
        for e in path:
            found.round_trips[flows.sender[e]] += 1
        return
    least = flows.amount[path[0]]
    most = least
    for e in path:
        least = min(least, flows.amount[e])
        most = max(most, flows.amount[e])
    kept = least / max(most, 1)
    last_ms = flows.ts_ms[path[-1]]
    for e in path:
        a = flows.sender[e]
        found.longer[a] += 1
        found.shortest[a] = len(path) if found.shortest[a] == 0 else min(found.shortest[a], len(path))
        found.newest_ms[a] = max(found.newest_ms[a], last_ms)
        found.kept[a] = max(found.kept[a], kept)
