"""Feast's own PostgreSQL offline store and ours: random schemas, histories and entity rows must answer the same.

Where the two differ on purpose, test_offline_postgres.py has a test that says how.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig
from feast import types as feast_types
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.value_type import ValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from graph_features.settings import PostgresSettings

pytestmark = [
    pytest.mark.services,
    pytest.mark.filterwarnings("ignore:pandas only supports SQLAlchemy:UserWarning"),  # Feast's own store causes it
]

EXAMPLES = settings(
    max_examples=25,
    phases=[__import__("hypothesis").Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
START = datetime(2024, 3, 1, tzinfo=UTC)
ENTITIES = {
    "account_id": Entity(name="account", join_keys=["account_id"], value_type=ValueType.STRING),
    "shop_id": Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64),
}
KEY_TYPES = {"account_id": ["text", "varchar(40)"], "shop_id": ["bigint", "integer"]}
KEY_VALUES: dict[str, list[Any]] = {"account_id": ["ann", "bob", "", "Ann"], "shop_id": [0, 1, -7]}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
INSTANTS = st.integers(-(10**15), 4 * 10**15).map(lambda us: START + timedelta(microseconds=us))
BIGINTS, INTS = st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1)

COLUMNS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "boolean": (feast_types.Bool, st.booleans()),
    "smallint": (feast_types.Int32, st.integers(-(2**15), 2**15 - 1)),
    "integer": (feast_types.Int32, INTS),
    "bigint": (feast_types.Int64, BIGINTS),
    "real": (feast_types.Float32, st.floats(width=32)),
    "double precision": (feast_types.Float64, st.floats()),
    "numeric": (feast_types.Float64, INTS.map(lambda quarters: Decimal(quarters) / 4)),  # as floats they are exact
    "text": (feast_types.String, TEXT),
    "varchar": (feast_types.String, TEXT),
    "bytea": (feast_types.Bytes, st.binary(max_size=8)),
    "timestamptz": (feast_types.UnixTimestamp, INSTANTS),
    "boolean[]": (feast_types.Array(feast_types.Bool), st.lists(st.booleans(), max_size=3)),
    "integer[]": (feast_types.Array(feast_types.Int32), st.lists(INTS, max_size=3)),
    "bigint[]": (feast_types.Array(feast_types.Int64), st.lists(BIGINTS | st.none(), max_size=3)),
    "double precision[]": (feast_types.Array(feast_types.Float64), st.lists(st.floats(), max_size=3)),
    "text[]": (feast_types.Array(feast_types.String), st.lists(TEXT | st.just('q"\\,{} NULL'), max_size=3)),
    "timestamptz[]": (feast_types.Array(feast_types.UnixTimestamp), st.lists(INSTANTS, max_size=3)),
}
"""PostgreSQL's type: Feast's, and values."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A source: columns (name, type in PostgreSQL, type in Feast), rows, and what the view makes of it."""

    name: str
    keys: tuple[tuple[str, str], ...]
    features: tuple[tuple[str, str, Any], ...]
    at_type: str
    has_created: bool
    rows: tuple[tuple[Any, ...], ...]
    index: str = ""
    as_query: bool = False
    renamed: bool = False
    ttl: timedelta = timedelta(0)

    @property
    def columns(self) -> list[tuple[str, str]]:
        stamps = [("at", self.at_type), *([("made", "timestamptz")] if self.has_created else [])]
        return [*self.keys, *stamps, *((name, kind) for name, kind, _ in self.features)]

    @property
    def names(self) -> list[str]:
        """The features' names in the view."""
        return [f"{name}_shown" if self.renamed else name for name, _, _ in self.features]

    def create(self, connection: psycopg.Connection[Any]) -> None:
        name = sql.Identifier(self.name)
        columns = sql.SQL(", ").join(sql.SQL(f'"{column}" {kind}') for column, kind in self.columns)
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(name, columns))
        if self.index:
            connection.execute(sql.SQL(f"CREATE INDEX ON {{}} ({self.index})").format(name))
        places = sql.SQL(", ").join(sql.SQL(f"%s::{kind}") for _, kind in self.columns)
        insert = sql.SQL("INSERT INTO {} VALUES ({})").format(name, places)
        connection.cursor().executemany(insert, [list(row) for row in self.rows])

    def view(self) -> FeatureView:
        names = dict(zip((name for name, _, _ in self.features), self.names, strict=True))
        types = {"account_id": feast_types.String, "shop_id": feast_types.Int64}
        schema = [Field(name=key, dtype=types[key]) for key, _ in self.keys]
        schema += [Field(name=names[name], dtype=kind) for name, _, kind in self.features]
        place: dict[str, Any] = {"query": f'SELECT * FROM "{self.name}"'} if self.as_query else {"table": self.name}
        source = PostgreSQLSource(
            name=f"{self.name}_source",
            timestamp_field="at",
            created_timestamp_column="made" if self.has_created else "",
            field_mapping=names if self.renamed else None,
            **place,
        )
        entities = [ENTITIES[key] for key, _ in self.keys]
        return FeatureView(name=self.name, entities=entities, schema=schema, source=source, ttl=self.ttl, online=False)


