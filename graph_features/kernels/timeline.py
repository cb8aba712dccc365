"""Payments grouped by account or pair, oldest first, and what became known of them: the input of every kernel.

Four groupings: what an account *sent*, what it *received*, what it did in *either* direction (a payment to oneself
once) and what one sender paid one receiver (*pairs*). Each index is built once per EdgeTable and kept on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from graph_features.contracts import STATUSES
from graph_features.edges import Changes, EdgeTable, Int8, Int32, Int64

COMPLETED = STATUSES.index("completed")

Codes = npt.NDArray[np.signedinteger[Any]]


class Side(StrEnum):
    """How payments are grouped."""

    SENT = "sent"
    RECEIVED = "received"
    EITHER = "either"
    PAIRS = "pairs"


class Timeline(NamedTuple):
    """Payments of group g are entries offsets[g]:offsets[g + 1], by (time, transaction id); so are its status changes.

    `change_at` is the changed payment's position within its group. All arrays are read-only, of one type each, so that
    every kernel is compiled once.
    """

    offsets: Int64
    edge: Int64
    ts_ms: Int64
    amount: Int64
    change_offsets: Int64
    change_at: Int64
    change_ts_ms: Int64
    change_value: Int8


class Deltas(NamedTuple):
    """What changed a yes-or-no state of payments (it counts; it is a known fraud): +1 or -1 each, in order of time."""

    edge: Int64
    ts_ms: Int64
    delta: Int64


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Entries of a grouping before times and amounts are looked up.

    `groups` is (n_edges, 1 or 2) group codes, -1 for none.
    """

    groups: Codes
    offsets: Int64
    order: Int64
    """Which cell of `groups` each entry is."""

    @classmethod
    def of(cls, groups: Codes, n_groups: int) -> Grouping:
        from graph_features.kernels.sorting import by_code

        offsets, order = by_code(groups.ravel(), n_groups)
        return cls(groups=groups, offsets=offsets, order=order)

    @property
    def edge(self) -> Int64:
        """Which edge each entry is; `timeline` keeps it."""
        width = self.groups.shape[1]
        return self.order if width == 1 else self.order // width

    @cached_property
    def _location(self) -> Codes:
        """The entry of each cell of `groups`."""
        location: Codes = np.full(self.groups.size, -1, np.int32 if self.groups.size < 2**31 else np.int64)
        location[self.order] = np.arange(len(self.order))
        return location

    @property
    def n_groups(self) -> int:
        return len(self.offsets) - 1

    def spread(self, edge: Int64) -> tuple[Int64, Int64, Int64]:
        """Hand items of `edge` to each group that holds the edge: item, group and position in it, in order of items."""
        width = self.groups.shape[1]
        group = self.groups[edge].ravel()
        item = np.repeat(np.arange(len(edge)), width)
        location = self._location[(edge[:, None] * width + np.arange(width)).ravel()]
        held = group >= 0
        item, group, location = item[held], group[held].astype(np.int64), location[held]
        return item, group, location - self.offsets[group]


