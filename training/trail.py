"""The trail of promotions: who put which version into service when, why, and on which figures. PostgreSQL or SQLite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from graph_features.errors import StoreUnavailableError
from graph_features.jobs.engine import postgres_engine, sqlite_engine
from graph_features.jobs.tables import SCHEMA, UtcDateTime
from graph_features.settings import PlatformSettings, PostgresSettings, Profile, load

Decision = Literal["promoted", "refused", "rolled back", "interrupted"]

_LOCK = 7_402_663_116
"""Advisory lock while an alias moves: two promotions at once would each have been compared with the older champion."""

_metadata = sa.MetaData(schema=SCHEMA)

promotions = sa.Table(
    "promotions",
    _metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("decided_at", UtcDateTime, nullable=False),
    sa.Column("decided_by", sa.Text, nullable=False),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("alias", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    # The champion before; null when there was none.
    sa.Column("previous", sa.Text),
    sa.Column("reasons", sa.JSON, nullable=False),
    # What both models reached, and the gates that it was held against; null where nothing was compared.
    sa.Column("figures", sa.JSON),
    sa.Column("gates", sa.JSON),
    # When the alias had been moved; null for what moves nothing, and while it moves.
    sa.Column("moved_at", UtcDateTime),
    sa.CheckConstraint(
        "decision IN ('promoted', 'refused', 'rolled back', 'interrupted')", name="promotions_decision_is_known"
    ),
    sa.CheckConstraint("decision IN ('promoted', 'rolled back') OR moved_at IS NULL", name="promotions_moved"),
)
sa.Index("promotions_by_model", promotions.c.model, promotions.c.id)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One decision. `figures` and `gates` are JSON; see promotions for the rest."""

    decided_by: str
    decision: Decision
    model: str
    alias: str
    version: str
    previous: str | None
    reasons: tuple[str, ...]
    figures: dict[str, Any] | None = None
    gates: dict[str, Any] | None = None
    decided_at: datetime | None = None
    moved_at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Every field, moments as ISO 8601."""
        moments = {name: getattr(self, name) for name in ("decided_at", "moved_at")}
        return {**asdict(self), **{name: moment and moment.isoformat() for name, moment in moments.items()}}


class Trail:
    """Writes and reads the table; `with Trail.open(platform) as trail`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    @contextmanager
    def open(cls, platform: PlatformSettings) -> Iterator[Trail]:
        """The system of record, or RINGFENCE_HOME/promotions.sqlite; the table is made if missing."""
        if platform.profile is Profile.SERVICES:
            engine = postgres_engine(load(PostgresSettings))
        else:
            engine = sqlite_engine(platform.home / "promotions.sqlite")
        try:
            trail = cls(engine)
            trail._create()
            yield trail
        finally:
            engine.dispose()

    def _create(self) -> None:
        with self._transaction() as connection:
            if self._engine.dialect.name == "postgresql":
                _lock(connection)
                connection.execute(sa.schema.CreateSchema(SCHEMA, if_not_exists=True))
            _metadata.create_all(connection)

    def record(self, entry: Entry) -> int:
        """Write down a decision; return its number."""
        values = {
            "decided_at": entry.decided_at or datetime.now(UTC),
            **{name: getattr(entry, name) for name in ("decided_by", "decision", "model", "alias", "version")},
            **{name: getattr(entry, name) for name in ("previous", "figures", "gates", "moved_at")},
            "reasons": list(entry.reasons),
        }
        with self._transaction() as connection:
            done = connection.execute(promotions.insert().values(values))
        assert done.inserted_primary_key is not None
        return int(done.inserted_primary_key[0])

    @contextmanager
    def moving(self, entry: Entry) -> Iterator[None]:
        """Record a decision, hold off every other one while the block moves the alias, and record that it did.

        When the block raises, the decision is kept as interrupted, with the error as its last reason.
        """
        number = self.record(entry)
        mine = promotions.update().where(promotions.c.id == number)
        try:
            with self._transaction() as connection:
                if self._engine.dialect.name == "postgresql":
                    _lock(connection)
                yield
                connection.execute(mine.values(decision=entry.decision, moved_at=datetime.now(UTC)))
        except BaseException as error:
            with self._transaction() as connection:
                reasons = [*entry.reasons, f"{type(error).__name__}: {error}"]
                connection.execute(mine.values(decision="interrupted", reasons=reasons))
            raise

    def settle(self, model: str, alias: str, current: str | None) -> None:
        """Say of decisions whose process ended while the alias moved whether it did; `current` is where it points."""
        moves = promotions.c.decision.in_(("promoted", "rolled back"))
        open_ = moves & promotions.c.moved_at.is_(None) & (promotions.c.model == model) & (promotions.c.alias == alias)
        with self._transaction() as connection:
            if self._engine.dialect.name == "postgresql":
                _lock(connection)  # a move that is under way holds it, and has ended when we get it
            update = promotions.update().where(open_)
            connection.execute(update.where(promotions.c.version == current).values(moved_at=promotions.c.decided_at))
            connection.execute(update.values(decision="interrupted"))

    def last_moved(self, model: str, alias: str) -> Entry | None:
        """The newest decision that moved the alias, None without any."""
        moved = (promotions.c.alias == alias) & promotions.c.moved_at.is_not(None)
        found = self._read(promotions.c.model == model, moved, limit=1)
        return found[0] if found else None

    def newest(self, model: str, *, limit: int = 20) -> Sequence[Entry]:
        """Decisions on a model, newest first."""
        return self._read(promotions.c.model == model, limit=limit)

    def _read(self, *conditions: sa.ColumnElement[bool], limit: int) -> list[Entry]:
        query = sa.select(promotions).where(*conditions).order_by(promotions.c.id.desc()).limit(limit)
        with self._transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            Entry(**{name: value for name, value in row.items() if name not in ("id", "reasons")},
                  reasons=tuple(row["reasons"]))
            for row in rows
        ]  # fmt: skip

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except sa.exc.DBAPIError as error:
            where = self._engine.url.render_as_string(hide_password=True)
            reason = (str(error.orig).strip().splitlines() or [type(error).__name__])[0]
            raise StoreUnavailableError(f"the trail of promotions at {where} does not serve us: {reason}") from error


def _lock(connection: sa.Connection) -> None:
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
