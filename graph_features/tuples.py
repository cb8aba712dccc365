"""Input tuples: stored rows and payments to the arrays that a model takes. Training and serving both call this.

What depends on the payment's own time is finished here: windows, ages, gaps, amounts against history. NumPy only.

Shape letters: B payments, A = 2B accounts (senders, then receivers), E neighbour edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_features.finish import Finished, finish
from graph_features.histogram import amount_percentiles
from graph_features.input_spec import (
    EDGE_FEATURES,
    NEIGHBOUR_VIEW,
    HistoryFeature,
    InputSpec,
    ViewColumns,
    is_finished,
)
from graph_features.neighbour_spec import NEIGHBOUR_PROFILE, NEIGHBOUR_PROFILE_SIZE, SENT
from graph_features.schema import Cadence, EntityKey, ViewSchema
from graph_features.stores.blocks import RowBlock
from graph_features.transaction import TransactionColumns, request_features
from graph_features.window_spec import WINDOWS_VIEW

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MS_PER_S = 1_000.0


@dataclass(frozen=True, kw_only=True)
class TupleBlocks:
    """Rows of every view that a spec names, aligned with B payments.

    `accounts[view]` holds 2B rows, those of the senders and then those of the receivers; `pairs[view]` 2B rows too,
    (sender, receiver) and then (receiver, sender).
    """

    accounts: Mapping[str, RowBlock]
    pairs: Mapping[str, RowBlock]

    @classmethod
    def from_packed(cls, spec: InputSpec, values: Sequence[Sequence[bytes | None]]) -> TupleBlocks:
        """Decode what an online store returned for `row_requests(spec, transactions)`, in that order."""
        views = (*spec.account_views, *spec.pair_views)
        blocks = {view.name: RowBlock.from_packed(view, packed) for view, packed in zip(views, values, strict=True)}
        return cls(
            accounts={view.name: blocks[view.name] for view in spec.account_views},
            pairs={view.name: blocks[view.name] for view in spec.pair_views},
        )


def row_requests(spec: InputSpec, transactions: TransactionColumns) -> list[tuple[ViewSchema, list[EntityKey]]]:
    """Return what to read online for these payments: per view its 2B keys, in the order of TupleBlocks."""
    sender, receiver = transactions.sender_id.tolist(), transactions.receiver_id.tolist()
    accounts: list[EntityKey] = [(account,) for account in (*sender, *receiver)]
    pairs: list[EntityKey] = [*zip(sender, receiver, strict=True), *zip(receiver, sender, strict=True)]
    return [*((view, accounts) for view in spec.account_views), *((view, pairs) for view in spec.pair_views)]


@dataclass(frozen=True, kw_only=True)
class InputTuples:
    """What the model takes for B payments; float32, NaN is null.

    sender_x and receiver_x [B, len(spec.account)], transaction_x [B, len(spec.transaction_names)], neighbour_x
    [E, len(spec.neighbour_names)], neighbour_index int64 [E]: sorted, 0..B-1 for the sender's side of payment i and
    B..2B-1 for its receiver's side, newest edge first within each.
    """

    sender_x: Float32
    receiver_x: Float32
    transaction_x: Float32
    neighbour_x: Float32
    neighbour_index: Int64

    def __len__(self) -> int:
        return len(self.transaction_x)

    def feeds(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays by input name, in the model's order."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @cached_property
    def first_edge(self) -> Int64:
        """First edge of each account side, int64 [2B + 1]."""
        first = np.zeros(2 * len(self) + 1, np.int64)
        np.cumsum(np.bincount(self.neighbour_index, minlength=2 * len(self)), out=first[1:])
        return first

    def take(self, rows: Int64) -> InputTuples:
        """Return the payments at positions `rows`, in that order, with their neighbour edges."""
        sides = np.concatenate([rows, rows + len(self)])
        start, count = self.first_edge[sides], self.first_edge[sides + 1] - self.first_edge[sides]
        edges = _ranges(start, count)
        return InputTuples(
            sender_x=self.sender_x[rows],
            receiver_x=self.receiver_x[rows],
            transaction_x=self.transaction_x[rows],
            neighbour_x=self.neighbour_x[edges],
            neighbour_index=np.repeat(np.arange(len(sides)), count),
        )

    @classmethod
    def concat(cls, parts: Sequence[InputTuples]) -> InputTuples:
        """Put payments of several parts behind each other."""
        if len(parts) == 1:
            return parts[0]
        total = sum(len(part) for part in parts)
        index, begin = [], 0
        for part in parts:
            sender_side = part.neighbour_index < len(part)
            shift = np.where(sender_side, begin, total + begin - len(part))
            index.append(part.neighbour_index + shift)
            begin += len(part)
        neighbour_index = np.concatenate(index)
        order = np.argsort(neighbour_index, kind="stable")
        return cls(
            sender_x=np.concatenate([part.sender_x for part in parts]),
            receiver_x=np.concatenate([part.receiver_x for part in parts]),
            transaction_x=np.concatenate([part.transaction_x for part in parts]),
            neighbour_x=np.concatenate([part.neighbour_x for part in parts])[order],
            neighbour_index=neighbour_index[order],
        )


@dataclass(frozen=True, kw_only=True)
class AccountInputs:
    """What the model takes for A accounts, each at its own instant; float32, NaN is null.

    account_x [A, len(spec.account)], neighbour_x [E, len(spec.neighbour_names)], neighbour_index int64 [E]: the account
    of each edge, sorted, newest edge first within each.
    """

    account_x: Float32
    neighbour_x: Float32
    neighbour_index: Int64


def build_tuples(spec: InputSpec, transactions: TransactionColumns, blocks: TupleBlocks) -> InputTuples:
    """Build the model's inputs for B payments from the rows of their accounts and pairs.

    A row is used when its as_of is not after the payment and, in a slice view, it is not older than `max_age_s`. An
    absent event row is a never-seen account or pair: its features have their `empty` values. Any other row that cannot
    be used is null. Windowed features are those of the payment's own instant, whatever the rows say of theirs; they
    follow the row of WINDOWS_VIEW alone.
    """
    payments = len(transactions)
    both_ms = np.concatenate([transactions.event_ms, transactions.event_ms])
    other_id = np.concatenate([transactions.receiver_id, transactions.sender_id])
    rows = _AccountRows(spec=spec, event_ms=both_ms, blocks=blocks.accounts)
    accounts = _account_inputs(rows, other_id)
    pair_x = _matrix(spec.pair_columns, blocks.pairs, both_ms)
    transaction_x = np.concatenate(
        [
            _request_columns(spec, transactions),
            _history_columns(rows, transactions.amount),
            pair_x[:payments],
            pair_x[payments:],
        ],
        axis=1,
    )
    return InputTuples(
        sender_x=accounts.account_x[:payments],
        receiver_x=accounts.account_x[payments:],
        transaction_x=transaction_x,
        neighbour_x=accounts.neighbour_x,
        neighbour_index=accounts.neighbour_index,
    )


def build_account_inputs(
    spec: InputSpec, event_ms: Int64, other_id: npt.NDArray[np.object_], blocks: Mapping[str, RowBlock]
) -> AccountInputs:
    """Build the model's inputs for A accounts at instants `event_ms` [A].

    `other_id` [A] is whom each account pays or is paid by at that instant, None for nobody; `blocks` holds A rows per
    account view.
    """
    return _account_inputs(_AccountRows(spec=spec, event_ms=event_ms, blocks=blocks), other_id)


@dataclass(frozen=True, kw_only=True)
class _AccountRows:
    """Rows of A accounts, one block per account view, each to be read at an instant of its own."""

    spec: InputSpec
    event_ms: Int64
    blocks: Mapping[str, RowBlock]
    read: dict[tuple[str, str], Float64] = field(default_factory=dict)
    """What `float64` has given: several features are set against the same mean."""

    @cached_property
    def usable(self) -> dict[str, Bools]:
        """By view, which rows count at their instants."""
        return {view.name: _usable(view, self.blocks[view.name], self.event_ms) for view in self.spec.account_views}

    @cached_property
    def windows(self) -> Finished:
        return finish(self.blocks[WINDOWS_VIEW], self.event_ms)

    @cached_property
    def unknown_windows(self) -> Bools:
        """Where the windows are null. Without a row there never was a payment, and they are those of none."""
        return self.blocks[WINDOWS_VIEW].present & ~self.usable[WINDOWS_VIEW]

    def float64(self, view: str, name: str) -> Float64:
        """A scalar feature [A], NaN where it is null or its row does not count."""
        if (view, name) not in self.read:
            moving = is_finished(view, name)
            known = ~self.unknown_windows if moving else self.usable[view]
            values = self.windows.features[view][name] if moving else self.blocks[view].float64(name)
            self.read[view, name] = np.where(known, values, np.nan)
        return self.read[view, name]


def _account_inputs(rows: _AccountRows, other_id: npt.NDArray[np.object_]) -> AccountInputs:
    neighbour_x, neighbour_index = _neighbours(rows.spec, rows.event_ms, other_id, rows.blocks)
    account_x = _matrix(rows.spec.account_columns, rows.blocks, rows.event_ms)
    for columns in rows.spec.account_columns:
        if columns.finished:
            found = rows.windows.matrix(columns.view.name, columns.finished_names)
            found[rows.unknown_windows] = np.nan
            account_x[:, columns.first + np.array(columns.finished)] = found
    return AccountInputs(account_x=account_x, neighbour_x=neighbour_x, neighbour_index=neighbour_index)


def _usable(view: ViewSchema, block: RowBlock, event_ms: Int64) -> Bools:
    """Which rows had been written by then and still count; see `build_tuples`."""
    usable: Bools = block.present & (block.as_of_ms <= event_ms)
    if view.cadence is Cadence.SLICE and view.max_age_s is not None:
        usable &= event_ms - block.as_of_ms <= view.max_age_s * 1_000
    return usable


def _matrix(layout: Sequence[ViewColumns], blocks: Mapping[str, RowBlock], event_ms: Int64) -> Float32:
    """Scalar features of the views of `layout`, float32 [rows, columns], side by side."""
    out = np.empty((len(event_ms), sum(len(columns.names) for columns in layout)), np.float32)
    for columns in layout:
        view, block = columns.view, blocks[columns.view.name]
        part = out[:, columns.first : columns.first + len(columns.names)]
        part[:] = block.matrix(columns.names)
        for position, name in columns.timestamps:
            part[:, position] = (event_ms - block.float64(name)) / MS_PER_S
        part[~_usable(view, block, event_ms)] = np.nan
        if view.cadence is Cadence.EVENT:
            part[~block.present] = np.array(columns.empty, np.float32)
    return out


def _request_columns(spec: InputSpec, transactions: TransactionColumns) -> Float32:
    features = request_features(transactions, base_exponent=spec.base_exponent)
    return np.stack([features[name] for name in spec.request], axis=1).astype(np.float32)


def _history_columns(rows: _AccountRows, amount: Int64) -> Float32:
    payments = len(amount)
    out = np.empty((payments, len(rows.spec.history)), np.float32)
    for position, feature in enumerate(rows.spec.history):
        side = slice(0, payments) if feature.side == "sender" else slice(payments, 2 * payments)
        out[:, position] = _against_history(feature, amount, rows, side)
    return out


def _against_history(feature: HistoryFeature, amount: Int64, rows: _AccountRows, side: slice) -> Float64:
    view = feature.view
    if feature.kind == "percentile":
        offsets, values = rows.blocks[view].lists(feature.columns[0])
        ranks = amount_percentiles(offsets[side.start : side.stop + 1], values, amount)
        return np.where(rows.usable[view][side], ranks, np.nan)
    mean = rows.float64(view, feature.columns[0])[side]
    if feature.kind == "ratio":
        return _divide(amount.astype(np.float64), mean)
    return _divide(amount - mean, rows.float64(view, feature.columns[1])[side])


def _divide(numerator: Float64, denominator: Float64) -> Float64:
    """numerator / denominator, NaN where the denominator is zero or null."""
    defined = denominator > 0
    out: Float64 = np.divide(numerator, denominator, out=np.full(len(denominator), np.nan), where=defined)
    return out


def _neighbours(
    spec: InputSpec, event_ms: Int64, other_id: npt.NDArray[np.object_], blocks: Mapping[str, RowBlock]
) -> tuple[Float32, Int64]:
    """Edge features and the account of each edge; see AccountInputs."""
    width = len(spec.neighbour_names)
    block = blocks.get(NEIGHBOUR_VIEW)
    if block is None:
        return np.empty((0, width), np.float32), np.empty(0, np.int64)
    usable = _usable(spec.view(NEIGHBOUR_VIEW), block, event_ms)
    ids = block.ragged("neighbour_ids")
    count = np.where(usable, np.minimum(np.diff(ids.offsets), spec.neighbours), 0)
    edge = _ranges(ids.offsets[:-1], count)
    side = np.repeat(np.arange(len(count)), count)
    out = np.empty((len(edge), width), np.float32)
    amount = block.lists("neighbour_amounts")[1][edge] / 10.0**spec.base_exponent
    gap_ms = event_ms[side] - block.lists("neighbour_timestamps")[1][edge]
    out[:, 0] = np.log1p(np.abs(amount))
    out[:, 1] = block.lists("neighbour_directions")[1][edge] == SENT
    out[:, 2] = np.log1p(np.maximum(gap_ms, 0) / MS_PER_S)
    out[:, 3] = ids.equals(edge, other_id, side)
    profile = block.lists("neighbour_profile")[1].reshape(-1, NEIGHBOUR_PROFILE_SIZE)
    columns = [NEIGHBOUR_PROFILE.index(name) for name in spec.profile]
    out[:, len(EDGE_FEATURES) :] = profile[edge][:, columns]
    return out, side


def _ranges(start: Int64, count: Int64) -> Int64:
    """Return start[0], start[0] + 1, …, (count[0] of them), then the same for each further start."""
    total = int(count.sum())
    if total == 0:
        return np.empty(0, np.int64)
    before = np.cumsum(count) - count
    out: Int64 = np.arange(total, dtype=np.int64) + np.repeat(start - before, count)
    return out


__all__ = [
    "AccountInputs",
    "InputTuples",
    "TransactionColumns",
    "TupleBlocks",
    "build_account_inputs",
    "build_tuples",
    "row_requests",
]
