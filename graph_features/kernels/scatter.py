"""Fans and what is behind them: bursts, one to many to one (scatter-gather), many to one to many (gather-scatter)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graph_features.edges import Int32, Int64
from graph_features.kernels.compiled import compiled
from graph_features.kernels.flows import NEAR, Flows

_FIRST, _SECOND, _BETWEEN, _SINK = range(4)
"""Columns of paths of two steps: the payments by their numbers, and the accounts that they lead to."""


class Scatter(NamedTuple):
    """Per account the largest number of intermediaries of a scatter-gather where it is source, sink or one of them."""

    source: Int64
    sink: Int64
    between: Int64


@compiled
def widest_fan(start: Int64, order: Int64, other: Int32, ts_ms: Int64, window_ms: int) -> Int64:
    """Return per account the most distinct `other` ends of its payments with less than `window_ms` from first to last.

    Its payments are `order[start[a]:start[a + 1]]`, oldest first.
    """
    n = len(start) - 1
    widest = np.zeros(n, np.int64)
    seen = np.zeros(n, np.int32)
    for a in range(n):
        oldest = start[a]
        distinct = 0
        for k in range(start[a], start[a + 1]):
            e = order[k]
            distinct += _enter(seen, other[e])
            while ts_ms[order[oldest]] <= ts_ms[e] - window_ms:
                distinct -= _leave(seen, other[order[oldest]])
                oldest += 1
            widest[a] = max(widest[a], distinct)
        for k in range(oldest, start[a + 1]):
            seen[other[order[k]]] = 0
    return widest


@compiled
def _enter(seen: Int32, key: int) -> int:
    """Count `key` once more; return 1 if it is new."""
    seen[key] += 1
    return 1 if seen[key] == 1 else 0


@compiled
def _leave(seen: Int32, key: int) -> int:
    """Count `key` once less; return 1 if it is gone."""
    seen[key] -= 1
    return 1 if seen[key] == 0 else 0


@compiled
def gather_scatter(flows: Flows, window_ms: int) -> Int64:
    """Return per account the largest min(distinct payers, distinct payees) around the time t of a payment it made.

    Payers are those of [t - window_ms, t), payees those of [t, t + window_ms).
    """
    n = len(flows.made_start) - 1
    widest = np.zeros(n, np.int64)
    payers_seen = np.zeros(n, np.int32)
    payees_seen = np.zeros(n, np.int32)
    for a in range(n):
        made_end, received_end = flows.made_start[a + 1], flows.received_start[a + 1]
        next_payee, oldest, newest = flows.made_start[a], flows.received_start[a], flows.received_start[a]
        payers, payees = 0, 0
        if oldest == received_end:
            continue
        for k in range(flows.made_start[a], made_end):
            t_ms = flows.ts_ms[flows.made[k]]
            while next_payee < made_end and flows.ts_ms[flows.made[next_payee]] < t_ms + window_ms:
                payees += _enter(payees_seen, flows.receiver[flows.made[next_payee]])
                next_payee += 1
            while newest < received_end and flows.ts_ms[flows.received[newest]] < t_ms:
                payers += _enter(payers_seen, flows.sender[flows.received[newest]])
                newest += 1
            while oldest < newest and flows.ts_ms[flows.received[oldest]] < t_ms - window_ms:
                payers -= _leave(payers_seen, flows.sender[flows.received[oldest]])
                oldest += 1
            widest[a] = max(widest[a], min(payers, payees))
            payees -= _leave(payees_seen, flows.receiver[flows.made[k]])
        for k in range(oldest, newest):
            payers_seen[flows.sender[flows.received[k]]] = 0
    return widest


def scatter_gather(flows: Flows, window_ms: int) -> Scatter:
    """Return per account the widest scatter-gather that it takes part in.

    A source pays an intermediary, which later pays a sink, by a step that is followed (see flows); source, intermediary
    and sink differ. The width of a source and a sink is the most distinct intermediaries that have both payments within
    one window: less than `window_ms` from the first payment of all to the last. What an account gets as an intermediary
    is the largest width of the pairs that it linked within a window.
    """
    n = len(flows.made_start) - 1
    found = Scatter(*(np.zeros(n, np.int64) for _ in range(3)))
    _search(flows, window_ms, found)
    return found


@compiled
def _search(flows: Flows, window_ms: int, found: Scatter) -> None:
    """Source by source: list its paths of two steps, group them by sink, sweep each group in time."""
    n = len(flows.made_start) - 1
    most = 0
    for a in range(n):
        most = max(most, flows.made_start[a + 1] - flows.made_start[a])
    paths = np.empty((most * NEAR, 4), np.int64)
    grouped = np.empty(most * NEAR, np.int64)
    size = np.zeros(n, np.int64)
    place = np.zeros(n, np.int64)
    alive = np.zeros(n, np.int32)
    for source in range(n):
        n_paths = _list_paths(flows, source, window_ms, paths, size)
        if n_paths == 0:
            continue
        _record(found, source, paths[:n_paths], 1)
        n_grouped = _group_by_sink(paths[:n_paths], size, place, grouped)
        first = 0
        while first < n_grouped:
            end = first + size[paths[grouped[first], _SINK]]
            group = paths[grouped[first:end]]
            _record(found, source, group, _width(flows, group, window_ms, alive))
            first = end
        for k in range(n_paths):
            size[paths[k, _SINK]] = 0
            place[paths[k, _SINK]] = 0


@compiled
def _list_paths(flows: Flows, source: int, window_ms: int, paths: Int64, size: Int64) -> int:
    """Write the followed steps from what `source` made, oldest first; return their number, add it up in `size`."""
    count = 0
    for k in range(flows.made_start[source], flows.made_start[source + 1]):
        e = flows.made[k]
        between = flows.receiver[e]
        first = flows.next_made[e]
        for j in range(first, min(first + NEAR, flows.made_start[between + 1])):
            f = flows.made[j]
            if flows.ts_ms[f] >= flows.ts_ms[e] + window_ms:
                break
            sink = flows.receiver[f]
            if sink != source and flows.received_at[e] >= flows.past_received[f] - NEAR:
                paths[count, _FIRST] = e
                paths[count, _SECOND] = f
                paths[count, _BETWEEN] = between
                paths[count, _SINK] = sink
                size[sink] += 1
                count += 1
    return count


@compiled
def _group_by_sink(paths: Int64, size: Int64, place: Int64, grouped: Int64) -> int:
    """Write the positions of paths that share their sink, sink by sink and oldest first; return their number.

    `size` holds the paths per sink, `place` is zero: where a sink's next path goes, plus one.
    """
    total = 0
    for k in range(len(paths)):
        sink = paths[k, _SINK]
        if size[sink] > 1:
            if place[sink] == 0:
                place[sink] = total + 1
                total += size[sink]
            grouped[place[sink] - 1] = k
            place[sink] += 1
    return total


@compiled
def _record(found: Scatter, source: int, paths: Int64, width: int) -> None:
    """Give `width` to all that take part in these paths."""
    found.source[source] = max(found.source[source], width)
    for k in range(len(paths)):
        sink, between = paths[k, _SINK], paths[k, _BETWEEN]
        found.sink[sink] = max(found.sink[sink], width)
        found.between[between] = max(found.between[between], width)


@compiled
def _width(flows: Flows, paths: Int64, window_ms: int, alive: Int32) -> int:
    """Return the most intermediaries at once, of paths between one source and one sink by the time of their first step.

    A path counts from its second step until `window_ms` after its first: at the last step of all, those whose first
    step lies within the window. `alive` counts paths per intermediary and is zero before and after.
    """
    arrival = np.argsort(paths[:, _SECOND])  # payments are numbered by time
    widest, distinct, oldest = 0, 0, 0
    for k in range(len(paths)):
        path = arrival[k]
        now_ms = flows.ts_ms[paths[path, _SECOND]]
        distinct += _enter(alive, paths[path, _BETWEEN])
        # What leaves has entered: its second step came within the window after its first, hence before now.
        while flows.ts_ms[paths[oldest, _FIRST]] <= now_ms - window_ms:
            distinct -= _leave(alive, paths[oldest, _BETWEEN])
            oldest += 1
        widest = max(widest, distinct)
    for k in range(oldest, len(paths)):
        alive[paths[k, _BETWEEN]] = 0
    return widest
