"""What the rest of the house may ask of a source. Two profiles implement each protocol; nothing else knows which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.schema import EntityKey

if TYPE_CHECKING:
    from graph_features.sources.snapshot import Snapshot

MarkPending = Callable[[list[EntityKey]], None]


@dataclass(frozen=True, kw_only=True)
class WriteResult:
    """What became of a written batch, row by row, in its order.

    `inserted` is true for rows that were new. `rejected` maps a row's position to the reason why it was refused (a
    conflict with accepted content, an unknown transaction); rows in neither were known already with the same content.
    `max_seq` is the last sequence number given out so far.
    """

    inserted: npt.NDArray[np.bool_]
    rejected: dict[int, str]
    max_seq: int


@dataclass(frozen=True, kw_only=True)
class Records:
    """Stored transactions, statuses and labels (see contracts.STORED_*), all of them up to `max_seq`."""

    transactions: pa.Table
    statuses: pa.Table
    labels: pa.Table
    max_seq: int


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What the records know of one account: its payments and what they lead to.

    `devices` and `cards` are those it paid with, `partners` the accounts on the other side of its payments, and
    `pairs` senders and receivers of them. `first_ms` is the time of its first payment.
    """

    account_id: str
    transaction_ids: tuple[str, ...]
    devices: tuple[str, ...]
    cards: tuple[str, ...]
    partners: tuple[str, ...]
    pairs: tuple[EntityKey, ...]
    first_ms: int | None

    @classmethod
    def of(cls, account_id: str, rows: Iterable[Sequence[Any]]) -> Traces:
        """Build from rows of transaction_id, event ms, sender_id, receiver_id, device_id, card_id."""
        found = list(rows)
        own = [row for row in found if row[2] == account_id]
        return cls(
            account_id=account_id,
            transaction_ids=tuple(sorted({row[0] for row in found})),
            devices=tuple(sorted({row[4] for row in own if row[4]})),
            cards=tuple(sorted({row[5] for row in own if row[5]})),
            partners=tuple(sorted({party for row in found for party in row[2:4]} - {account_id})),
            pairs=tuple(sorted({(row[2], row[3]) for row in found})),
            first_ms=min((int(row[1]) for row in found), default=None),
        )


class RecordStore(Protocol):
    """The system of record: transactions, statuses and labels, each append-only and numbered by the ingest sequence.

    Writers hold one lock from taking sequence numbers to the commit, so sequence order is commit order and a reader
    who has seen N never finds something at or below N later. `before_commit` runs inside that lock with the entities
    that the new rows touch, accounts and pairs alike: ingest marks them pending online there.
    """

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the store answers."""

    def create_schema(self) -> None:
        """Create tables and indexes that are missing."""

    def write_transactions(self, table: pa.Table, before_commit: MarkPending | None = None) -> WriteResult:
        """Write TRANSACTION_SCHEMA rows, all or none: new ids inserted, known ones compared."""

    def write_statuses(self, table: pa.Table, before_commit: MarkPending | None = None) -> WriteResult:
        """Write STATUS_SCHEMA rows; a status of an unknown transaction is rejected."""

    def write_labels(self, table: pa.Table, before_commit: MarkPending | None = None) -> WriteResult:
        """Write LABEL_SCHEMA rows; a label of an unknown transaction is rejected."""

    def barrier(self) -> None:
        """Wait until every write that is under way has committed or failed."""

    def max_seq(self) -> int:
        """The newest committed sequence number, 0 when empty."""

    def event_range_ms(self) -> tuple[int, int] | None:
        """First and last event_timestamp in epoch milliseconds; None when empty."""

    def read_all(self, *, before_ms: int | None = None, max_seq: int | None = None) -> Records:
        """Everything that happened before `before_ms` (events, statuses and labels each by their own time)."""

    def read_transactions(
        self, *, after_seq: int, up_to_seq: int, batch_rows: int = 50_000
    ) -> Iterator[pa.RecordBatch]:
        """Stored transactions with after_seq < seq <= up_to_seq in seq order: what the graph sync reads."""

    def read_accounts(self, account_ids: Sequence[str], *, before_ms: int) -> Records:
        """Everything these accounts sent or received before `before_ms`, with statuses and labels known by then."""

    def changes(self, *, after_seq: int, up_to_seq: int, before_ms: int, labels: bool) -> pa.Table:
        """int64 columns seq and known_ms, by seq: what came with after_seq < seq <= up_to_seq and changes the past.

        `known_ms` is when a record counts from: only those before `before_ms` are returned; labels only if asked for.
        """

    def known_accounts(self, account_ids: Sequence[str], *, before_ms: int) -> set[str]:
        """Those of `account_ids` that sent or received anything before `before_ms`."""

    def traces(self, account_id: str) -> Traces:
        """What is stored of one account."""

    def count_traces(self, traces: Traces) -> dict[str, int]:
        """Rows per kind: transactions, statuses, labels, and payments of others with one of its devices or cards."""

    def erase(self, traces: Traces, before_commit: MarkPending | None = None) -> None:
        """Remove the account's transactions, statuses and labels, and its devices and cards from payments of others.

        Takes one sequence number, so that rows computed afterwards are later versions, and another identity, so that
        no cache of the records is used again. `before_commit` gets the partners.
        """

    def checksum(self, *, bucket: int | None = None) -> dict[int, tuple[int, int]]:
        """Count and checksum of transactions per bucket: see graph_features.sources.checksum."""

    def close(self) -> None: ...


class GraphStore(Protocol):
    """The graph that the transactions make, filled from a RecordStore by ingest sequence."""

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the store answers."""

    def create_schema(self) -> None:
        """Create constraints and indexes that are missing."""

    def watermark(self) -> int:
        """The ingest sequence up to which the graph is complete."""

    def write_edges(self, batch: pa.RecordBatch, *, watermark: int) -> None:
        """Write stored transactions and move the watermark, atomically; rows that exist are left as they are."""

    def read_edges(self, *, before_ms: int, after_seq: int = 0, up_to_seq: int | None = None) -> pa.Table:
        """Payments before `before_ms` with after_seq < seq <= up_to_seq (the watermark by default).

        Columns transaction_id, seq, event_timestamp, sender_id, receiver_id, amount_base, ordered by event time, then
        transaction id.
        """

    def neighbours(self, account_ids: Sequence[str], *, before_ms: int, limit: int) -> dict[str, list[str]]:
        """Per account its most recent distinct counterparties before `before_ms`, newest first, at most `limit`."""

    def checksum(self, *, bucket: int | None = None) -> dict[int, tuple[int, int]]:
        """Count and checksum of payments per bucket, comparable with RecordStore.checksum."""

    def count_account(self, account_id: str, *, devices: Sequence[str], cards: Sequence[str]) -> int:
        """Payments of the account, its node, and the nodes of these devices and cards."""

    def erase_account(self, account_id: str, *, devices: Sequence[str], cards: Sequence[str]) -> None:
        """Remove the account with its payments, these devices and cards, and addresses that nobody else used."""

    def close(self) -> None: ...


@runtime_checkable
class Indexed(Protocol):
    """A record store that may hold all its records at hand, by account."""

    def snapshot(self, *, wait: bool = False) -> Snapshot | None:
        """Everything that is committed by now; None where the store had better be asked account by account.

        With `wait` an index that lags behind is brought up to date first, which may take minutes, once.
        """


@runtime_checkable
class Lockable(Protocol):
    """A store that can keep a second writer out for a while (graph sync, schedule leadership)."""

    def lock(self, name: str, *, wait_s: float = 0.0) -> AbstractContextManager[bool]:
        """Hold the named lock; yields whether it was had."""
