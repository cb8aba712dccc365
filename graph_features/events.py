"""When the rows of a view are renewed: the instants at which something happened to an account or a pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph_features.clock import NEVER_MS
from graph_features.edges import EdgeTable, Int64
from graph_features.kernels.timeline import Grouping, Side, grouping, known_ms, read_only, timeline
from graph_features.schema import Renewal, ViewSchema

AS_OF_AFTER_MS = 1
"""What happened at t gives the row with as_of = t + 1 ms."""


@dataclass(frozen=True, kw_only=True)
class EventIndex:
    """Distinct instants per group (account or pair code): those of group g are ts_ms[offsets[g]:offsets[g + 1]].

    `newest_seq` is the last ingest sequence among what happened at each instant.
    """

    offsets: Int64
    ts_ms: Int64
    newest_seq: Int64

    @property
    def n_groups(self) -> int:
        return len(self.offsets) - 1

    def group(self) -> Int64:
        """Return the group of every instant: made anew, for it is as long as the history and seldom wanted."""
        return np.repeat(np.arange(self.n_groups), np.diff(self.offsets))

    def last_before(self, before_ms: int) -> Int64:
        """Return per group the position of its last instant before `before_ms`, -1 if there is none."""
        from graph_features.kernels.instants import count_before

        earlier = count_before(self.offsets, self.ts_ms, before_ms)
        return np.where(earlier > 0, self.offsets[:-1] + earlier - 1, -1)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a stored row covers of its entity's events: those before `as_of_ms` that were ingested up to `seq`."""

    as_of_ms: int
    seq: int


NOTHING_COVERED = Coverage(as_of_ms=-1, seq=-1)
LAST_WANTED = Coverage(as_of_ms=NEVER_MS, seq=NEVER_MS)
"""For an entity whose past is not asked for, only its last row."""


def events(edges: EdgeTable, view: ViewSchema) -> EventIndex:
    """Return when the rows of an event view are renewed, per account or, for pairs, per pair code."""
    side = Side.PAIRS if view.entity == "pair" else Side.EITHER
    return edges.memo(("events", side, view.renewed_by), lambda: _events(edges, side, view.renewed_by))


def _events(edges: EdgeTable, side: Side, renewed_by: tuple[Renewal, ...]) -> EventIndex:
    from graph_features.kernels.instants import merge_instants
    from graph_features.kernels.sorting import by_code_and_time

    groups = grouping(edges, side)
    # What was known before its payment happened counts from the payment on.
    changes = [
        _instants(groups, of.edge, known_ms(edges, of), of.seq)
        for kind, of in ((Renewal.STATUS, edges.statuses), (Renewal.LABEL, edges.labels))
        if kind in renewed_by
    ] or [_instants(groups, *np.empty((3, 0), np.int64))]
    group, ts_ms, seq = (np.concatenate(column) for column in zip(*changes, strict=True))
    change_offsets, order = by_code_and_time(group, ts_ms, groups.n_groups)
    offsets, instants, newest = merge_instants(
        timeline(edges, side),
        read_only(edges.seq),
        read_only(change_offsets),
        read_only(ts_ms[order]),
        read_only(seq[order]),
    )
    return EventIndex(offsets=read_only(offsets), ts_ms=read_only(instants), newest_seq=newest)


def _instants(groups: Grouping, edge: Int64, ts_ms: Int64, seq: Int64) -> tuple[Int64, Int64, Int64]:
    item, group, _ = groups.spread(edge)
    return group, ts_ms[item], seq[item]


def rows_between(
    index: EventIndex, *, from_ms: int, to_ms: int, groups: npt.NDArray[np.integer] | None = None
) -> tuple[Int64, Int64]:
    """Return (group, as_of_ms) of the snapshot row before `from_ms` and every row of an event in [from_ms, to_ms).

    Sorted by group and time; only the given groups if any are.
    """
    chosen = (index.ts_ms >= from_ms) & (index.ts_ms < to_ms)
    before = index.last_before(min(from_ms, to_ms))
    chosen[before[before >= 0]] = True
    group = index.group()
    if groups is not None:
        wanted = np.zeros(index.n_groups, np.bool_)
        wanted[groups] = True
        chosen &= wanted[group]
    return group[chosen], index.ts_ms[chosen] + AS_OF_AFTER_MS


def last_rows(
    index: EventIndex, *, before_ms: int, groups: npt.NDArray[np.integer] | None = None
) -> tuple[Int64, Int64]:
    """Return (group, as_of_ms) of the last event before `before_ms`, for the groups that had one."""
    last = index.last_before(before_ms)
    group = np.arange(index.n_groups) if groups is None else np.asarray(groups, np.int64)
    last = last[group]
    some = last >= 0
    return group[some], index.ts_ms[last[some]] + AS_OF_AFTER_MS


def rows_not_covered(
    index: EventIndex, *, before_ms: int, groups: Int64, as_of_ms: Int64, seq: Int64
) -> tuple[Int64, Int64]:
    """Return (group, as_of_ms) of the rows before `before_ms` that are missing or changed.

    A group's stored rows cover its events before `as_of_ms` ingested up to `seq`. An event that is later, or was
    ingested later, changes its own row and all that follow it. Of a group with the bounds of LAST_WANTED the last row
    counts as missing.
    """
    covered_as_of, covered_seq = np.full((2, index.n_groups), NEVER_MS)
    covered_as_of[groups], covered_seq[groups] = as_of_ms, seq
    group = index.group()
    uncovered = (index.ts_ms >= covered_as_of[group]) | (index.newest_seq > covered_seq[group])
    at = np.flatnonzero(uncovered)[::-1]
    first = np.full(len(covered_seq), len(index.ts_ms))
    first[group[at]] = at  # the last assignment stays: the earliest event
    chosen = (np.arange(len(index.ts_ms)) >= first[group]) & (index.ts_ms < before_ms)
    last = index.last_before(before_ms)[groups[as_of_ms == LAST_WANTED.as_of_ms]]
    chosen[last[last >= 0]] = True
    return group[chosen], index.ts_ms[chosen] + AS_OF_AFTER_MS
