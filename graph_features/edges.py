"""Payments as time-sorted columns with CSR indexes: what every feature function reads."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.contracts import (
    FRAUD_PARTIES,
    STATUSES,
    STORED_LABEL_SCHEMA,
    STORED_STATUS_SCHEMA,
    STORED_TRANSACTION_SCHEMA,
)
from graph_features.memo import LastMemo, Memo
from graph_features.standings import Standings
from graph_features.time_order import in_time_order

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Statuses or labels in the order in which they became known (time, then ingest sequence).

    `edge` indexes the edge table; `value` is a status code (position in STATUSES), or for labels 0 for genuine and the
    party mask for fraud (1 sender, 2 receiver, 3 both). `seq` is the ingest sequence of each.
    """

    edge: Int64
    ts_ms: Int64
    value: Int8
    seq: Int64


@dataclass(frozen=True, kw_only=True)
class EdgeTable:
    """n payments between m accounts, sorted by (ts_ms, transaction id), with their statuses and labels.

    Account codes follow the sorted ids, so that the order of nodes never depends on the order of arrival. Coded columns
    (channel, countries, device, card, ip) hold -1 for null. `amount` is in minor units of the base currency. A table of
    a few accounts' histories may lack device, card and ip, which no event row reads: those arrays are empty.
    """

    account_ids: npt.NDArray[np.object_]
    ts_ms: Int64
    sender: Int32
    receiver: Int32
    amount: Int64
    channel: Int32
    channels: tuple[str, ...]
    sender_country: Int32
    receiver_country: Int32
    countries: tuple[str, ...]
    device: Int32
    card: Int32
    ip: Int32
    seq: Int64
    statuses: Changes
    labels: Changes
    max_seq: int
    """Everything up to this ingest sequence was considered."""
    standings: Standings | None = None
    """Counterparties whose own payments are not all here, but whose numbers are known. None where all are here."""
    indexes: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)
    slices: LastMemo = field(default_factory=LastMemo, init=False, repr=False, compare=False)
    """What the views of one slice share: see graphs.at_slice."""

    def memo(self, key: Hashable, build: Callable[[], T]) -> T:
        """Return the index kept under `key`, building it from the columns the first time; threads share it."""
        return self.indexes.get(key, build)

    @property
    def n_edges(self) -> int:
        return len(self.ts_ms)

    @property
    def n_accounts(self) -> int:
        return len(self.account_ids)

    @cached_property
    def _code_by_id(self) -> dict[str, int]:
        return {account_id: code for code, account_id in enumerate(self.account_ids)}

    def codes(self, account_ids: list[str]) -> Int32:
        """Return the codes of accounts, -1 where an account has no payment here."""
        if len(account_ids) * 20 < self.n_accounts:
            wanted = np.array(account_ids, np.object_)
            at = np.minimum(np.searchsorted(self.account_ids, wanted), self.n_accounts - 1)
            return np.where(self.account_ids[at] == wanted, at, -1).astype(np.int32)
        lookup = self._code_by_id
        return np.array([lookup.get(account_id, -1) for account_id in account_ids], np.int32)

    @classmethod
    def from_arrow(
        cls,
        transactions: pa.Table,
        statuses: pa.Table | None = None,
        labels: pa.Table | None = None,
        *,
        max_seq: int | None = None,
    ) -> EdgeTable:
        """Build from stored tables (see contracts); statuses and labels of absent transactions are left out."""
        transactions = in_time_order(transactions.select(STORED_TRANSACTION_SCHEMA.names))
        accounts, (sender, receiver) = in_words(transactions["sender_id"], transactions["receiver_id"])
        countries, (sender_country, receiver_country) = in_words(
            transactions["sender_country"], transactions["receiver_country"]
        )
        channels, (channel,) = in_words(transactions["channel"])
        tables = [transactions, *(table for table in (statuses, labels) if table is not None)]
        return cls(
            account_ids=accounts.to_numpy(zero_copy_only=False),
            ts_ms=_ms(transactions["event_timestamp"]),
            sender=sender,
            receiver=receiver,
            amount=transactions["amount_base"].to_numpy(),
            channel=channel,
            channels=tuple(channels.to_pylist()),
            sender_country=sender_country,
            receiver_country=receiver_country,
            countries=tuple(countries.to_pylist()),
            device=in_words(transactions["device_id"])[1][0],
            card=in_words(transactions["card_id"])[1][0],
            ip=in_words(transactions["ip"])[1][0],
            seq=transactions["seq"].to_numpy(),
            statuses=_changes(transactions["transaction_id"], statuses, "status_timestamp", status_codes),
            labels=_changes(transactions["transaction_id"], labels, "label_timestamp", label_codes),
            max_seq=max_seq if max_seq is not None else max((_max_seq(table) for table in tables), default=0),
        )

    @classmethod
    def empty(cls) -> EdgeTable:
        return cls.from_arrow(
            STORED_TRANSACTION_SCHEMA.empty_table(),
            STORED_STATUS_SCHEMA.empty_table(),
            STORED_LABEL_SCHEMA.empty_table(),
        )


