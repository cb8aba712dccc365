"""The online store in one SQLite file: the same packed values and keys as on Redis."""

from __future__ import annotations

import itertools
import secrets
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_features.errors import SettingsError, StoreUnavailableError
from graph_features.schema import EntityKey, ViewSchema
from graph_features.sources.sql import load_queries
from graph_features.stores.codec import encode
from graph_features.stores.keys import decode_key, encode_key, pending_name, row_keys, row_prefix, rows_prefix
from graph_features.stores.local import PerThread
from graph_features.stores.storing import PLAIN, Storing, slices

if TYPE_CHECKING:
    import pyarrow as pa

BUSY_TIMEOUT_S = 30.0
ROWS_PER_TRANSACTION = 20_000
MAPPED_BYTES = 2**30
VERSION_AT = 8
_VERSION = struct.Struct("<qq")
"""Event and created timestamp in the header of a packed value."""
KEYS_PER_QUERY = 500
"""Under the smallest limit on parameters that SQLite was ever built with."""


class SqliteOnlineStore:
    """Newest rows and pending marks in a file that several processes read while one writes (WAL).

    Every call raises StoreUnavailableError when the file cannot be used.
    """

    def __init__(self, path: Path, *, project: str) -> None:
        self._path = path
        self._project = project
        self._connections = PerThread(partial(_connect, path))

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connections.get()
        except sqlite3.Error as error:
            raise StoreUnavailableError(
                f"the online store {self._path} failed ({type(error).__name__}: {error})"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            # Immediate: a transaction that starts as a reader cannot wait for its turn to write.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def ping(self) -> None:
        with self._connection() as connection:
            connection.execute("SELECT count(*) FROM pending_marks WHERE key = x''").fetchone()

    def epoch(self) -> str:
        """Always the same: what was committed survives the process."""
        return ""

    @property
    def project(self) -> str:
        return self._project

    def put(self, names: Sequence[bytes], values: Sequence[bytes], storing: Storing = PLAIN) -> int:
        """See ValueStore; rows never expire here, so that a time limit is refused."""
        if storing.after_ms is not None or storing.at_ms is not None:
            raise SettingsError("rows in SQLite do not expire: expected no time to live for them; remove that setting")
        statement = _sql("write" if storing.compare else "overwrite")
        stored = 0
        for part in slices(len(names), ROWS_PER_TRANSACTION):
            versions = (_VERSION.unpack_from(value, VERSION_AT) for value in values[part])
            rows = [
                (name, *version, value)
                for name, version, value in zip(names[part], versions, values[part], strict=True)
            ]
            with self._transaction() as connection:
                before = connection.total_changes
                connection.executemany(statement, rows)
                stored += connection.total_changes - before
        return stored

    def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        with self._connection() as connection:
            found = _select(connection, "read", names)
        return [found.get(name) for name in names]

    def write(self, view: ViewSchema, table: pa.Table) -> int:
        values = encode(view, table)
        parts = [table[key].to_pylist() for key in view.keys]
        return self.put(row_keys(self._project, view.name, list(zip(*parts, strict=True))), values)

    def read(self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]]) -> list[list[bytes | None]]:
        names = [row_keys(self._project, view.name, wanted) for view, wanted in requests]
        values = iter(self.get([name for group in names for name in group]))
        return [list(itertools.islice(values, len(group))) for group in names]

    def read_with_pending(
        self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]], keys: Sequence[EntityKey]
    ) -> tuple[list[list[bytes | None]], dict[EntityKey, str]]:
        """`read` and `pending` together.

        The marks are read first: a row that is renewed in between may be taken for pending, never the reverse.
        """
        tokens = self.pending(keys)
        return self.read(requests), tokens

    def mark_pending(self, keys: Sequence[EntityKey]) -> None:
        token = secrets.token_hex(8)
        with self._connection() as connection:
            # A mark must outlive the power: the records that it speaks of will.
            connection.execute("PRAGMA synchronous = FULL")
        try:
            with self._transaction() as connection:
                connection.executemany(_sql("mark"), [(self._mark(key), token) for key in keys])
        finally:
            with self._connection() as connection:
                connection.execute("PRAGMA synchronous = NORMAL")

    def pending(self, keys: Sequence[EntityKey]) -> dict[EntityKey, str]:
        with self._connection() as connection:
            found = _select(connection, "pending", [self._mark(key) for key in keys])
        return {key: found[mark] for key in keys if (mark := self._mark(key)) in found}

    def all_pending(self) -> dict[EntityKey, str]:
        prefix = self._mark_prefix
        with self._connection() as connection:
            rows = connection.execute(_sql("all_pending"), _range(prefix)).fetchall()
        return {decode_key(key[len(prefix) :]): token for key, token in rows}

    def clear_pending(self, tokens: Mapping[EntityKey, str]) -> None:
        if tokens:
            with self._transaction() as connection:
                connection.executemany(_sql("clear"), [(self._mark(key), token) for key, token in tokens.items()])

    def delete(self, view: ViewSchema, keys: Sequence[EntityKey]) -> None:
        names = row_keys(self._project, view.name, keys)
        with self._transaction() as connection:
            connection.executemany(_sql("delete_row"), [(name,) for name in names])

    def delete_view(self, view: ViewSchema) -> None:
        self.delete_rows(view.name)

    def delete_rows(self, view_name: str) -> None:
        with self._transaction() as connection:
            connection.execute(_sql("delete_rows"), _range(row_prefix(self._project, view_name)))

    def teardown(self) -> None:
        with self._transaction() as connection:
            connection.execute(_sql("delete_rows"), _range(rows_prefix(self._project)))
            connection.execute(_sql("delete_marks"), _range(self._mark_prefix))

    def close(self) -> None:
        self._connections.close()

    @property
    def _mark_prefix(self) -> bytes:
        return f"{pending_name(self._project)}:".encode()

    def _mark(self, key: EntityKey) -> bytes:
        return self._mark_prefix + encode_key(key)


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Transactions are begun by hand; close() may come from another thread than the one that opened.
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA mmap_size = {MAPPED_BYTES}")
    connection.executescript(_sql("schema"))
    return connection


def _sql(name: str) -> str:
    return load_queries("graph_features.stores", "online.sql")[name].decode()


def _select(connection: sqlite3.Connection, name: str, keys: Sequence[bytes]) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    for start in range(0, len(keys), KEYS_PER_QUERY):
        part = keys[start : start + KEYS_PER_QUERY]
        found.update(connection.execute(_sql(name).format(keys=", ".join("?" * len(part))), part).fetchall())
    return found


def _range(prefix: bytes) -> tuple[bytes, bytes]:
    """Bounds of the keys that begin with `prefix`, which ends in a colon."""
    return prefix, prefix[:-1] + bytes([prefix[-1] + 1])