@st.composite
def tables(draw: st.DrawFn, name: str) -> Table:
    """A source of few entities, or none, at few instants, each version once, so that there is one answer."""
    keys = draw(st.sampled_from([["account_id"], ["shop_id"], ["account_id", "shop_id"], []]))
    kinds = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=5))
    has_created = draw(st.booleans())
    hours = st.integers(0, 6)
    versions = draw(
        st.lists(
            st.tuples(
                st.tuples(*(st.sampled_from(KEY_VALUES[key]) for key in keys)),
                st.tuples(hours, st.sampled_from([0, 0, 1])),
                *([hours] if has_created else []),
            ),
            unique=True,
            max_size=25,
        )
    )
    rows = []
    for key, (hour, micros), *created in versions:
        stamps = [START + timedelta(hours=hour, microseconds=micros), *(START + timedelta(hours=h) for h in created)]
        rows.append((*key, *stamps, *(draw(st.none() | COLUMNS[kind][1]) for kind in kinds)))
    return Table(
        name=name,
        keys=tuple((key, draw(st.sampled_from(KEY_TYPES[key]))) for key in keys),
        features=tuple((f"f{i}", kind, COLUMNS[kind][0]) for i, kind in enumerate(kinds)),
        at_type=draw(st.sampled_from(["timestamptz", "timestamp"])),
        has_created=has_created,
        rows=tuple(rows),
        index=draw(st.sampled_from(["", ", ".join([*keys, "at DESC"]), "at"])),
        as_query=draw(st.booleans()),
        renamed=draw(st.booleans()),
        ttl=draw(st.sampled_from([timedelta(0), timedelta(hours=2)])),
    )


@dataclass(frozen=True, kw_only=True)
class Sides:
    """One registry, read by Feast over its own store and over ours."""

    stock: FeatureStore
    ours: FeatureStore
    connection: psycopg.Connection[Any]

    def both(self, ask: Callable[[FeatureStore], pa.Table]) -> tuple[list[str], list[str]]:
        """Ask both; return their rows in one order, as text so that NaN equals NaN."""
        stock, ours = ask(self.stock), ask(self.ours)
        assert ours.column_names == stock.column_names
        assert [*map(_zoneless, ours.schema.types)] == [*map(_zoneless, stock.schema.types)]
        return shown(stock), shown(ours)


def shown(table: pa.Table) -> list[str]:
    """Rows as text, sorted."""
    return sorted(str({name: _plain(value) for name, value in row.items()}) for row in table.to_pylist())


def _zoneless(dtype: pa.DataType) -> pa.DataType:
    """Feast's own store leaves out the zone of every time."""
    if pa.types.is_list(dtype):
        return pa.list_(_zoneless(dtype.value_type))
    return pa.timestamp(dtype.unit) if pa.types.is_timestamp(dtype) else dtype


def _plain(value: Any) -> Any:
    """Times without the zone's own spelling; dates as times; the rest as it is."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat() if value.tzinfo else value.replace(tzinfo=UTC).isoformat()
    return datetime(value.year, value.month, value.day, tzinfo=UTC).isoformat() if isinstance(value, date) else value


Open = Callable[[Sequence[Table]], Sides]


def opener(settings: PostgresSettings, folder: Path, connection: psycopg.Connection[Any]) -> Open:
    """open(tables): new tables and views, and both stores over them."""
    numbers = itertools.count()
    place = {
        "host": settings.host,
        "port": settings.port,
        "user": settings.user,
        "password": settings.password.get_secret_value(),
        "database": settings.database,
        "sslmode": settings.sslmode,
        "db_schema": "public",
    }

    def make(tables: Sequence[Table]) -> Sides:
        number = next(numbers)
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        for table in tables:
            table.create(connection)
        sides = [
            FeatureStore(
                config=RepoConfig(
                    project=f"project{number}",
                    registry=str(folder / f"registry{number}.db"),
                    provider="local",
                    offline_store={"type": kind, **place},
                    online_store={"type": "sqlite", "path": str(folder / "online.db")},
                    entity_key_serialization_version=3,
                )
            )
            for kind in ("postgres", "feature_repo.stores.postgres.RingfencePostgreSQLOfflineStore")
        ]
        sides[0].apply([*ENTITIES.values(), *(table.view() for table in tables)])
        return Sides(stock=sides[0], ours=sides[1], connection=connection)

    return make


@pytest.fixture
def sides(postgres_settings: PostgresSettings, tmp_path: Path) -> Iterator[Open]:
    """sides(tables): new tables and views, and Feast over both stores."""
    options: Any = postgres_settings.conninfo()
    with psycopg.connect(**options, autocommit=True) as connection:
        yield opener(postgres_settings, tmp_path, connection)


@st.composite
def asked_rows(draw: st.DrawFn) -> pd.DataFrame:
    """Entity rows: known and unknown entities before, at and after rows' own times, some of them twice, or null."""
    accounts, shops = st.sampled_from([*KEY_VALUES["account_id"], "nobody", None]), st.sampled_from([0, 1, -7, 99])
    moments = st.tuples(st.integers(-1, 9), st.sampled_from([-1, 0, 0, 1]))
    rows = draw(st.lists(st.tuples(accounts, shops, moments, st.floats(0, 1)), min_size=1, max_size=30))
    frame = pd.DataFrame(
        {
            "account_id": pd.Series([row[0] for row in rows], dtype=object),
            "event_timestamp": [START + timedelta(hours=row[2][0], microseconds=row[2][1]) for row in rows],
            "shop_id": [row[1] for row in rows],
            "amount": [row[3] for row in rows],
        }
    )
    frame = pd.concat([frame, frame.head(2)], ignore_index=True)
    # A column of nothing but null has no type in Feast's own upload.
    last = pd.DataFrame([["ann", START, 1, 0.5]], columns=frame.columns)
    frame = pd.concat([frame, last], ignore_index=True)
    return frame.assign(number=range(len(frame)))


