"""The system of record on SQLite: one file, several processes and threads."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa

from graph_features.clock import NEVER_MS
from graph_features.contracts import STORED_TRANSACTION_SCHEMA
from graph_features.errors import StoreUnavailableError
from graph_features.sources.base import MarkPending, Records, Traces, WriteResult
from graph_features.sources.cache import KINDS, WITH_PAYMENT, ReadBetween, RecordsCache, Tables
from graph_features.sources.checksum import BUCKET_ROWS, CHECKSUM_COLUMNS, bucket_checksums, merge_checksums
from graph_features.sources.filelock import file_lock
from graph_features.sources.histories import Histories
from graph_features.sources.records import (
    CHANGES_SCHEMA,
    ERASING,
    LABELS,
    PARTIES_SCHEMA,
    STATUSES,
    TRACE_KINDS,
    TRANSACTIONS,
    RecordKind,
    judge,
    numbered,
    parties_of,
    table_of_rows,
    touched_entities,
)
from graph_features.sources.snapshot import Snapshot
from graph_features.sources.sql import load_queries

BUSY_TIMEOUT_S: Final = 120.0
CACHE_KB: Final = 64 * 1024  # the default of 2 MB sends every index insert of a large ingest to the disk and back
_CHECKSUM_SCHEMA: Final = pa.schema([STORED_TRANSACTION_SCHEMA.field(name) for name in CHECKSUM_COLUMNS])
_FETCH_ROWS: Final = 50_000
_WITH_PAYMENT_SQL: Final = {
    kind.name: f"read_{kind.name}" if kind is TRANSACTIONS else f"read_{kind.name}_with_payments" for kind in KINDS
}


class SqliteRecords:
    """RecordStore and Lockable in one SQLite file. Safe for threads, processes and forks.

    With a `cache` folder, what is read is kept there and only the rest asked of the file.
    """

    def __init__(self, path: Path, *, cache: Path | None = None) -> None:
        self._path = path
        self._cache = None if cache is None else RecordsCache(folder=cache)
        self._histories = None if self._cache is None else Histories(self._cache)
        queries = load_queries("graph_features.sources", "sqlite.sql")
        self._sql = {name: statement.decode() for name, statement in queries.items()}
        self._guard = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._inherited: list[list[sqlite3.Connection]] = []
        self._pid = os.getpid()

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the file can be read and has our tables."""
        self.max_seq()

    def create_schema(self) -> None:
        """Create the folder, the file, tables and indexes that are missing."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # The change to WAL does not wait for other connections as everything else does, hence the lock.
        with self.lock("schema", wait_s=BUSY_TIMEOUT_S), self._connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(self._sql["create_schema"])

    def write_transactions(self, table: pa.Table, before_commit: MarkPending | None = None) -> WriteResult:
        """Write TRANSACTION_SCHEMA rows, all or none: new ids inserted, known ones compared."""
        return self._write(TRANSACTIONS, table, before_commit)

    def write_statuses(self, table: pa.Table, before_commit: MarkPending | None = None) -> WriteResult:
        """Write STATUS_SCHEMA rows; a status of an unknown transaction is rejected."""
        return self._write(STATUSES, table, before_commit)

    def write_labels(self, table: pa.Table, before_commit: MarkPending | None = None) -> WriteResult:
        """Write LABEL_SCHEMA rows; a label of an unknown transaction is rejected."""
        return self._write(LABELS, table, before_commit)

    def barrier(self) -> None:
        """Wait until every write that is under way has committed or failed."""
        with self._writing():
            pass

    def max_seq(self) -> int:
        """The newest committed sequence number, 0 when empty."""
        with self._connection() as connection:
            return self._last_seq(connection)

    def event_range_ms(self) -> tuple[int, int] | None:
        """First and last event_timestamp in epoch milliseconds; None when empty."""
        with self._connection() as connection:
            first, last = connection.execute(self._sql["event_range"]).fetchone()
        return None if first is None else (first, last)

    def read_all(self, *, before_ms: int | None = None, max_seq: int | None = None) -> Records:
        """Everything that happened before `before_ms` (events, statuses and labels each by their own time)."""
        with self._connection() as connection:
            last = self._last_seq(connection)
            up_to = last if max_seq is None else min(last, max_seq)

            if self._cache is None:
                bounds = _bounds(0, up_to, before_ms)
                return Records(
                    max_seq=up_to,
                    **{
                        kind.name: self._table(connection, f"read_{kind.name}", bounds, kind.stored_schema)
                        for kind in KINDS
                    },
                )
            (identity,) = connection.execute(self._sql["identity"]).fetchone()
            before = NEVER_MS if before_ms is None else before_ms
            return Records(max_seq=up_to, **self._cache.tables(identity, up_to, before, self._reader(connection)))

    def _reader(self, connection: sqlite3.Connection) -> ReadBetween:
        def between(after_seq: int, up_to_seq: int) -> Tables:
            bounds = _bounds(after_seq, up_to_seq, None)
            return {
                kind.name: self._table(connection, _WITH_PAYMENT_SQL[kind.name], bounds, WITH_PAYMENT[kind.name])
                for kind in KINDS
            }

        return between

    def read_transactions(
        self, *, after_seq: int, up_to_seq: int, batch_rows: int = 50_000
    ) -> Iterator[pa.RecordBatch]:
        """Stored transactions with after_seq < seq <= up_to_seq in seq order, no read transaction held in between."""
        schema = TRANSACTIONS.stored_schema
        while after_seq < up_to_seq:
            with self._connection() as connection:
                bounds = _bounds(after_seq, up_to_seq, None, batch_rows)
                table = self._table(connection, "read_transactions", bounds, schema)
            if table.num_rows == 0:
                return
            after_seq = table["seq"][-1].as_py()
            yield from table.combine_chunks().to_batches()

    def read_accounts(self, account_ids: Sequence[str], *, before_ms: int) -> Records:
        """All that these accounts sent or received before `before_ms`, with statuses and labels known by then."""
        snapshot = self.snapshot()
        if snapshot is not None:
            return Records(max_seq=snapshot.max_seq, **snapshot.tables(account_ids, before_ms=before_ms))
        with self._connection() as connection:
            last = self._last_seq(connection)
            bounds = {"ids": _json(account_ids), "before": before_ms, "up_to_seq": last}
            schema = TRANSACTIONS.stored_schema
            transactions = self._table(connection, "transactions_of_accounts", bounds, schema)
            named = {**bounds, "ids": _json(transactions["transaction_id"].to_pylist())}
            statuses = self._table(connection, "statuses_known_of", named, STATUSES.stored_schema)
            labels = self._table(connection, "labels_known_of", named, LABELS.stored_schema)
        return Records(
            transactions=transactions.sort_by("seq"),
            statuses=statuses.sort_by("seq"),
            labels=labels.sort_by("seq"),
            max_seq=last,
        )

    def changes(self, *, after_seq: int, up_to_seq: int, before_ms: int, labels: bool) -> pa.Table:
        """Columns seq and known_ms of what came with after_seq < seq <= up_to_seq and counts before `before_ms`."""
        bounds = {"after_seq": after_seq, "up_to_seq": up_to_seq, "before": before_ms, "labels": labels}
        with self._connection() as connection:
            return self._table(connection, "changes", bounds, CHANGES_SCHEMA)

    def snapshot(self, *, wait: bool = False) -> Snapshot | None:
        """Everything that is committed by now, by account; None without a cache folder.

        Where the index lags far behind, None as well, unless `wait` allows for bringing it up to date.
        """
        if self._histories is None:
            return None
        with self._connection() as connection:
            last, identity = connection.execute(self._sql["state"]).fetchone()
            return self._histories.snapshot(up_to_seq=last, identity=identity, read=self._reader(connection), wait=wait)

    def known_accounts(self, account_ids: Sequence[str], *, before_ms: int) -> set[str]:
        """Those of `account_ids` that sent or received anything before `before_ms`."""
        parameters = {"ids": _json(account_ids), "before": before_ms}
        with self._connection() as connection:
            return {row[0] for row in connection.execute(self._sql["known_accounts"], parameters)}

    def traces(self, account_id: str) -> Traces:
        """What is stored of one account."""
        with self._connection() as connection:
            return Traces.of(account_id, connection.execute(self._sql["traces"], {"id": account_id}).fetchall())

    def count_traces(self, traces: Traces) -> dict[str, int]:
        """Rows per kind that `erase` removes or changes."""
        with self._connection() as connection:
            counts = connection.execute(self._sql["count_traces"], _named(traces)).fetchone()
        return dict(zip(TRACE_KINDS, counts, strict=True))

    def erase(self, traces: Traces, before_commit: MarkPending | None = None) -> None:
        """Remove the account's records, and its devices and cards from payments of others, all or none."""
        with self._writing() as connection:
            for name in ERASING:
                connection.execute(self._sql[name], _named(traces))
            connection.execute(self._sql["take_numbers"], {"count": 1})
            if before_commit is not None and traces.partners:
                before_commit([(partner,) for partner in traces.partners])
        with self._connection() as connection:
            connection.execute(self._sql["vacuum"])  # what was deleted is to be gone from the file too
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def checksum(self, *, bucket: int | None = None) -> dict[int, tuple[int, int]]:
        """Count and checksum of transactions per bucket, or per sequence number of one `bucket`."""
        with self._connection() as connection:
            last = self._last_seq(connection)
            after_seq = -1 if bucket is None else bucket * BUCKET_ROWS - 1
            up_to_seq = last if bucket is None else min(last, after_seq + BUCKET_ROWS)
            bounds = {"after_seq": after_seq, "up_to_seq": up_to_seq}
            pieces = self._pieces(connection, "read_checksum_columns", bounds, _CHECKSUM_SCHEMA)
            return merge_checksums(bucket_checksums(piece, bucket) for piece in pieces)

    def lock(self, name: str, *, wait_s: float = 0.0) -> AbstractContextManager[bool]:
        """Hold the lock `name` of this store (a file beside it); yields whether it was had within `wait_s`."""
        return file_lock(self._path.with_name(f"{self._path.name}-{quote(name, safe='')}.lock"), wait_s=wait_s)

    def close(self) -> None:
        """Close the connections that nobody uses; the store can be used again afterwards."""
        if os.getpid() == self._pid:
            with self._guard:
                idle, self._idle = self._idle, []
            for connection in idle:
                connection.close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that nobody else uses meanwhile."""
        try:
            connection = self._idle_connection() or self._open()
            try:
                yield connection
            finally:
                with self._guard:
                    self._idle.append(connection)
        except sqlite3.OperationalError as error:
            hint = (
                "`ringfence ingest` makes it (create_schema)"
                if "no such table" in str(error)
                else "check the file, its folder and the disk"
            )
            raise StoreUnavailableError(f"SQLite records at {self._path}: {error}; {hint}") from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # its subclasses are mistakes in the program
                raise
            raise StoreUnavailableError(f"SQLite records at {self._path}: {error}; restore the file") from error

    def _idle_connection(self) -> sqlite3.Connection | None:
        with self._guard:
            if os.getpid() != self._pid:
                # A connection must not cross a fork, nor be closed on the other side of it.
                self._inherited.append(self._idle)
                self._idle, self._pid = [], os.getpid()
            return self._idle.pop() if self._idle else None

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        # Full, because a commit that was acknowledged must outlive a power cut in a system of record.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is the only one to write until it ends."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _write(self, kind: RecordKind, table: pa.Table, before_commit: MarkPending | None) -> WriteResult:
        batch = kind.check(table)
        ids = {"ids": _json(batch["transaction_id"].unique().to_pylist())}
        with self._writing() as connection:
            stored = self._table(connection, f"{kind.name}_of", ids, kind.stored_schema)
            parties = None
            if kind is not TRANSACTIONS:
                parties = self._table(connection, "parties_of", ids, PARTIES_SCHEMA)
            verdict = judge(kind, batch, stored, parties)
            new = batch.filter(pa.array(verdict.is_new))
            last = self._last_seq(connection) + new.num_rows
            if new.num_rows:
                connection.execute(self._sql["take_numbers"], {"count": new.num_rows})
                connection.executemany(self._sql[f"insert_{kind.name}"], _rows(numbered(new, kind, last)))
                if before_commit is not None:
                    before_commit(touched_entities(new if parties is None else parties_of(new, parties)))
        return WriteResult(inserted=verdict.is_new, rejected=verdict.rejected, max_seq=last)

    def _last_seq(self, connection: sqlite3.Connection) -> int:
        return int(connection.execute(self._sql["max_seq"]).fetchone()[0])

    def _pieces(
        self, connection: sqlite3.Connection, name: str, parameters: Mapping[str, Any], schema: pa.Schema
    ) -> Iterator[pa.Table]:
        cursor = connection.execute(self._sql[name], parameters)
        while rows := cursor.fetchmany(_FETCH_ROWS):
            yield table_of_rows(rows, schema)

    def _table(
        self, connection: sqlite3.Connection, name: str, parameters: Mapping[str, Any], schema: pa.Schema
    ) -> pa.Table:
        return pa.concat_tables([schema.empty_table(), *self._pieces(connection, name, parameters, schema)])


def _bounds(after_seq: int, up_to_seq: int, before_ms: int | None, limit: int = -1) -> dict[str, int]:
    before = NEVER_MS if before_ms is None else before_ms
    return {"after_seq": after_seq, "up_to_seq": up_to_seq, "before": before, "limit": limit}


def _named(traces: Traces) -> dict[str, str]:
    return {
        "id": traces.account_id,
        "transactions": _json(traces.transaction_ids),
        "devices": _json(traces.devices),
        "cards": _json(traces.cards),
    }


def _json(ids: Sequence[str]) -> str:
    return json.dumps(list(ids), ensure_ascii=False)


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Rows as SQLite stores them: timestamps as epoch milliseconds."""
    columns = [
        column.cast(pa.int64()).to_pylist() if pa.types.is_timestamp(column.type) else column.to_pylist()
        for column in table.columns
    ]
    return zip(*columns, strict=True)
