"""Engines for the ledger: PostgreSQL, or a SQLite file that several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event

from graph_features.errors import SchemaMismatchError, StoreUnavailableError
from graph_features.jobs.tables import SCHEMA, metadata
from graph_features.settings import PlatformSettings, PostgresSettings, Profile, load

if TYPE_CHECKING:
    import psycopg

_SCHEMA_LOCK = 7_402_663_115
"""Advisory lock while tables are made: CREATE ... IF NOT EXISTS alone fails when two do it at once."""


def open_engine(platform: PlatformSettings) -> sa.Engine:
    """The active profile's engine: the system of record, or RINGFENCE_HOME/ledger.sqlite."""
    if platform.profile is Profile.SERVICES:
        return postgres_engine(load(PostgresSettings))
    return sqlite_engine(platform.home / "ledger.sqlite")


def postgres_engine(settings: PostgresSettings) -> sa.Engine:
    """An engine on psycopg that tests a pooled connection before it hands it out."""
    url = sa.URL.create(
        "postgresql+psycopg",
        username=settings.user,
        password=settings.password.get_secret_value() or None,
        host=settings.host,
        port=settings.port,
        database=settings.database,
        query={"sslmode": settings.sslmode, "connect_timeout": str(settings.connect_timeout_s)},
    )
    return sa.create_engine(url, pool_pre_ping=True)


def reopened(url: str) -> sa.Engine:
    """An engine for the address of another one, as a process that helps it needs."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return sqlite_engine(Path(str(parsed.database)))
    return sa.create_engine(parsed, pool_pre_ping=True)


def sqlite_engine(path: Path) -> sa.Engine:
    """An engine on a SQLite file in WAL mode; every transaction takes the write lock first, as claims need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine.execution_options(schema_translate_map={SCHEMA: None})


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late and is deferred
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 30000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def create_tables(engine: sa.Engine) -> None:
    """Create what is missing; safe when several processes start at once."""
    with transaction(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            if not connection.scalar(sa.text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": SCHEMA}):
                connection.execute(sa.schema.CreateSchema(SCHEMA, if_not_exists=True))
        _refuse_earlier_layout(connection)
        metadata.create_all(connection)


def _refuse_earlier_layout(connection: sa.Connection) -> None:
    """Raise SchemaMismatchError for tables of an earlier layout: create_all would leave them as they are."""
    schema = None if connection.dialect.name == "sqlite" else SCHEMA
    inspector = sa.inspect(connection)
    for table in metadata.sorted_tables:
        if not inspector.has_table(table.name, schema=schema):
            continue
        found = {column["name"] for column in inspector.get_columns(table.name, schema=schema)}
        if missing := sorted({column.name for column in table.columns} - found):
            raise SchemaMismatchError(
                f"the job ledger's table {table.name} is of an earlier version, it lacks {', '.join(missing)}; the "
                "ledger holds the history of jobs and no feature: drop its tables chunks, ticks and jobs"
            )


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction; raise StoreUnavailableError, without the address's password, when the database fails it."""
    try:
        with engine.connect() as connection, connection.begin():
            yield connection
    except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
        raise unavailable(engine, error) from error
    except sa.exc.ProgrammingError as error:
        # Revoked rights and dropped tables are for a person to mend; they arrive as mistakes of the program.
        raise unavailable(engine, error) from error


def unavailable(engine: sa.Engine, error: sa.exc.DBAPIError) -> StoreUnavailableError:
    """Say which ledger failed, and why in the driver's words; the statement and its parameters stay out."""
    where = engine.url.render_as_string(hide_password=True)
    reason = str(error.orig).strip().splitlines() or [type(error).__name__]
    return StoreUnavailableError(f"the job ledger at {where} does not serve us: {reason[0]}")


def same_database(engine: sa.Engine, connection: psycopg.Connection[Any]) -> bool:
    """Whether a connection of the offline store leads to the ledger's own database."""
    url, info = engine.url, connection.info
    return engine.dialect.name == "postgresql" and (url.host, url.port or 5432, url.database) == (
        info.host,
        info.port,
        info.dbname,
    )


def execute_in(connection: psycopg.Connection[Any], engine: sa.Engine, statement: sa.Executable) -> int:
    """Execute a statement of ours in somebody else's transaction on the same database; return its row count."""
    assert isinstance(statement, sa.ClauseElement)
    compiled = statement.compile(dialect=engine.dialect, compile_kwargs={"render_postcompile": True})
    return connection.execute(compiled.string.encode(), compiled.params).rowcount
