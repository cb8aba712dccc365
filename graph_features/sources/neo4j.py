"""The graph in Neo4j: written in one transaction per batch, read in slices of the ingest sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import neo4j
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from neo4j import exceptions

from graph_features.clock import NEVER_MS
from graph_features.errors import StoreUnavailableError
from graph_features.settings import Neo4jSettings
from graph_features.sources.checksum import BUCKET_ROWS, bucket_checksums, merge_checksums
from graph_features.sources.cypher import load_cypher
from graph_features.sources.payments import EDGE_SCHEMA, canonical, edges_of, uses

_FIELD, _ROW = "\x1f", "\x1e"  # ASCII's own separators of units and records
_FIELDS: Final = len(EDGE_SCHEMA)
_THINGS: Final = {"device_id": "write_devices", "card_id": "write_cards", "ip": "write_ips"}

_UNAVAILABLE: Final = (
    exceptions.ServiceUnavailable,  # nobody there
    exceptions.SessionExpired,  # connection lost
    exceptions.ConnectionPoolError,
    exceptions.ConfigurationError,  # unusable address
    exceptions.AuthError,
    exceptions.TransientError,  # still failing after all retries
    exceptions.DatabaseError,  # the server's own fault: disk full, stopping
)
_UNAVAILABLE_CODES: Final = (
    "Neo.ClientError.Database.DatabaseNotFound",
    "Neo.ClientError.Security.AuthenticationRateLimit",
    "Neo.ClientError.Transaction.TransactionTimedOut",
    "Neo.ClientError.Transaction.TransactionTimedOutClientConfiguration",
)


class Neo4jGraph:
    """GraphStore on a Neo4j database (5.23 or later, community edition is enough).

    The driver is thread-safe and connects when first used. Transient errors (deadlocks, a restarting server) are
    retried for `settings.timeout_s` seconds; then, or when the password is wrong, StoreUnavailableError.
    """

    def __init__(self, settings: Neo4jSettings) -> None:
        self._settings = settings
        self._statements = load_cypher()
        with self._available():
            self._driver = neo4j.GraphDatabase.driver(
                settings.uri,
                auth=(settings.user, settings.password.get_secret_value()),
                connection_timeout=settings.timeout_s,
                connection_acquisition_timeout=2 * settings.timeout_s,
                max_transaction_retry_time=settings.timeout_s,
                notifications_min_severity="OFF",
            )

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the database answers; no retries."""
        with self._session() as session:
            session.run(self._statements["ping"]).consume()

    def create_schema(self) -> None:
        """Create the missing constraints and indexes and wait until they are filled."""
        with self._session() as session:
            for name, statement in self._statements.items():
                if name.startswith("schema_"):
                    session.run(statement).consume()
            session.run(self._statements["await_indexes"]).consume()

    def watermark(self) -> int:
        """The ingest sequence up to which the graph is complete."""
        return int(self._read("watermark")[0][0])

    def write_edges(self, batch: pa.RecordBatch, *, watermark: int) -> None:
        """Write stored transactions and move the watermark (never back), in one transaction.

        Payments whose transaction_id is in the graph are left as they are.
        """
        table = pa.Table.from_batches([batch])
        with self._session() as session:
            session.execute_write(self._write, table, watermark)

    def read_edges(self, *, before_ms: int, after_seq: int = 0, up_to_seq: int | None = None) -> pa.Table:
        """Payments before `before_ms` with after_seq < seq <= up_to_seq (the watermark by default), canonical order."""
        last_seq = self.watermark() if up_to_seq is None else up_to_seq
        return canonical(self._slices(after_seq, last_seq, before_ms))

    def neighbours(self, account_ids: Sequence[str], *, before_ms: int, limit: int) -> dict[str, list[str]]:
        """Per account its most recent distinct counterparties before `before_ms`, newest first, at most `limit`.

        An account without any has an empty list; nobody is their own counterparty.
        """
        found: dict[str, list[str]] = {account_id: [] for account_id in account_ids}
        rows = self._read("neighbours", account_ids=list(found), before_ms=before_ms, limit=limit)
        found.update((row[0], row[1]) for row in rows)
        return found

    def checksum(self, *, bucket: int | None = None) -> dict[int, tuple[int, int]]:
        """Count and checksum of payments per bucket, or per sequence number of one `bucket`."""
        if bucket is not None:
            first = bucket * BUCKET_ROWS
            (table,) = self._slices(first - 1, first + BUCKET_ROWS - 1, NEVER_MS)
            return bucket_checksums(table, bucket)
        rows = self._read("last_seq")
        last_seq = int(rows[0][0]) if rows else 0
        return merge_checksums(bucket_checksums(table) for table in self._slices(-1, last_seq, NEVER_MS))

    def count_account(self, account_id: str, *, devices: Sequence[str], cards: Sequence[str]) -> int:
        """Payments of the account, its node, and the nodes of these devices and cards."""
        return int(self._read("count_account", account_id=account_id, devices=list(devices), cards=list(cards))[0][0])

    def erase_account(self, account_id: str, *, devices: Sequence[str], cards: Sequence[str]) -> None:
        """Remove the account with its payments, these devices and cards, and addresses that nobody else used."""
        parameters = {"account_id": account_id, "devices": list(devices), "cards": list(cards)}
        with self._session() as session:
            for name in _ERASING:
                session.run(self._statements[name], parameters).consume()

    def close(self) -> None:
        self._driver.close()

    def _write(self, transaction: neo4j.ManagedTransaction, table: pa.Table, watermark: int) -> None:
        transaction.run(self._statements["move_watermark"], watermark=watermark).consume()
        if table.num_rows == 0:
            return
        ids = table["transaction_id"].to_pylist()
        result = transaction.run(self._statements["known_transactions"], transaction_ids=ids)
        known = pa.array(result.single(strict=True)[0], pa.string())
        edges = edges_of(table.filter(pc.invert(pc.is_in(table["transaction_id"], value_set=known))))
        accounts = pc.unique(pa.chunked_array([*table["sender_id"].chunks, *table["receiver_id"].chunks], pa.string()))
        transaction.run(self._statements["write_accounts"], account_ids=accounts.to_pylist()).consume()
        columns = {name: edges[name].to_pylist() for name in ("transaction_id", "seq", "sender_id", "receiver_id")}
        columns["ts"] = edges["event_timestamp"].cast(pa.int64()).to_pylist()
        columns["amount"] = edges["amount_base"].to_pylist()
        transaction.run(self._statements["write_payments"], columns).consume()
        for column, statement in _THINGS.items():
            used = uses(table, column)
            if used["thing_id"]:
                transaction.run(self._statements[statement], used).consume()

    def _slices(self, after_seq: int, up_to_seq: int, before_ms: int) -> Iterator[pa.Table]:
        """Tables of at most BUCKET_ROWS payments each, one transaction per slice; rows in no particular order."""
        for low in range(after_seq, up_to_seq, BUCKET_ROWS):
            bounds = {
                "after_seq": low,
                "up_to_seq": min(low + BUCKET_ROWS, up_to_seq),
                "before_ms": before_ms,
            }
            n_rows, blocks = self._read("read_blocks", field=_FIELD, row=_ROW, **bounds)[0]
            table = _table_of_blocks(n_rows, blocks)
            yield table if table is not None else _table(self._read("read_columns", **bounds)[0])

    def _read(self, statement: str, **parameters: Any) -> list[Any]:
        work = neo4j.unit_of_work(timeout=self._settings.timeout_s)(_fetch)
        with self._session() as session:
            return session.execute_read(work, self._statements[statement], parameters)

    @contextmanager
    def _session(self) -> Iterator[neo4j.Session]:
        with self._available(), self._driver.session(database=self._settings.database) as session:
            yield session

    @contextmanager
    def _available(self) -> Iterator[None]:
        try:
            yield
        except _UNAVAILABLE as error:
            raise self._unavailable(error) from None
        except exceptions.ClientError as error:
            if error.code in _UNAVAILABLE_CODES:
                raise self._unavailable(error) from None
            raise

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        # The address is taken apart because somebody may have put a password into it.
        address = urlsplit(self._settings.uri)
        reason = getattr(error, "code", None) or type(error).__name__
        return StoreUnavailableError(
            f"Neo4j at {address.hostname}:{address.port or 7687}, database {self._settings.database}: {reason}; "
            "check that it runs (`ringfence services status`), RINGFENCE_NEO4J_URI and RINGFENCE_NEO4J_PASSWORD"
        )


