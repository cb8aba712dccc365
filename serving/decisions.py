"""The durable record of every decision: what was scored, from which rows, by which model, with what outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from graph_features.errors import StoreUnavailableError
from graph_features.settings import PlatformSettings, PostgresSettings, Profile, load
from serving.decision_batch import DecisionBatch
from serving.decision_copy import COLUMNS, copy_text

SCHEMA = "ringfence"
WRITE_TIMEOUT_S = 5.0

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def _table(metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        "decisions",
        metadata,
        sa.Column("id", _BIG, primary_key=True, autoincrement=True),
        sa.Column("transaction_id", sa.Text, nullable=False, index=True),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("scored_at_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("event_timestamp_ms", sa.BigInteger, nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("model_alias", sa.Text, nullable=False),
        sa.Column("feature_hash", sa.Text, nullable=False),
        sa.Column("fraud_score", sa.Double, nullable=False),
        sa.Column("threshold", sa.Double, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        # The payment as it was scored, and per role and view the row it was scored from: [as_of ms, created us].
        sa.Column("inputs", _JSON, nullable=False),
        sa.Column("rows", _JSON, nullable=False),
        sa.Column("unseen", _JSON, nullable=False),
        sa.Column("degraded", _JSON, nullable=False),
    )


def open_engine(platform: PlatformSettings) -> sa.Engine:
    """The system-of-record database: PostgreSQL, or a SQLite file of its own in RINGFENCE_HOME."""
    if platform.profile is Profile.SERVICES:
        conninfo = load(PostgresSettings).conninfo()
        return sa.create_engine(
            "postgresql+psycopg://",
            connect_args={**conninfo, "options": f"-c statement_timeout={int(WRITE_TIMEOUT_S * 1000)}"},
            json_serializer=_to_json,
            json_deserializer=msgspec.json.decode,
            pool_pre_ping=True,
            pool_size=2,
        )
    platform.home.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        f"sqlite:///{platform.home / 'decisions.sqlite'}",
        connect_args={"timeout": WRITE_TIMEOUT_S},
        json_serializer=_to_json,
        json_deserializer=msgspec.json.decode,
    )
    sa.event.listen(engine, "connect", _durable)
    return engine


def _to_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _durable(connection: Any, _: Any) -> None:
    # Readers beside the writer, and a commit that survives the power.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


class DecisionLog:
    """The database's tables of decisions, of what is stored in them, and of who has read how far."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._metadata = sa.MetaData(schema=SCHEMA if engine.dialect.name == "postgresql" else None)
        self.table = _table(self._metadata)
        self.segments = sa.Table("decision_segments", self._metadata, sa.Column("name", sa.Text, primary_key=True))
        self.readers = sa.Table(
            "decision_readers",
            self._metadata,
            sa.Column("name", sa.Text, primary_key=True),
            sa.Column("up_to", sa.BigInteger, nullable=False),
        )

    def create(self) -> None:
        """Create what is missing in the database."""
        try:
            with self._engine.begin() as connection:
                if self._metadata.schema:
                    connection.execute(sa.schema.CreateSchema(SCHEMA, if_not_exists=True))
            self._metadata.create_all(self._engine)
        except sa.exc.SQLAlchemyError as error:
            raise _unavailable(error) from error

    def store_segment(self, name: str, batches: Sequence[DecisionBatch]) -> int:
        """Store a journal's segment and its name in one transaction; return its records, 0 if it was stored before."""
        try:
            with self._engine.begin() as connection:
                known = sa.select(self.segments.c.name).where(self.segments.c.name == name)
                if connection.execute(known).first() is not None:
                    return 0
                connection.execute(sa.insert(self.segments), [{"name": name}])
                return self._insert(connection, batches)
        except sa.exc.SQLAlchemyError as error:
            raise _unavailable(error) from error

    def _insert(self, connection: sa.Connection, batches: Sequence[DecisionBatch]) -> int:
        if connection.dialect.name == "postgresql":
            return copy_batches(connection, self.table, batches)
        rows = [record for batch in batches for record in batch.rows()]
        if rows:
            connection.execute(sa.insert(self.table), rows)
        return len(rows)

    def find(self, transaction_id: str, *, limit: int = 100) -> list[dict[str, Any]]:
        """Decisions on one transaction, newest first."""
        query = (
            sa.select(self.table)
            .where(self.table.c.transaction_id == transaction_id)
            .order_by(self.table.c.id.desc())
            .limit(limit)
        )
        try:
            with self._engine.connect() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]
        except sa.exc.SQLAlchemyError as error:
            raise _unavailable(error) from error

    def unlogged(self, reader: str, *, until_ms: int, limit: int) -> list[dict[str, Any]]:
        """Decisions made before `until_ms` that `reader` has not had yet, oldest first; see `logged`.

        Numbers are given as decisions are stored, which a server whose database was away does late: those behind the
        first that is too new wait with it, for `logged` knows one number only.
        """
        had = sa.select(self.readers.c.up_to).where(self.readers.c.name == reader).scalar_subquery()
        table = self.table
        unread = table.c.id > sa.func.coalesce(had, 0)
        too_new = sa.select(sa.func.min(table.c.id)).where(unread, table.c.scored_at_ms >= until_ms).scalar_subquery()
        query = (
            sa.select(table).where(unread, (table.c.id < too_new) | too_new.is_(None)).order_by(table.c.id).limit(limit)
        )
        try:
            with self._engine.begin() as connection:
                self._metadata.create_all(connection)
                if connection.dialect.name == "postgresql":
                    # Numbers are given before commits: one that is smaller and not to be seen yet would never be read.
                    connection.execute(sa.text(f"LOCK TABLE {SCHEMA}.{table.name} IN SHARE MODE"))
                return [dict(row) for row in connection.execute(query).mappings()]
        except sa.exc.SQLAlchemyError as error:
            raise _unavailable(error) from error

    def logged(self, reader: str, *, up_to: int) -> None:
        """Remember that `reader` has had every decision up to that number."""
        changed = sa.update(self.readers).where(self.readers.c.name == reader).values(up_to=up_to)
        if not self._execute(changed).rowcount:
            self._execute(sa.insert(self.readers).values(name=reader, up_to=up_to))

    def purge(self, *, before_ms: int) -> int:
        """Delete decisions made before `before_ms`; return how many there were."""
        return self._execute(sa.delete(self.table).where(self.table.c.scored_at_ms < before_ms)).rowcount

    def count_account(self, account_id: str, *, devices: Sequence[str], cards: Sequence[str]) -> int:
        """Decisions on payments of an account, or with one of these devices or cards."""
        query = sa.select(sa.func.count()).select_from(self.table)
        return int(self._execute(query.where(self._of(account_id, devices, cards))).scalar_one())

    def erase_account(self, account_id: str, *, devices: Sequence[str], cards: Sequence[str]) -> int:
        """Delete those decisions; return how many there were."""
        return self._execute(sa.delete(self.table).where(self._of(account_id, devices, cards))).rowcount

    def _of(self, account_id: str, devices: Sequence[str], cards: Sequence[str]) -> sa.ColumnElement[bool]:
        inputs = self.table.c.inputs
        wanted = {"sender_id": [account_id], "receiver_id": [account_id], "device_id": devices, "card_id": cards}
        return sa.or_(*(inputs[name].as_string().in_(list(values)) for name, values in wanted.items()))

    def _execute(self, statement: sa.Executable) -> sa.CursorResult[Any]:
        try:
            with self._engine.begin() as connection:
                # Without a server that ever made a decision there is no table.
                self._metadata.create_all(connection)
                return connection.execute(statement)
        except sa.exc.SQLAlchemyError as error:
            raise _unavailable(error) from error

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()


def copy_batches(connection: sa.Connection, table: sa.Table, batches: Sequence[DecisionBatch]) -> int:
    """Write records with COPY, which takes PostgreSQL a fraction of what INSERTs do; return how many there were."""
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor:
            with cursor.copy(f'COPY "{table.schema}"."{table.name}" ({names}) FROM STDIN') as copy:
                for batch in batches:
                    copy.write(copy_text(batch))
            return int(cursor.rowcount)
    except driver_errors() as error:
        raise sa.exc.DBAPIError("COPY", None, error) from error


def driver_errors() -> tuple[type[Exception], ...]:
    """What the PostgreSQL driver raises."""
    import psycopg

    return (psycopg.Error,)


def _unavailable(error: sa.exc.SQLAlchemyError) -> StoreUnavailableError:
    # SQLAlchemy's own text quotes the statement's parameters, PostgreSQL's details the row: neither may go on.
    origin = getattr(error, "orig", None)
    cause = getattr(getattr(origin, "diag", None), "message_primary", None) or origin or type(error).__name__
    return StoreUnavailableError(f"the database of decisions failed: {cause}")
