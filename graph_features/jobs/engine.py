"""Engines for the ledger: PostgreSQL, or a SQLite file that several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from graph_features.errors import StoreUnavailableError
from graph_features.jobs.tables import SCHEMA, metadata
from graph_features.settings import PlatformSettings, PostgresSettings, Profile, load

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
        metadata.create_all(connection)


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction; raise StoreUnavailableError, without the address's password, when there is no connection."""
    try:
        connection = engine.connect()
    except sa.exc.OperationalError as error:
        where = engine.url.render_as_string(hide_password=True)
        raise StoreUnavailableError(f"the job ledger at {where} does not answer: {error.orig}") from error
    with connection, connection.begin():
        yield connection
