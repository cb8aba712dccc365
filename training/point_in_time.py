"""Input tuples straight off a table of payments, without stores: what the historical join would have read.

Each payment reads, of each event view and for both of its ends, the newest row whose as_of is not after it; of a slice
view those of the last slice. Rows are computed and not kept, which suits measurements over a whole history, and tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.compute import Entities, compute_rows
from graph_features.drivers.batch import slice_rows
from graph_features.edges import EdgeTable
from graph_features.events import AS_OF_AFTER_MS, events
from graph_features.input_spec import InputSpec
from graph_features.kernels.timeline import pair_index
from graph_features.schema import Cadence, ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.stores.blocks import RowBlock
from graph_features.transaction import TransactionColumns
from graph_features.tuples import AccountInputs, InputTuples, TupleBlocks, build_account_inputs, build_tuples

Int64 = npt.NDArray[np.int64]


def tuples_at(
    spec: InputSpec,
    edges: EdgeTable,
    transactions: TransactionColumns,
    *,
    settings: FeatureSettings,
    slices_ms: Sequence[int] = (),
) -> InputTuples:
    """Return the tuples of B payments, whether they are in the table or not.

    `slices_ms`, ascending, are the instants at which slice views have rows; without any they are absent.
    """
    sender, receiver = (edges.codes(list(ids)).astype(np.int64) for ids in _ends(transactions))
    both = np.concatenate([sender, receiver])
    at_ms = np.tile(transactions.event_ms, 2)
    pairs = pair_index(edges)
    pair = np.concatenate([pairs.codes(sender, receiver), pairs.codes(receiver, sender)])
    slices = np.asarray(slices_ms, np.int64)

    def block(view: ViewSchema, group: Int64) -> RowBlock:
        if view.cadence is Cadence.SLICE:
            return _slice_block(view, edges, group, at_ms, slices, settings)
        return _event_block(view, edges, group, at_ms, settings)

    blocks = TupleBlocks(
        accounts={view.name: block(view, both) for view in spec.account_views},
        pairs={view.name: block(view, pair) for view in spec.pair_views},
    )
    return build_tuples(spec, transactions, blocks)


def accounts_at(
    spec: InputSpec, edges: EdgeTable, account_id: npt.NDArray[np.object_], *, as_of_ms: int, settings: FeatureSettings
) -> AccountInputs:
    """Return the inputs of accounts at one instant, at which slice views have their slice."""
    group = edges.codes(account_id.tolist()).astype(np.int64)
    at_ms = np.full(len(group), as_of_ms, np.int64)
    blocks = {
        view.name: _slice_block(view, edges, group, at_ms, np.array([as_of_ms]), settings)
        if view.cadence is Cadence.SLICE
        else _event_block(view, edges, group, at_ms, settings)
        for view in spec.account_views
    }
    return build_account_inputs(spec, at_ms, np.full(len(group), None, dtype=object), blocks)


def _ends(transactions: TransactionColumns) -> tuple[list[str], list[str]]:
    return transactions.sender_id.tolist(), transactions.receiver_id.tolist()


def _event_block(view: ViewSchema, edges: EdgeTable, group: Int64, at_ms: Int64, settings: FeatureSettings) -> RowBlock:
    """The newest row of each group (-1: unknown) whose as_of is not after `at_ms`; absent where there is none."""
    index = events(edges, view)
    groups = index.group()
    # A row's as_of is 1 ms after what happened: what happened before at_ms is in. (group, time) in one sortable pair.
    order = np.lexsort((at_ms, group))
    place = np.empty(len(group), np.int64)
    for chosen in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        code = int(group[chosen[0]]) if len(chosen) else -1
        if code >= 0:
            first, end = int(index.offsets[code]), int(index.offsets[code + 1])
            place[chosen] = first + np.searchsorted(index.ts_ms[first:end], at_ms[chosen]) - 1
    known = group >= 0
    known[known] = place[known] >= index.offsets[group[known]]
    rows, row_of = np.unique(place[known], return_inverse=True)
    entities = Entities.of_groups(edges, view.entity, groups[rows])
    as_of_ms = index.ts_ms[rows] + AS_OF_AFTER_MS
    table = compute_rows(view, edges, entities=entities, as_of_ms=as_of_ms, settings=settings)
    where = np.full(len(group), len(rows))
    where[known] = row_of
    return _with_absent(view, table).take(where)


def _slice_block(
    view: ViewSchema, edges: EdgeTable, group: Int64, at_ms: Int64, slices_ms: Int64, settings: FeatureSettings
) -> RowBlock:
    """The row of each account in the last slice that is not after `at_ms`."""
    slice_of = np.searchsorted(slices_ms, at_ms, side="right") - 1
    tables: list[pa.Table] = [view.arrow_schema.empty_table()]
    where = np.full(len(group), -1, np.int64)
    rows = 0
    for number in np.unique(slice_of[slice_of >= 0]):
        table = slice_rows(view, edges, as_of_ms=int(slices_ms[number]), settings=settings)
        row_of = np.full(edges.n_accounts + 1, -1, np.int64)
        row_of[edges.codes(table[view.keys[0]].to_pylist())] = rows + np.arange(table.num_rows)
        here = slice_of == number
        where[here] = row_of[group[here]]
        tables.append(table)
        rows += table.num_rows
    return _with_absent(view, pa.concat_tables(tables)).take(np.where(where >= 0, where, rows))


def _with_absent(view: ViewSchema, table: pa.Table) -> RowBlock:
    """Return the rows and one absent row after them."""
    schema = pa.schema([pa.field(field.name, field.type) for field in table.schema])
    absent = pa.Table.from_arrays([pa.nulls(1, field.type) for field in schema], schema=schema)
    return RowBlock.from_arrow(view, pa.concat_tables([table.cast(schema), absent]))
