"""The system of record on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import psycopg
import pyarrow as pa
from psycopg import errors

from graph_features.clock import NEVER_MS, from_ms
from graph_features.contracts import STORED_TRANSACTION_SCHEMA
from graph_features.settings import PostgresSettings
from graph_features.sources.base import MarkPending, Records, Traces, WriteResult
from graph_features.sources.cache import KINDS, WITH_PAYMENT, ReadBetween, RecordsCache, Tables
from graph_features.sources.checksum import BUCKET_ROWS, CHECKSUM_COLUMNS, bucket_checksums, merge_checksums
from graph_features.sources.connections import Connection, Connections
from graph_features.sources.copying import copy_in, copy_out
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

LOCK_WAIT_MS: Final = 120_000
_CHECKSUM_SCHEMA: Final = pa.schema([STORED_TRANSACTION_SCHEMA.field(name) for name in CHECKSUM_COLUMNS])
_NO_LIMIT: Final = 2**63 - 1


class PostgresRecords:
    """RecordStore and Lockable on PostgreSQL, schema `ringfence`. Safe for threads and for forked processes.

    With a `cache` folder, what is read is kept there and only the rest asked of the server.
    """

    def __init__(self, settings: PostgresSettings, *, cache: Path | None = None) -> None:
        self._connections = Connections(settings)
        self._cache = None if cache is None else RecordsCache(folder=cache)
        self._histories = None if self._cache is None else Histories(self._cache)
        self._sql = load_queries("graph_features.sources", "queries.sql")

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the server answers and has our tables."""
        self.max_seq()

    def create_schema(self) -> None:
        """Create tables and indexes that are missing; several processes may call it at once."""
        with self._writing() as connection:
            connection.execute(self._sql["create_schema"])

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
        with self._connections.use() as connection, connection.transaction():
            connection.execute(self._sql["limit_lock_wait"], {"wait_ms": str(LOCK_WAIT_MS)})
            connection.execute(self._sql["wait_for_writers"], {"key": _lock_key("ingest")})

    def max_seq(self) -> int:
        """The newest committed sequence number, 0 when empty."""
        with self._connections.use() as connection:
            return self._last_seq(connection)

    def event_range_ms(self) -> tuple[int, int] | None:
        """First and last event_timestamp in epoch milliseconds; None when empty."""
        with self._connections.use() as connection:
            first, last = _one(connection, self._sql["event_range"])
        return None if first is None else (int(first), int(last))

    def read_all(self, *, before_ms: int | None = None, max_seq: int | None = None) -> Records:
        """Everything that happened before `before_ms` (events, statuses and labels each by their own time)."""
        with self._connections.use() as connection:
            last = self._last_seq(connection)
            up_to = last if max_seq is None else min(last, max_seq)

            if self._cache is None:
                bounds = _bounds(0, up_to, before_ms)
                return Records(
                    max_seq=up_to,
                    **{kind.name: self._copy_out(connection, kind, bounds, kind.stored_schema) for kind in KINDS},
                )
            identity = str(_one(connection, self._sql["identity"])[0])
            before = NEVER_MS if before_ms is None else before_ms
            return Records(max_seq=up_to, **self._cache.tables(identity, up_to, before, self._reader(connection)))

    def _reader(self, connection: Connection) -> ReadBetween:
        def between(after_seq: int, up_to_seq: int) -> Tables:
            bounds = _bounds(after_seq, up_to_seq, None)
            return {
                kind.name: self._copy_out(connection, kind, bounds, WITH_PAYMENT[kind.name], with_payments=True)
                for kind in KINDS
            }

        return between

    def read_transactions(
        self, *, after_seq: int, up_to_seq: int, batch_rows: int = 50_000
    ) -> Iterator[pa.RecordBatch]:
        """Stored transactions with after_seq < seq <= up_to_seq in seq order, without a connection held in between."""
        while after_seq < up_to_seq:
            with self._connections.use() as connection:
                bounds = _bounds(after_seq, up_to_seq, None, batch_rows)
                table = self._copy_out(connection, TRANSACTIONS, bounds, TRANSACTIONS.stored_schema)
            if table.num_rows == 0:
                return
            after_seq = table["seq"][-1].as_py()
            yield from table.combine_chunks().to_batches()

    def read_accounts(self, account_ids: Sequence[str], *, before_ms: int) -> Records:
        """All that these accounts sent or received before `before_ms`, with statuses and labels known by then."""
        snapshot = self.snapshot()
        if snapshot is not None:
            return Records(max_seq=snapshot.max_seq, **snapshot.tables(account_ids, before_ms=before_ms))
        with self._connections.use() as connection:
            last = self._last_seq(connection)
            bounds = {"ids": _text_array(account_ids), "before": from_ms(before_ms), "up_to_seq": last}
            transactions = self._fetch(connection, "transactions_of_accounts", bounds, TRANSACTIONS.stored_schema)
            named = {**bounds, "ids": _text_array(transactions["transaction_id"].to_pylist())}
            with connection.pipeline():
                statuses = self._run(connection, "statuses_known_of", named)
                labels = self._run(connection, "labels_known_of", named)
            return Records(
                transactions=transactions.sort_by("seq"),
                statuses=table_of_rows(statuses.fetchall(), STATUSES.stored_schema).sort_by("seq"),
                labels=table_of_rows(labels.fetchall(), LABELS.stored_schema).sort_by("seq"),
                max_seq=last,
            )

    def changes(self, *, after_seq: int, up_to_seq: int, before_ms: int, labels: bool) -> pa.Table:
        """Columns seq and known_ms of what came with after_seq < seq <= up_to_seq and counts before `before_ms`."""
        bounds = {"after_seq": after_seq, "up_to_seq": up_to_seq, "before": from_ms(before_ms), "labels": labels}
        with self._connections.use() as connection:
            return self._fetch(connection, "changes", bounds, CHANGES_SCHEMA)

    def snapshot(self, *, wait: bool = False) -> Snapshot | None:
        """Everything that is committed by now, by account; None without a cache folder.

        Where the index lags far behind, None as well, unless `wait` allows for bringing it up to date.
        """
        if self._histories is None:
            return None
        with self._connections.use() as connection:
            last, identity = _one(connection, self._sql["state"])
            return self._histories.snapshot(up_to_seq=last, identity=identity, read=self._reader(connection), wait=wait)

    def known_accounts(self, account_ids: Sequence[str], *, before_ms: int) -> set[str]:
        """Those of `account_ids` that sent or received anything before `before_ms`."""
        parameters = {"ids": _text_array(account_ids), "before": from_ms(before_ms)}
        with self._connections.use() as connection:
            return {row[0] for row in self._run(connection, "known_accounts", parameters)}

    def traces(self, account_id: str) -> Traces:
        """What is stored of one account."""
        with self._connections.use() as connection:
            return Traces.of(account_id, self._run(connection, "traces", {"id": account_id}).fetchall())

    def count_traces(self, traces: Traces) -> dict[str, int]:
        """Rows per kind that `erase` removes or changes."""
        with self._connections.use() as connection:
            counts = _one(connection, self._sql["count_traces"], _named(traces))
        return dict(zip(TRACE_KINDS, map(int, map(str, counts)), strict=True))

    def erase(self, traces: Traces, before_commit: MarkPending | None = None) -> None:
        """Remove the account's records, and its devices and cards from payments of others, all or none."""
        with self._writing() as connection:
            for name in ERASING:
                connection.execute(self._sql[name], _named(traces))
            _one(connection, self._sql["take_numbers"], {"count": 1})
            if before_commit is not None and traces.partners:
                before_commit([(partner,) for partner in traces.partners])
        with self._connections.use() as connection:
            connection.execute(self._sql["vacuum"])  # what was deleted is to be gone from the files too

    def checksum(self, *, bucket: int | None = None) -> dict[int, tuple[int, int]]:
        """Count and checksum of transactions per bucket, or per sequence number of one `bucket`."""
        with self._connections.use() as connection:
            last = self._last_seq(connection)
            after_seq = -1 if bucket is None else bucket * BUCKET_ROWS - 1
            up_to_seq = last if bucket is None else min(last, after_seq + BUCKET_ROWS)
            bounds = {"after_seq": after_seq, "up_to_seq": up_to_seq}
            pieces = copy_out(connection, self._sql["copy_out_checksum_columns"], bounds, _CHECKSUM_SCHEMA)
            return merge_checksums(bucket_checksums(piece, bucket) for piece in pieces)

    @contextmanager
    def lock(self, name: str, *, wait_s: float = 0.0) -> Iterator[bool]:
        """Hold the advisory lock `name` on a connection of its own; yields whether it was had within `wait_s`."""
        with self._connections.alone() as connection:
            yield self._try_lock(connection, {"key": _lock_key(f"named:{name}")}, wait_s)

    def close(self) -> None:
        self._connections.close()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that is the only one to write records until it ends."""
        with self._connections.use() as connection, connection.transaction():
            connection.execute(self._sql["isolate_writer"])
            connection.execute(self._sql["limit_lock_wait"], {"wait_ms": str(LOCK_WAIT_MS)})
            connection.execute(self._sql["lock_writers"], {"key": _lock_key("ingest")})
            yield connection

    def _write(self, kind: RecordKind, table: pa.Table, before_commit: MarkPending | None) -> WriteResult:
        batch = kind.check(table)
        ids = {"ids": _text_array(batch["transaction_id"].unique().to_pylist())}
        with self._writing() as connection:
            stored = self._fetch(connection, f"{kind.name}_of", ids, kind.stored_schema)
            parties = None
            if kind is not TRANSACTIONS:
                parties = self._fetch(connection, "parties_of", ids, PARTIES_SCHEMA)
            verdict = judge(kind, batch, stored, parties)
            new = batch.filter(pa.array(verdict.is_new))
            last = self._last_seq(connection)
            if new.num_rows:
                last = int(_one(connection, self._sql["take_numbers"], {"count": new.num_rows})[0])
                copy_in(connection, self._sql[f"copy_in_{kind.name}"], numbered(new, kind, last))
                if before_commit is not None:
                    before_commit(touched_entities(new if parties is None else parties_of(new, parties)))
        return WriteResult(inserted=verdict.is_new, rejected=verdict.rejected, max_seq=last)

    def _try_lock(self, connection: Connection, key: Mapping[str, int], wait_s: float) -> bool:
        if wait_s <= 0:
            return bool(_one(connection, self._sql["try_named_lock"], key)[0])
        connection.execute(self._sql["limit_named_lock_wait"], {"wait_ms": str(max(1, int(wait_s * 1000)))})
        try:
            connection.execute(self._sql["wait_for_named_lock"], key)
        except errors.LockNotAvailable:
            return False
        return True

    def _last_seq(self, connection: Connection) -> int:
        return int(_one(connection, self._sql["max_seq"])[0])

    def _run(self, connection: Connection, name: str, parameters: Mapping[str, Any]) -> psycopg.Cursor[tuple[Any, ...]]:
        return connection.cursor(binary=True).execute(self._sql[name], parameters)

    def _fetch(self, connection: Connection, name: str, parameters: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
        return table_of_rows(self._run(connection, name, parameters).fetchall(), schema)

    def _copy_out(
        self,
        connection: Connection,
        kind: RecordKind,
        bounds: Mapping[str, Any],
        schema: pa.Schema,
        *,
        with_payments: bool = False,
    ) -> pa.Table:
        name = f"copy_out_{kind.name}"
        if with_payments and kind is not TRANSACTIONS:
            name += "_with_payments"
        return pa.concat_tables([schema.empty_table(), *copy_out(connection, self._sql[name], bounds, schema)])


def _one(connection: Connection, statement: bytes, parameters: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    return row


def _bounds(after_seq: int, up_to_seq: int, before_ms: int | None, limit: int = _NO_LIMIT) -> dict[str, Any]:
    before = "infinity" if before_ms is None else from_ms(before_ms).isoformat()
    return {"after_seq": after_seq, "up_to_seq": up_to_seq, "before": before, "limit": limit}


def _text_array(ids: Sequence[str]) -> str:
    """The literal of a text[]: for many ids twenty times as fast as a list that psycopg converts."""
    quoted = ",".join('"' + id_.replace("\\", "\\\\").replace('"', '\\"') + '"' for id_ in ids)
    return "{" + quoted + "}"


def _named(traces: Traces) -> dict[str, str]:
    return {
        "id": traces.account_id,
        "transactions": _text_array(traces.transaction_ids),
        "devices": _text_array(traces.devices),
        "cards": _text_array(traces.cards),
    }


def _lock_key(name: str) -> int:
    """64 bits for pg_advisory_lock, apart from other programs' by the prefix."""
    digest = blake2b(f"ringfence:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
