"""The offline store on PostgreSQL: schema `features`, one table per view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from graph_features.errors import SchemaMismatchError, StoreUnavailableError
from graph_features.schema import ViewSchema
from graph_features.settings import PostgresSettings
from graph_features.stores.base import OnWritten, Written
from graph_features.stores.local import PerThread
from graph_features.stores.pgcopy import copy_chunks, postgres_type
from graph_features.stores.pgdelete import delete_before, delete_entities, named_rows
from graph_features.stores.versions import identity, once

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa
    from psycopg import sql

SCHEMA = "features"


class PostgresOfflineStore:
    """Every version of every row; a row's identity is (keys, event_timestamp, created_timestamp).

    Every call raises StoreUnavailableError when the server cannot be reached.
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._connections = PerThread(partial(_connect, settings))

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Cursor]:
        import psycopg

        try:
            connection = self._connections.get()
            with connection.transaction(), connection.cursor() as cursor:
                yield cursor
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.InsufficientPrivilege) as error:
            self._connections.drop()
            raise StoreUnavailableError(
                f"PostgreSQL at {self._settings.host}:{self._settings.port} failed ({error}); check that it runs "
                "(`ringfence services status`) and RINGFENCE_POSTGRES_*"
            ) from error

    def ping(self) -> None:
        with self._transaction() as cursor:
            cursor.execute("SELECT 1")

    def create_view(self, view: ViewSchema) -> None:
        """Create the view's table and index, or add the columns of new features; raise SchemaMismatchError."""
        with self._transaction() as cursor:
            # Two that create the schema or a table at once would both try, and one fail.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('ringfence.features', 0))")
            existing = _columns(cursor, view.name)
            if not existing:
                for statement in _create(view):
                    cursor.execute(statement)
                return
            for field in view.arrow_schema:
                wanted = _declared(field)
                if field.name not in existing:
                    cursor.execute(_add_column(view.name, field))
                elif existing[field.name] != wanted:
                    raise SchemaMismatchError(
                        f"table {SCHEMA}.{view.name}: column {field.name} is {existing[field.name]}, the feature is "
                        f"{wanted} now; rename the feature, or drop the table and backfill"
                    )

    def write(self, view: ViewSchema, table: pa.Table, *, part: str) -> int:  # noqa: ARG002 - versions replace themselves
        """Write rows all or none and return their number; `part` does not matter here, equal versions are replaced."""
        with self._transaction() as cursor:
            return _write(cursor, view, table)

    def write_all(self, view: ViewSchema, tables: Iterable[pa.Table], *, part: str, on_written: OnWritten) -> int:  # noqa: ARG002
        """Write all tables in one transaction and call `on_written` in it, as its last statement."""
        with self._transaction() as cursor:
            rows = sum(_write(cursor, view, table) for table in tables)
            on_written(Written(rows=rows, name=f"{SCHEMA}.{view.name}", connection=cursor.connection))
        return rows

    def state(self, views: Sequence[ViewSchema]) -> str:
        with self._transaction() as cursor:
            return repr([_rows_and_newest(cursor, view) if _columns(cursor, view.name) else None for view in views])

    def count_entity(self, view: ViewSchema, entity_id: str) -> int:
        with self._transaction() as cursor:
            return named_rows(cursor, view, entity_id) if _columns(cursor, view.name) else 0

    def delete_entities(self, view: ViewSchema, entity_ids: Sequence[str]) -> int:
        with self._transaction() as cursor:
            if not _columns(cursor, view.name):
                return 0
            deleted = delete_entities(cursor, view, entity_ids)
        self._vacuum(view)  # what was deleted is to be gone from the files too
        return deleted

    def delete_before(self, view: ViewSchema, before_ms: int) -> int:
        with self._transaction() as cursor:
            return delete_before(cursor, view, before_ms) if _columns(cursor, view.name) else 0

    def _vacuum(self, view: ViewSchema) -> None:
        from psycopg import sql

        self._connections.get().execute(sql.SQL("VACUUM {}").format(sql_table(view.name)))

    def close(self) -> None:
        self._connections.close()


def _write(cursor: psycopg.Cursor, view: ViewSchema, table: pa.Table) -> int:
    import psycopg

    view.check(table)
    rows = once(view, table)
    try:
        # New rows go straight in; that is twice as fast as through a second table.
        with cursor.connection.transaction():
            _copy(cursor, sql_table(view.name), rows)
    except psycopg.errors.UniqueViolation:
        _merge(cursor, view, rows)
    return int(rows.num_rows)