@EXAMPLES
@given(first=tables("one"), second=tables("two"), asked=asked_rows(), full=st.booleans(), known=st.booleans())
def test_historical_features(
    sides: Open, first: Table, second: Table, asked: pd.DataFrame, full: bool, known: bool
) -> None:
    """Two random views by data frame, a third of them also by query: every row and column is the same."""
    made = sides([first, second])
    pairs = [("one", name) for name in first.names]
    # Of two features of one name Feast wants the full names.
    pairs += [("two", name) for name in second.names if full or name not in first.names]
    refs = [f"{view}:{name}" for view, name in pairs]

    def ask(store: FeatureStore) -> pa.Table:
        return store.get_historical_features(
            asked, refs, full_feature_names=full, filter_by_created_timestamp=known
        ).to_arrow()

    stock, ours = made.both(ask)
    assert ours == stock
    assert ask(made.ours)["number"].to_pylist() == asked["number"].tolist()


@EXAMPLES
@given(table=tables("one"), asked=asked_rows())
def test_entity_rows_by_query(sides: Open, table: Table, asked: pd.DataFrame) -> None:
    """Entity rows that are a query of a table of the database."""
    made = sides([table])
    made.connection.execute(
        "CREATE TABLE asked (number int, account_id text, shop_id bigint, amount float8, moment timestamptz)"
    )
    rows = asked[["number", "account_id", "shop_id", "amount", "event_timestamp"]].to_numpy().tolist()
    made.connection.cursor().executemany("INSERT INTO asked VALUES (%s, %s, %s, %s, %s)", rows)
    query = "SELECT number, account_id, shop_id, amount, moment AS event_timestamp FROM asked WHERE number >= 1"
    refs = [f"one:{name}" for name in table.names]
    stock, ours = made.both(lambda store: store.get_historical_features(query, refs).to_arrow())
    assert ours == stock


@EXAMPLES
@given(table=tables("one"), ends=st.tuples(st.integers(-1, 7), st.integers(-1, 7)), some=st.booleans())
def test_pulled_rows(sides: Open, table: Table, ends: tuple[int, int], some: bool) -> None:
    """Latest and all rows of a period, of named columns or of every column."""
    made = sides([table])
    start, end = (START + timedelta(hours=hour) for hour in sorted(ends))
    view = made.ours.get_feature_view("one")
    keys = [key for key, _ in table.keys]
    methods = ["pull_latest_from_table_or_query", "pull_all_from_table_or_query"]
    # Of every column Feast's store has a newest row per instant where there is no key to tell entities apart by.
    for method in methods if keys or some else methods[1:]:

        def ask(store: FeatureStore, method: str = method) -> pa.Table:
            pull = getattr(store._get_provider().offline_store, method)
            features = [name for name, _, _ in table.features] if some else []
            created = "made" if table.has_created else None
            return pull(store.config, view.batch_source, keys, features, "at", created, start, end).to_arrow()

        stock, ours = made.both(ask)
        assert ours == stock, method


@EXAMPLES
@given(first=tables("one"), second=tables("two"))
def test_a_period_without_entity_rows(sides: Open, first: Table, second: Table) -> None:
    """Everything within a period, of one view or of two."""
    made = sides([first, second])
    refs = [*(f"one:{name}" for name in first.names), *(f"two:{name}" for name in second.names)]

    def ask(store: FeatureStore, refs: list[str]) -> pa.Table:
        period: dict[str, Any] = {"start_date": START, "end_date": START + timedelta(hours=4)}
        return store.get_historical_features(None, refs, full_feature_names=True, **period).to_arrow()

    alone = refs[: len(first.names)]
    stock, ours = made.both(lambda store: ask(store, alone))
    assert ours == stock
