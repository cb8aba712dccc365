"""Windows at the very instant of a payment, finished from the buckets in a row of `account_windows`. NumPy only.

At the row's as_of, and at any later instant before the account's next event, the results are those of the features of
the same names (graph_features.activity, graph_features.exposure): counts, sums and maxima to the unit, means and
standard deviations to a few ulp.

Shape letters: n rows, S = 2n segments (the sent sides of all rows, then the received ones), E buckets, W windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_features.clock import MINUTE_MS
from graph_features.stores.blocks import RowBlock
from graph_features.window_spec import (
    ACTIVITY_FEATURES,
    BOTH_WAYS_WINDOWS,
    BOUNDED,
    BUCKET,
    COUNTERPARTY_WINDOWS,
    EXPOSURE_FEATURES,
    FLOW_WINDOW,
    LABEL_BUCKET,
    LABEL_WINDOWS,
    SIDES,
)

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

COUNT, TOTAL, LAST_OF = 0, 1, 2
GENUINE, FRAUD = 0, 1

_LENGTH_MS = np.array([[window.length_ms] for window in BOUNDED], np.int64)
_GRAIN_MS = np.array([[window.grain_ms] for window in BOUNDED], np.int64)
_GRAIN_MINUTES = _GRAIN_MS // MINUTE_MS

# Positions among BOUNDED: looking them up compares windows field by field.
_FLOW = BOUNDED.index(FLOW_WINDOW)
_BOTH_WAYS = tuple(BOUNDED.index(window) for window in BOTH_WAYS_WINDOWS)
_COUNTERPARTY = tuple(BOUNDED.index(window) for window in COUNTERPARTY_WINDOWS)
_LABELS = [BOUNDED.index(window) for window in LABEL_WINDOWS]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Windowed features of n accounts, each at an instant of its own; one int64 or float64 [n] per name, NaN is null.

    `features[view][name]` follows window_spec.FINISHED.
    """

    features: Mapping[str, Mapping[str, Int64 | Float64]]

    def matrix(self, view: str, names: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return float32 [n, len(names)] of features of one view."""
        found = self.features[view]
        out = np.empty((len(names), len(next(iter(found.values())))), np.float32)
        for row, name in zip(out, names, strict=True):
            row[:] = found[name]
        return out.T


def finish(rows: RowBlock, at_ms: Int64) -> Finished:
    """Finish the windows of n rows of `account_windows` for the instants `at_ms` int64 [n], epoch milliseconds.

    What comes out for an instant before the row's as_of means nothing. A row that is absent has no payments: counts are
    0, and means null.
    """
    starts = (np.concatenate((at_ms, at_ms)) - _LENGTH_MS) // _GRAIN_MS * _GRAIN_MINUTES
    return Finished(
        features={
            "account_activity": dict(zip(ACTIVITY_FEATURES, _activity(rows, starts), strict=True)),
            "account_exposure": dict(zip(EXPOSURE_FEATURES, _exposure(rows, starts), strict=True)),
        }
    )


def _activity(rows: RowBlock, starts: Int64) -> list[Int64 | Float64]:
    payments = _Payments(
        lists=_Lists.read(rows, "buckets", len(BUCKET)),
        starts=starts,
        maxima=_both(rows, "bucket_amount_maxima"),
        deviations=_both(rows, "bucket_amount_deviations"),
    )
    sums = payments.sums
    count, total, last_of = sums[..., COUNT], sums[..., TOTAL], sums[..., LAST_OF]
    mean = _divide(total, count)
    largest = np.where(count > 0, payments.largest, np.nan)
    std = np.sqrt(_divide(payments.squared_deviations, count - 1))
    n = len(rows)
    sent, received = slice(0, n), slice(n, 2 * n)
    out: list[Int64 | Float64] = []
    for values in (count, total, mean, largest, std):
        out.extend(values.reshape(2 * len(BOUNDED), n))
    for window in _COUNTERPARTY:
        out.extend(last_of[window].reshape(2, n))
    both = count[:, sent] + count[:, received]
    out.extend(both[window] for window in _BOTH_WAYS)
    flow = total[_FLOW]
    return [*out, flow[received] - flow[sent]]


def _exposure(rows: RowBlock, starts: Int64) -> list[Int64 | Float64]:
    labels = _Lists.read(rows, "label_buckets", len(LABEL_BUCKET))
    first = labels.first(starts[_LABELS])
    known = labels.running[labels.offsets[1:]] - labels.running[first]
    ratio = _divide(known[..., FRAUD], known[..., FRAUD] + known[..., GENUINE])
    n = len(rows)
    return [value for values in (known[..., FRAUD], ratio) for value in values.reshape(2 * len(LABEL_WINDOWS), n)]


@dataclass(frozen=True, kw_only=True)
class _Lists:
    """Buckets of S segments: those of segment s are `items[offsets[s]:offsets[s + 1]]`, oldest first."""

    offsets: Int64
    items: Int64

    @classmethod
    def read(cls, rows: RowBlock, name: str, width: int) -> _Lists:
        (sent, _), (received, _) = (rows.lists(f"{side}_{name}") for side in SIDES)
        offsets = np.concatenate((sent, sent[-1] + received[1:])) // width
        return cls(offsets=offsets, items=_both(rows, name).reshape(-1, width))

    @cached_property
    def running(self) -> Int64:
        """Running totals [E + 1, columns after the start]."""
        out = np.zeros((len(self.items) + 1, self.items.shape[1] - 1), np.int64)
        self.items[:, 1:].cumsum(axis=0, out=out[1:])
        return out

    def first(self, starts: Int64) -> Int64:
        """Return the first bucket [W, S] of each segment that does not begin before `starts` [W, S] minutes."""
        # Segment and minute in one number: minutes take less than 32 bits.
        segment = np.arange(len(self.offsets) - 1, dtype=np.int64) << 32
        key = segment.repeat(self.offsets[1:] - self.offsets[:-1]) + self.items[:, 0]
        return key.searchsorted(segment + starts)


@dataclass(frozen=True, kw_only=True)
class _Payments:
    """Buckets of payments and the starts [W, S] of the windows, shortest first."""

    lists: _Lists
    starts: Int64
    maxima: Int64
    deviations: Float64

    @cached_property
    def bounds(self) -> Int64:
        """Where each window begins, longest first, and where all end: [W + 1, S]. Between two lies a piece."""
        return np.concatenate((self.lists.first(self.starts)[::-1], self.lists.offsets[None, 1:]))

    @cached_property
    def pieces(self) -> Int64:
        """Count, sum and last counterparties of each piece [W, S, 3]."""
        running = self.lists.running[self.bounds]
        return running[1:] - running[:-1]

    @cached_property
    def sums(self) -> Int64:
        """The same of each window, shortest first."""
        return self.pieces[::-1].cumsum(axis=0)

    @cached_property
    def _many(self) -> Bools:
        return self.lists.items[:, 1 + COUNT] > 1

    @cached_property
    def largest(self) -> Int64:
        """Largest amount of each window [W, S], shortest first; means nothing without a payment."""
        # A bucket of one payment carries its amount as the sum alone.
        largest = self.lists.items[:, 1 + TOTAL].copy()
        largest[self._many] = self.maxima
        found = _by_piece(np.maximum, largest, self.bounds)
        found[self.pieces[..., COUNT] == 0] = np.iinfo(np.int64).min
        return np.maximum.accumulate(found[::-1], axis=0)

    @cached_property
    def squared_deviations(self) -> Float64:
        """Sum of squared deviations from the mean of each window [W, S], shortest first.

        Buckets make pieces, and pieces windows, by the formula of Chan, Golub and LeVeque (1979). A mean is kept as an
        integer beside it and the small rest, so that means of large amounts differ without cancelling.
        """
        near, rest = _mean(self.pieces[..., COUNT], self.pieces[..., TOTAL])
        inside = self._inside_pieces(near, rest)[::-1]
        near, rest, pieces = near[::-1], rest[::-1], self.pieces[::-1, :, COUNT]
        mean, mean_rest = _mean(self.sums[:-1, :, COUNT], self.sums[:-1, :, TOTAL])
        before, piece = self.sums[:-1, :, COUNT], pieces[1:]
        apart = (near[1:] - mean) + (rest[1:] - mean_rest)
        inside[1:] += before * (piece / np.maximum(before + piece, 1)) * (apart * apart)
        return inside.cumsum(axis=0)

    def _inside_pieces(self, near: Int64, rest: Float64) -> Float64:
        """Squared deviations of each piece [W, S] from its own mean."""
        # sum (x - mean)^2 = sum (x - near)^2 - count rest^2, of which the last is never nearly all of the one before.
        items = self.lists.items
        ends = self.bounds.T.ravel()
        near_of = np.zeros((near.shape[1], near.shape[0] + 1), np.int64)
        near_of[:, :-1] = near.T
        # What lies before the first piece, and between two segments, has no mean; 0 does.
        cuts = np.concatenate(([0], ends, [len(items)]))
        means = np.zeros(len(ends) + 1, np.int64)
        means[1:] = near_of.ravel()
        away = (items[:, 1 + TOTAL] - items[:, 1 + COUNT] * means.repeat(cuts[1:] - cuts[:-1])).astype(np.float64)
        spread = away * away / items[:, 1 + COUNT]
        spread[self._many] += self.deviations
        count = self.pieces[..., COUNT]
        found = np.where(count > 0, _by_piece(np.add, spread, self.bounds), 0.0)
        return found - count * (rest * rest)


def _both(rows: RowBlock, name: str) -> npt.NDArray[Any]:
    return np.concatenate([rows.lists(f"{side}_{name}")[1] for side in SIDES])


def _by_piece(reduce: np.ufunc, values: npt.NDArray[Any], bounds: Int64) -> npt.NDArray[Any]:
    """Reduce the buckets [bounds[w, s], bounds[w + 1, s]) to one value each [W, S]; empty pieces hold anything."""
    padded = np.zeros(len(values) + 1, values.dtype)
    padded[:-1] = values
    found = reduce.reduceat(padded, bounds.T.ravel()).reshape(bounds.T.shape)
    return found[:, :-1].T


def _mean(count: Int64, total: Int64) -> tuple[Int64, Float64]:
    """Return an integer less than 1 from each mean and what is left to the mean, to a few ulp; 0 without a payment."""
    count = np.maximum(count, 1)
    near = np.rint(total / count).astype(np.int64)
    return near, (total - near * count) / count


def _divide(numerator: Int64 | Float64, denominator: Int64) -> Float64:
    """numerator / denominator, NaN where the denominator is 0 or less."""
    out: Float64 = np.empty(denominator.shape)
    out.fill(np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out