def _connect(settings: PostgresSettings) -> psycopg.Connection:
    import psycopg

    options: Any = settings.conninfo()
    connection = psycopg.connect(**options, autocommit=True, application_name="ringfence offline store")
    # Long lists are compressed; PostgreSQL's own method takes three times as long as all the rest of a write. Servers
    # before version 14, and those built without it, have only that.
    connection.execute(
        "SELECT set_config(name, 'lz4', false) FROM pg_settings "
        "WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)"
    )
    return connection


def sql_table(view_name: str) -> sql.Identifier:
    """The table of a view."""
    from psycopg import sql

    return sql.Identifier(SCHEMA, view_name)


def _identifiers(names: list[str]) -> sql.Composed:
    from psycopg import sql

    return sql.SQL(", ").join(sql.Identifier(name) for name in names)


def _definitions(view: ViewSchema) -> sql.Composed:
    from psycopg import sql

    return sql.SQL(", ").join(
        sql.SQL("{} {}{}").format(
            sql.Identifier(field.name),
            sql.SQL(postgres_type(field.type)),
            sql.SQL("" if field.nullable else " NOT NULL"),
        )
        for field in view.arrow_schema
    )


def _rows_and_newest(cursor: psycopg.Cursor, view: ViewSchema) -> tuple[Any, ...] | None:
    """How many row versions there are, and of which ingest sequence the newest is."""
    from psycopg import sql

    statement = sql.SQL("SELECT count(*), max(created_timestamp) FROM {}").format(sql_table(view.name))
    return cursor.execute(statement).fetchone()


def _create(view: ViewSchema) -> list[sql.Composed]:
    from psycopg import sql

    table = sql_table(view.name)
    newest_first = sql.SQL("{}, event_timestamp DESC, created_timestamp DESC").format(_identifiers(list(view.keys)))
    return [
        sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(SCHEMA)),
        sql.SQL("CREATE TABLE {} ({})").format(table, _definitions(view)),
        # Serves "the newest row of this entity at or before an instant" from one place.
        sql.SQL("CREATE UNIQUE INDEX ON {} ({})").format(table, newest_first),
        sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(view.description)),
    ]


def _add_column(table: str, field: pa.Field) -> sql.Composed:
    from psycopg import sql

    return sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(
        sql_table(table),
        sql.Identifier(field.name),
        sql.SQL(postgres_type(field.type)),
    )


def _columns(cursor: psycopg.Cursor, table: str) -> dict[str, str]:
    rows = cursor.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = to_regclass(quote_ident(%s) || '.' || quote_ident(%s)) AND attnum > 0 AND NOT attisdropped",
        [SCHEMA, table],
    )
    return dict(rows.fetchall())


def _declared(field: pa.Field) -> str:
    """The field's type as PostgreSQL's format_type writes it."""
    name = postgres_type(field.type)
    if name.startswith("timestamptz"):
        return name.replace("timestamptz", "timestamp") + " with time zone"
    return name


def _copy(cursor: psycopg.Cursor, into: sql.Identifier, table: pa.Table) -> None:
    from psycopg import sql

    names = _identifiers(table.column_names)
    with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(into, names)) as copy:
        for chunk in copy_chunks(table):
            copy.write(chunk)


def _merge(cursor: psycopg.Cursor, view: ViewSchema, table: pa.Table) -> None:
    """Insert rows, replacing equal versions."""
    from psycopg import sql

    incoming = sql.Identifier("pg_temp", f"incoming_{view.fingerprint:016x}")
    definitions = _definitions(view)
    cursor.execute(
        sql.SQL("CREATE TEMPORARY TABLE IF NOT EXISTS {} ({}) ON COMMIT DELETE ROWS").format(incoming, definitions)
    )
    cursor.execute(sql.SQL("TRUNCATE {}").format(incoming))  # what an earlier table of this transaction left
    _copy(cursor, incoming, table)
    cursor.execute(
        sql.SQL(
            "INSERT INTO {table} ({names}) SELECT {names} FROM {incoming} "
            "ON CONFLICT ({identity}) DO UPDATE SET {updates}"
        ).format(
            table=sql_table(view.name),
            names=_identifiers(view.arrow_schema.names),
            incoming=incoming,
            identity=_identifiers(identity(view)),
            updates=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(n)) for n in view.names),
        )
    )