def _ms(column: pa.ChunkedArray) -> Int64:
    return column.cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]


def _max_seq(table: pa.Table) -> int:
    return int(pc.max(table["seq"]).as_py() or 0)


def vocabulary(*columns: pa.ChunkedArray) -> pa.Array:
    """Return the distinct words of string columns, sorted, null left out."""
    chunks = [chunk for column in columns for chunk in column.chunks]
    values = pc.unique(pa.chunked_array(chunks, pa.string())).drop_null()
    return values.take(pc.sort_indices(values))


def in_words(*columns: pa.ChunkedArray) -> tuple[pa.Array, list[Int32]]:
    """Return `vocabulary` of string columns and the `word_codes` of each, with every string looked at once."""
    chunks = [chunk for column in columns for chunk in column.chunks]
    encoded = pa.chunked_array(chunks, pa.string()).dictionary_encode().unify_dictionaries()
    words = encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], pa.string())
    order = pc.sort_indices(words).to_numpy()
    place = np.full(len(order) + 1, -1, np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    found = [place[pc.fill_null(chunk.indices, -1).to_numpy()] for chunk in encoded.chunks]
    codes = np.concatenate([np.empty(0, np.int32), *found])
    return words.take(pa.array(order)), np.split(codes, np.cumsum([len(column) for column in columns])[:-1])


def word_codes(column: pa.ChunkedArray, words: pa.Array) -> Int32:
    """Return the position of each string among `words`, -1 where it is null or not there."""
    return pc.fill_null(pc.index_in(column, value_set=words), -1).to_numpy()  # type: ignore[no-any-return]


def status_codes(table: pa.Table) -> Int8:
    """Return the `value` of stored statuses; see Changes."""
    codes = pc.index_in(table["status"], value_set=pa.array(STATUSES))
    return codes.to_numpy().astype(np.int8)  # type: ignore[no-any-return]


def label_codes(table: pa.Table) -> Int8:
    """Return the `value` of stored labels; see Changes."""
    party = pc.index_in(table["fraud_party"], value_set=pa.array(FRAUD_PARTIES)).to_numpy().astype(np.int8) + 1
    return np.where(table["is_fraud"].to_numpy(), party, 0).astype(np.int8)


def _changes(transaction_ids: pa.ChunkedArray, table: pa.Table | None, time: str, codes: object) -> Changes:
    if table is None or table.num_rows == 0 or len(transaction_ids) == 0:
        none = np.empty(0, np.int64)
        return Changes(edge=none, ts_ms=none, value=np.empty(0, np.int8), seq=none)
    edge = pc.index_in(table["transaction_id"], value_set=transaction_ids.combine_chunks())
    table = table.append_column("edge", edge).filter(edge.is_valid())
    table = table.sort_by([(time, "ascending"), ("seq", "ascending")])
    value = codes(table)  # type: ignore[operator]
    return Changes(
        edge=table["edge"].to_numpy().astype(np.int64), ts_ms=_ms(table[time]), value=value, seq=table["seq"].to_numpy()
    )
