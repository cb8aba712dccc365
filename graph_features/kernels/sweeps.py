"""The kernels as feature modules call them: queries in any order, plain arrays back, in the order of the queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.contracts import STATUSES
from graph_features.edges import EdgeTable, Float64, Int64
from graph_features.errors import FeatureComputationError
from graph_features.histogram import HISTOGRAM_BINS, histogram_bin
from graph_features.kernels.timeline import COMPLETED, Side, counterparties, grouping, pair_index, read_only, timeline
from graph_features.rows import ListColumn
from graph_features.standings import LARGEST_SUM
from graph_features.window_spec import Window

if TYPE_CHECKING:
    from graph_features.kernels.known_labels import LabelTimeline

# Kernels are imported inside the functions: numba takes most of a second, and listing the catalogue needs none of it.

ArrayT = TypeVar("ArrayT", bound=npt.NDArray[Any])

FAILED, REVERSED = STATUSES.index("failed"), STATUSES.index("reversed")


@dataclass(frozen=True, kw_only=True)
class Queries:
    """(group, as_of) sorted for the kernels; `back` undoes the sorting, None if there was nothing to sort."""

    group: Int64
    as_of_ms: Int64
    back: Int64 | None

    @classmethod
    def of(cls, group: npt.NDArray[Any], as_of_ms: Int64) -> Queries:
        group = np.asarray(group, np.int64)
        step, later = np.diff(group), np.diff(as_of_ms) >= 0
        if bool(np.all((step > 0) | ((step == 0) & later))):
            return cls(group=read_only(group), as_of_ms=read_only(as_of_ms), back=None)
        order = np.lexsort((as_of_ms, group))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return cls(group=read_only(group[order]), as_of_ms=read_only(as_of_ms[order]), back=back)

    def restore(self, result: ArrayT) -> ArrayT:
        """Put results, queries along the last axis, back into the callers' order."""
        return result if self.back is None else result[..., self.back]  # type: ignore[return-value]

    def restore_lists(self, offsets: Int64, values: npt.NDArray[Any]) -> ListColumn:
        """Do the same with a list of 8-byte numbers per query."""
        if self.back is None:
            return ListColumn(offsets=offsets, values=values)
        rows = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values)).take(self.back)
        return ListColumn(offsets=rows.offsets.to_numpy(), values=rows.values.to_numpy(zero_copy_only=False))


@dataclass(frozen=True, kw_only=True)
class WindowSums:
    """Per window (rows) and query (columns): count, sum, maximum, squared deviations, distinct counterparties.

    Where the count is 0 the maximum means nothing.
    """

    count: Int64
    total: Int64
    largest: Int64
    deviations: Float64
    distinct: Int64

    def at(self, window: int) -> WindowSums:
        """Return the arrays of one window, one value per query."""
        return WindowSums(
            count=self.count[window],
            total=self.total[window],
            largest=self.largest[window],
            deviations=self.deviations[window],
            distinct=self.distinct[window],
        )


def window_sums(
    edges: EdgeTable,
    side: Side,
    group: npt.NDArray[Any],
    as_of_ms: Int64,
    windows: Sequence[Window | None],
    *,
    distinct: bool = False,
) -> WindowSums:
    """Sum up the payments of each group in each window before as_of; None is all time.

    `distinct` also counts counterparties, for the sent and received sides. Raises FeatureComputationError for groups
    whose sums do not fit 64 bits.
    """
    from graph_features.kernels.windows import sweep_windows

    check_sums(edges, side, group)
    queries = Queries.of(group, as_of_ms)
    other = counterparties(edges, side) if distinct else read_only(np.empty(0, np.int32), np.int32)
    results = sweep_windows(timeline(edges, side), other, queries.group, queries.as_of_ms, *_spans(windows), COMPLETED)
    count, total, largest, deviations, met = (queries.restore(result) for result in results)
    return WindowSums(count=count, total=total, largest=largest, deviations=deviations, distinct=met)


def _spans(windows: Sequence[Window | None]) -> tuple[Int64, Int64]:
    """Lengths (-1 for all time) and grains in milliseconds."""
    lengths_ms = [-1 if window is None or window.length_ms is None else window.length_ms for window in windows]
    grains_ms = [1 if window is None else window.grain_ms for window in windows]
    return read_only(np.array(lengths_ms, np.int64)), read_only(np.array(grains_ms, np.int64))


def check_sums(edges: EdgeTable, side: Side, group: npt.NDArray[Any]) -> None:
    """Raise FeatureComputationError naming those groups whose amounts may not add up within 64 bits."""

    def too_large() -> Int64:
        groups = grouping(edges, side)
        most = int(np.max(np.diff(groups.offsets), initial=0))
        if most * int(np.max(np.abs(edges.amount), initial=0)) <= LARGEST_SUM:
            return np.empty(0, np.int64)
        weights = np.abs(edges.amount[groups.edge]).astype(np.float64)
        sums = np.bincount(np.repeat(np.arange(groups.n_groups), np.diff(groups.offsets)), weights, groups.n_groups)
        return np.flatnonzero(sums > LARGEST_SUM)

    over = edges.memo(("too_large", side), too_large)
    if not len(over):
        return
    hit = np.intersect1d(over, group)
    if len(hit):
        reason = f"amounts {side} add up to more than {LARGEST_SUM} minor units"
        raise FeatureComputationError({_group_name(edges, side, int(g)): reason for g in hit})


