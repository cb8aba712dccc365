"""What both record stores share: the three kinds of record, and the comparison of a batch with what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.contracts import (
    LABEL_SCHEMA,
    STATUS_SCHEMA,
    STORED_LABEL_SCHEMA,
    STORED_STATUS_SCHEMA,
    STORED_TRANSACTION_SCHEMA,
    TRANSACTION_SCHEMA,
)
from graph_features.errors import InvalidInputError
from graph_features.schema import EntityKey

CONFLICT: Final = "conflict"
"""The same key was accepted before with other content."""
UNKNOWN_TRANSACTION: Final = "unknown transaction"
"""A status or a label of a transaction that was never accepted."""

PARTIES_SCHEMA: Final = pa.schema([TRANSACTION_SCHEMA.field(n) for n in ("transaction_id", "sender_id", "receiver_id")])

TRACE_KINDS: Final = ("transactions", "statuses", "labels", "payments of others with its devices or cards")
ERASING: Final = ("erase_statuses", "erase_labels", "erase_transactions", "erase_things", "renew_identity")
"""Statements that remove an account, in their order."""
CHANGES_SCHEMA: Final = pa.schema([pa.field("seq", pa.int64()), pa.field("known_ms", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class RecordKind:
    """One of the three append-only tables: `time` is when it counts from, `key` what makes a record unique."""

    name: str
    time: str
    schema: pa.Schema
    stored_schema: pa.Schema
    key: tuple[str, ...]

    def check(self, table: pa.Table) -> pa.Table:
        """Return `table` with exactly this kind's columns and types; raise InvalidInputError."""
        missing = [name for name in self.schema.names if name not in table.column_names]
        if missing:
            raise InvalidInputError(field=missing[0], expected=f"a column of {self.name}", got=table.column_names)
        table = table.select(self.schema.names)
        for field in self.schema:
            if not field.nullable and table[field.name].null_count:
                raise InvalidInputError(field=field.name, expected="a value in every row", got=None)
        return table.cast(self.schema)


TRANSACTIONS: Final = RecordKind(
    name="transactions",
    time="event_timestamp",
    schema=TRANSACTION_SCHEMA,
    stored_schema=STORED_TRANSACTION_SCHEMA,
    key=("transaction_id",),
)
STATUSES: Final = RecordKind(
    name="statuses",
    time="status_timestamp",
    schema=STATUS_SCHEMA,
    stored_schema=STORED_STATUS_SCHEMA,
    key=("transaction_id", "status", "status_timestamp"),
)
LABELS: Final = RecordKind(
    name="labels",
    time="label_timestamp",
    schema=LABEL_SCHEMA,
    stored_schema=STORED_LABEL_SCHEMA,
    key=("transaction_id", "label_timestamp"),
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which rows of a batch are new, which are refused and why; the others are known with the same content."""

    is_new: npt.NDArray[np.bool_]
    rejected: dict[int, str]


def judge(kind: RecordKind, batch: pa.Table, stored: pa.Table, parties: pa.Table | None) -> Verdict:
    """Compare a batch with `stored`, the stored rows of the same keys (more do no harm).

    A row is measured against the stored row of its key or, failing that, against the first row of the batch with that
    key: that first one is new, equal ones are known, others conflict. With `parties` (the transactions that exist),
    rows of other transactions are rejected.
    """
    n = batch.num_rows
    is_new = np.zeros(n, np.bool_)
    if n == 0:
        return Verdict(is_new=is_new, rejected={})
    everything = pa.concat_tables([stored.select(kind.schema.names).cast(kind.schema), batch])
    first = _first_with_same_key(everything, kind.key)[stored.num_rows :]
    position = np.arange(stored.num_rows, everything.num_rows)
    is_new[:] = first == position
    repeated = np.flatnonzero(~is_new)
    rejected: dict[int, str] = {}
    if len(repeated):
        same = _equal_rows(everything, position[repeated], first[repeated])
        rejected = dict.fromkeys(repeated[~same].tolist(), CONFLICT)
    if parties is not None:
        known = pc.is_in(batch["transaction_id"], value_set=parties["transaction_id"].combine_chunks())
        unknown = ~known.to_numpy(zero_copy_only=False)
        is_new &= ~unknown
        rejected |= dict.fromkeys(np.flatnonzero(unknown).tolist(), UNKNOWN_TRANSACTION)
    return Verdict(is_new=is_new, rejected=dict(sorted(rejected.items())))


def touched_entities(transactions: pa.Table) -> list[EntityKey]:
    """The distinct accounts (sender and receiver) and pairs of these transactions, each as its entity's key."""
    senders, receivers = transactions["sender_id"], transactions["receiver_id"]
    accounts = pc.unique(pa.chunked_array([*senders.chunks, *receivers.chunks], pa.string()))
    pairs = transactions.select(["sender_id", "receiver_id"]).group_by(["sender_id", "receiver_id"]).aggregate([])
    keys: list[EntityKey] = [(account,) for account in accounts.to_pylist()]
    keys.extend(zip(pairs["sender_id"].to_pylist(), pairs["receiver_id"].to_pylist(), strict=True))
    return keys


def parties_of(records: pa.Table, parties: pa.Table) -> pa.Table:
    """The rows of `parties` whose transactions are named in `records`."""
    named = pc.unique(records["transaction_id"])
    return parties.filter(pc.is_in(parties["transaction_id"], value_set=named))


def numbered(table: pa.Table, kind: RecordKind, last_seq: int) -> pa.Table:
    """`table` with its ingest sequence numbers in front, the last row's being `last_seq`."""
    seq = pa.array(np.arange(last_seq - table.num_rows + 1, last_seq + 1, dtype=np.int64))
    return pa.Table.from_arrays([seq, *table.columns], schema=kind.stored_schema)


def table_of_rows(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """A table from database rows, whose timestamps are epoch milliseconds and whose booleans may be 0 and 1."""
    if not rows:
        return schema.empty_table()
    columns = []
    for values, field in zip(zip(*rows, strict=True), schema, strict=True):
        if pa.types.is_timestamp(field.type):
            columns.append(pa.array(values, pa.int64()).cast(field.type))
        elif pa.types.is_boolean(field.type):
            columns.append(pa.array(map(bool, values), pa.bool_()))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _first_with_same_key(table: pa.Table, key: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Per row the position of the first row with the same key."""
    codes = np.zeros(table.num_rows, np.int64)
    for name in key:
        encoded = pc.dictionary_encode(table[name].combine_chunks())
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        column = encoded.indices.to_numpy().astype(np.int64)
        codes = np.unique(codes * len(encoded.dictionary) + column, return_inverse=True)[1]
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def _equal_rows(table: pa.Table, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    a, b = table.take(left), table.take(right)
    same = np.ones(len(left), np.bool_)
    for name in table.column_names:
        equal = pc.fill_null(pc.equal(a[name], b[name]), False)
        both_null = pc.and_(pc.is_null(a[name]), pc.is_null(b[name]))
        same &= pc.or_(equal, both_null).to_numpy(zero_copy_only=False)
    return same