def read_only(array: npt.NDArray[np.generic], dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
    """Return `array` as contiguous and read-only, copied only where it is of another type."""
    view = np.ascontiguousarray(array, dtype).view()
    view.setflags(write=False)
    return view


def grouping(edges: EdgeTable, side: Side) -> Grouping:
    """Return the grouping of `edges` by `side`."""
    return edges.memo(("grouping", side), lambda: _group(edges, side))


def _group(edges: EdgeTable, side: Side) -> Grouping:
    match side:
        case Side.SENT:
            return Grouping.of(edges.sender[:, None], edges.n_accounts)
        case Side.RECEIVED:
            return Grouping.of(edges.receiver[:, None], edges.n_accounts)
        case Side.EITHER:
            other_end = np.where(edges.sender == edges.receiver, np.int32(-1), edges.receiver)
            return Grouping.of(np.stack((edges.sender, other_end), axis=1), edges.n_accounts)
        case Side.PAIRS:
            pairs = pair_index(edges)
            return Grouping.of(pairs.of_edge[:, None], len(pairs.key))


def timeline(edges: EdgeTable, side: Side) -> Timeline:
    """Return the payments of `edges` grouped by `side`, with their status changes."""
    return edges.memo(("timeline", side), lambda: _timeline(edges, side))


def _timeline(edges: EdgeTable, side: Side) -> Timeline:
    from graph_features.kernels.sorting import by_code

    groups = grouping(edges, side)
    item, group, at = groups.spread(edges.statuses.edge)
    change_offsets, order = by_code(group, groups.n_groups)
    item = item[order]
    return Timeline(
        offsets=read_only(groups.offsets),
        edge=read_only(groups.edge),
        ts_ms=read_only(edges.ts_ms[groups.edge]),
        amount=read_only(edges.amount[groups.edge]),
        change_offsets=read_only(change_offsets),
        change_at=read_only(at[order]),
        change_ts_ms=read_only(edges.statuses.ts_ms[item]),
        change_value=read_only(edges.statuses.value[item], np.int8),
    )


@dataclass(frozen=True, kw_only=True)
class PairIndex:
    """Distinct (sender, receiver) pairs in order: a pair's code is its position in `key`.

    `key` is sender * n_accounts + receiver.
    """

    key: Int64
    sender: Int32
    receiver: Int32
    of_edge: Int64
    n_accounts: int

    def codes(self, sender: npt.NDArray[np.integer], receiver: npt.NDArray[np.integer]) -> Int64:
        """Return pair codes, -1 where the sender never paid the receiver."""
        wanted = sender.astype(np.int64) * self.n_accounts + receiver
        at = np.searchsorted(self.key, wanted)
        found = (sender >= 0) & (receiver >= 0) & (at < len(self.key))
        found &= np.append(self.key, -1)[at] == wanted
        return np.where(found, at, -1)


def pair_index(edges: EdgeTable) -> PairIndex:
    """Return the pairs of `edges`."""

    def build() -> PairIndex:
        from graph_features.kernels.sorting import by_two_codes

        order = by_two_codes(edges.sender, edges.receiver, edges.n_accounts)
        sender, receiver = edges.sender[order], edges.receiver[order]
        key = sender.astype(np.int64) * edges.n_accounts + receiver
        new = np.diff(key, prepend=-1) != 0
        of_edge = np.empty(len(order), np.int64)
        of_edge[order] = np.cumsum(new) - 1
        return PairIndex(
            key=key[new], sender=sender[new], receiver=receiver[new], of_edge=of_edge, n_accounts=edges.n_accounts
        )

    return edges.memo("pairs", build)


def counterparties(edges: EdgeTable, side: Side) -> Int32:
    """Return per entry of the sent or received timeline its counterparty, numbered from 0 within each account."""

    def build() -> Int32:
        from graph_features.kernels.sorting import by_code

        pairs = pair_index(edges)
        account = pairs.sender if side is Side.SENT else pairs.receiver
        offsets, order = by_code(account, edges.n_accounts)
        number = np.empty(len(pairs.key), np.int32)
        number[order] = np.arange(len(order)) - offsets[account[order]]
        return read_only(number[pairs.of_edge[timeline(edges, side).edge]], np.int32)

    return edges.memo(("counterparties", side), build)


def known_ms(edges: EdgeTable, changes: Changes) -> Int64:
    """When each change counts from: when it became known, but not before its payment happened."""
    return np.maximum(changes.ts_ms, edges.ts_ms[changes.edge])


def deltas(edges: EdgeTable, changes: Changes, state: npt.NDArray[np.bool_], *, before: bool) -> Deltas:
    """Return what `changes` do to a state of payments that is `before` at first and that each change makes `state`."""
    order = np.argsort(changes.edge, kind="stable")
    edge, now = changes.edge[order], state[order].astype(np.int64)
    previous = np.empty_like(now)
    previous[1:] = now[:-1]
    previous[np.flatnonzero(np.diff(edge, prepend=-1))] = int(before)
    delta = np.empty_like(now)
    delta[order] = now - previous
    effective = np.flatnonzero(delta)
    return Deltas(edge=changes.edge[effective], ts_ms=known_ms(edges, changes)[effective], delta=delta[effective])