def _group_name(edges: EdgeTable, side: Side, group: int) -> str:
    if side is not Side.PAIRS:
        return str(edges.account_ids[group])
    sender, receiver = divmod(int(pair_index(edges).key[group]), edges.n_accounts)
    return f"{edges.account_ids[sender]} to {edges.account_ids[receiver]}"


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """When payments happen, one value per query; gap deviations are in ms squared.

    Where the count is 0 the other values mean nothing.
    """

    total_count: Int64
    first_ms: Int64
    last_ms: Int64
    gap_deviations: Float64
    hour: Int64
    weekday: Int64


def rhythm(edges: EdgeTable, side: Side, group: npt.NDArray[Any], as_of_ms: Int64) -> Rhythm:
    """Describe the times of each group's payments before as_of."""
    from graph_features.kernels.rhythm import sweep_rhythm

    queries = Queries.of(group, as_of_ms)
    results = sweep_rhythm(timeline(edges, side), queries.group, queries.as_of_ms, COMPLETED)
    count, first, last, deviations, hour, weekday = (queries.restore(result) for result in results)
    return Rhythm(
        total_count=count,
        first_ms=first,
        last_ms=last,
        gap_deviations=deviations,
        hour=hour,
        weekday=weekday,
    )


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """How an account pays: attempts and what became of them, entropy of channels in bits, bursts."""

    attempts: Int64
    failed: Int64
    reversed: Int64
    channel_entropy: Float64
    busiest_hour: Int64
    active_days: Int64


def conduct(edges: EdgeTable, account: npt.NDArray[Any], as_of_ms: Int64) -> Conduct:
    """Describe the payments that each account tried to make before as_of, failed and reversed ones included."""
    from graph_features.kernels.conduct import sweep_conduct

    queries = Queries.of(account, as_of_ms)
    sent = timeline(edges, Side.SENT)
    channel = edges.memo("channel_sent", lambda: read_only(edges.channel[sent.edge], np.int32))
    results = sweep_conduct(sent, channel, len(edges.channels), queries.group, queries.as_of_ms, FAILED, REVERSED)
    attempts, failed, reversed_, entropy, busiest, days = (queries.restore(result) for result in results)
    return Conduct(
        attempts=attempts,
        failed=failed,
        reversed=reversed_,
        channel_entropy=entropy,
        busiest_hour=busiest,
        active_days=days,
    )


def amount_histogram(edges: EdgeTable, side: Side, group: npt.NDArray[Any], as_of_ms: Int64) -> ListColumn:
    """Count each group's payments before as_of by bin of amount: see graph_features.histogram."""
    from graph_features.kernels.bins import sweep_bins

    queries = Queries.of(group, as_of_ms)
    payments = timeline(edges, side)
    bin_of = edges.memo(("bins", side), lambda: read_only(histogram_bin(payments.amount), np.int16))
    offsets, values = sweep_bins(payments, bin_of, HISTOGRAM_BINS, queries.group, queries.as_of_ms, COMPLETED)
    return queries.restore_lists(offsets, values)


@dataclass(frozen=True, kw_only=True)
class LabelState:
    """What is known of labels; index 0 is genuine, 1 fraud. See kernels.known_labels.sweep_labels for shapes."""

    count: Int64
    window_count: Int64
    last_ms: Int64
    last_known_ms: Int64
    run_kind: Int64
    run_length: Int64
    run_start_ms: Int64
    ordinary_frauds: Int64


def label_state(
    labels: LabelTimeline, group: npt.NDArray[Any], as_of_ms: Int64, windows: Sequence[Window]
) -> LabelState:
    """Describe the labels of each group's payments that were known before as_of."""
    from graph_features.kernels.known_labels import sweep_labels

    queries = Queries.of(group, as_of_ms)
    results = sweep_labels(labels, queries.group, queries.as_of_ms, *_spans(windows))
    count, window_count, last, run, ordinary = (queries.restore(result) for result in results)
    return LabelState(
        count=count,
        window_count=window_count,
        last_ms=last[:2],
        last_known_ms=last[2:],
        run_kind=run[0],
        run_length=run[1],
        run_start_ms=run[2],
        ordinary_frauds=ordinary,
    )


def recent_payments(edges: EdgeTable, account: npt.NDArray[Any], as_of_ms: Int64, limit: int) -> tuple[Int64, Int64]:
    """Return number (n) and edges (n, limit) of each account's newest payments before as_of in either direction."""
    from graph_features.kernels.recent import sweep_recent

    queries = Queries.of(account, as_of_ms)
    number, found = sweep_recent(timeline(edges, Side.EITHER), queries.group, queries.as_of_ms, limit, COMPLETED)
    return queries.restore(number), found if queries.back is None else found[queries.back]
