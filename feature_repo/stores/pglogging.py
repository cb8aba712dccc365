"""Where feature logs go in PostgreSQL: a table per feature service, made when the first log is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from feast.data_source import DataSource
from feast.feature_logging import LOG_TIMESTAMP_FIELD, LoggingDestination
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.protos.feast.core.FeatureService_pb2 import LoggingConfig as LoggingConfigProto
from psycopg import sql

from feature_repo.stores.pgread import Cursor
from feature_repo.stores.pgwrite import append_rows, create_table, storable
from graph_features.stores.pgcopy import postgres_type

_KIND = "ringfence_postgres"


class PostgreSQLLoggingDestination(LoggingDestination):
    """A table of the offline store's database, `schema.table` or a name within the store's search path."""

    _proto_kind = _KIND

    def __init__(self, *, table: str) -> None:
        self.table = table

    @classmethod
    def from_proto(cls, config_proto: LoggingConfigProto) -> LoggingDestination:
        """Rebuild from the registry."""
        return cls(table=config_proto.custom_destination.config["table"])

    def to_proto(self) -> LoggingConfigProto:
        """What the registry keeps."""
        destination = LoggingConfigProto.CustomDestination(kind=_KIND, config={"table": self.table})
        return LoggingConfigProto(custom_destination=destination)

    def to_data_source(self) -> DataSource:
        """The logs as a source, to read them back by."""
        return PostgreSQLSource(name=self.table, table=self.table, timestamp_field=LOG_TIMESTAMP_FIELD)

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(*self.table.split("."))


def write_logs(cursor: Cursor, destination: PostgreSQLLoggingDestination, schema: pa.Schema, logs: Any) -> int:
    """Append logs, a table or a folder of Parquet files, all or none, and return their number.

    The table is made when it is missing; features that the service has since got become columns.
    """
    into = destination.identifier
    name = into.as_string(cursor)
    # Two servers may flush their first logs at once.
    cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"ringfence.logs {name}"])
    _ensure_table(cursor, into, name, storable(schema.empty_table()).schema)
    rows = 0
    for table in _tables(logs):
        if table.num_rows:
            append_rows(cursor, into, table)
        rows += table.num_rows
    return rows


def _ensure_table(cursor: Cursor, into: sql.Identifier, name: str, schema: pa.Schema) -> None:
    (found,) = cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [name]).fetchone() or (False,)
    if not found:
        create_table(cursor, into, schema)
        # Logs come in the order of their time: a few blocks of the index tell where a period is.
        index = sql.SQL("CREATE INDEX ON {} USING brin ({})")
        cursor.execute(index.format(into, sql.Identifier(LOG_TIMESTAMP_FIELD)))
        return
    for field in schema:
        kind = sql.SQL(postgres_type(field.type))
        add = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}")
        cursor.execute(add.format(into, sql.Identifier(field.name), kind))


def _tables(logs: pa.Table | Path) -> Iterator[pa.Table]:
    if isinstance(logs, pa.Table):
        yield logs
        return
    for batch in pads.dataset(logs, format="parquet").to_batches():
        yield pa.Table.from_batches([batch])