_ERASING = ("erase_payments", "erase_addresses", "erase_devices", "erase_cards", "erase_account")


def _fetch(transaction: neo4j.ManagedTransaction, statement: str, parameters: dict[str, Any]) -> list[Any]:
    return [record.values() for record in transaction.run(statement, parameters)]


def _table_of_blocks(n_rows: int, blocks: Sequence[str]) -> pa.Table | None:
    """Edges out of joined rows; None when an id holds a separator, so that there are more rows or fields than columns.

    Every row begins with _ROW.
    """
    if n_rows == 0:
        return EDGE_SCHEMA.empty_table()
    rows = pc.split_pattern(pa.array(["".join(blocks)[1:]], pa.large_string()), _ROW).flatten()
    fields = pc.split_pattern(rows, _FIELD)
    if len(rows) != n_rows or not pc.all(pc.equal(pc.list_value_length(fields), _FIELDS)).as_py():
        return None
    values = fields.flatten()
    # Every row is one after the other in `values`: field k of row i lies at i * _FIELDS + k.
    places = np.arange(0, len(values), _FIELDS)
    return _table([values.take(places + k) for k in range(_FIELDS)])


def _table(columns: Sequence[Any]) -> pa.Table:
    """Edges out of columns of strings, integers or digits, times in epoch milliseconds."""
    arrays = []
    for column, field in zip(columns, EDGE_SCHEMA, strict=True):
        values = column if isinstance(column, pa.Array) else pa.array(column)
        is_text = pa.types.is_string(field.type)
        arrays.append(values.cast(field.type) if is_text else values.cast(pa.int64()).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=EDGE_SCHEMA)
