"""The PostgreSQL offline store in a Feast project of someone's own: what it adds, and where Feast's own store is wrong.

Everything else is the same in both: see test_offline_differential.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, PushSource, RepoConfig, RequestSource
from feast.data_source import PushMode
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
    SavedDatasetPostgreSQLStorage,
)
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float32, Float64, Int64, String
from feast.value_type import ValueType

from feature_repo.stores.pgjob import StreamedRetrievalJob
from feature_repo.stores.pglogging import PostgreSQLLoggingDestination
from graph_features.clock import EPOCH
from graph_features.errors import SchemaMismatchError
from graph_features.settings import PostgresSettings

pytestmark = [
    pytest.mark.services,
    pytest.mark.filterwarnings("ignore:.*is an experimental feature:RuntimeWarning"),
]

OURS = "feature_repo.stores.postgres.RingfencePostgreSQLOfflineStore"
STOCK = "postgres"
ACCOUNT = Entity(name="account", join_keys=["account_id"], value_type=ValueType.STRING)
SHOP = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
START = EPOCH + timedelta(days=20_000)

Open = Callable[..., FeatureStore]


def hour(number: int) -> datetime:
    return START + timedelta(hours=number)


def asked(*rows: tuple[Any, ...], columns: tuple[str, ...] = ("account_id", "event_timestamp")) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns))


def view(
    name: str = "one", *, created: bool = True, entities: tuple[Entity, ...] = (ACCOUNT,), **more: Any
) -> FeatureView:
    """Over the table of the same name: keys, at, made, total."""
    schema = [*(Field(name=entity.join_key, dtype=String) for entity in entities), Field(name="total", dtype=Int64)]
    source = PostgreSQLSource(
        name=f"{name}_source", table=name, timestamp_field="at", created_timestamp_column="made" if created else ""
    )
    values: dict[str, Any] = {"name": name, "entities": list(entities), "schema": schema, "source": source, **more}
    return FeatureView(**values)


@pytest.fixture
def connection(postgres_settings: PostgresSettings) -> Iterator[psycopg.Connection[Any]]:
    options: Any = postgres_settings.conninfo()
    with psycopg.connect(**options, autocommit=True) as opened:
        opened.execute("CREATE TABLE one (account_id text, at timestamptz, made timestamptz, total bigint)")
        yield opened


@pytest.fixture
def store(postgres_settings: PostgresSettings, tmp_path: Path) -> Open:
    """store(kind, **options): Feast over a store of this kind, one registry for all of them."""

    def make(kind: str = OURS, **options: Any) -> FeatureStore:
        place = {
            "host": postgres_settings.host,
            "port": postgres_settings.port,
            "user": postgres_settings.user,
            "password": postgres_settings.password.get_secret_value(),
            "database": postgres_settings.database,
            "sslmode": postgres_settings.sslmode,
            "db_schema": "public",
        }
        return FeatureStore(
            config=RepoConfig(
                project="theirs",
                registry=str(tmp_path / "registry.db"),
                provider="local",
                offline_store={"type": kind, **place, **options},
                online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
                entity_key_serialization_version=3,
            ),
        )

    return make


def fill(connection: psycopg.Connection[Any], rows: list[tuple[Any, ...]], table: str = "one") -> None:
    places = ", ".join(["%s"] * len(rows[0]))
    connection.cursor().executemany(f"INSERT INTO {table} VALUES ({places})", rows)


class TestWhereFeastsStoreIsWrong:
    """Each of these has Feast's own answer beside ours; docs/feast.md lists them."""

    def test_two_rows_of_one_time(self, connection: psycopg.Connection[Any], store: Open) -> None:
        """Without a created timestamp to choose by, Feast's store answers one entity row twice, ours once."""
        fill(connection, [("ann", hour(0), None, 1), ("ann", hour(0), None, 2)])
        store().apply([ACCOUNT, view(created=False)])
        frame = asked(("ann", hour(1)))
        assert len(store(STOCK).get_historical_features(frame, ["one:total"]).to_df()) == 2
        answer = store().get_historical_features(frame, ["one:total"]).to_df()
        assert answer["total"].isin([1, 2]).tolist() == [True]

    def test_a_row_without_created_timestamp(self, connection: psycopg.Connection[Any], store: Open) -> None:
        """Feast's store does not see a row whose created timestamp is null; here it is the oldest of its time."""
        fill(connection, [("ann", hour(0), hour(0), 1), ("ann", hour(1), None, 2)])
        fill(connection, [("bob", hour(1), None, 3), ("bob", hour(1), hour(0), 4)])
        store().apply([ACCOUNT, view()])
        frame = asked(("ann", hour(2)), ("bob", hour(2)))
        stock = store(STOCK).get_historical_features(frame, ["one:total"]).to_df().sort_values("account_id")
        assert stock["total"].tolist() == [1, 4]
        assert store().get_historical_features(frame, ["one:total"]).to_df()["total"].tolist() == [2, 4]

    def test_keys_that_are_alike_when_joined(self, connection: psycopg.Connection[Any], store: Open) -> None:
        """Feast's store tells entity rows apart by their keys as one text: of (a, bc) and (ab, c) it answers four."""
        connection.execute(
            "CREATE TABLE two (account_id text, shop_id text, at timestamptz, made timestamptz, total int)"
        )
        fill(connection, [("a", "bc", hour(0), hour(0), 1), ("ab", "c", hour(0), hour(0), 2)], "two")
        both = (ACCOUNT, SHOP)
        store().apply([*both, view("two", entities=both)])
        frame = asked(("a", "bc", hour(1)), ("ab", "c", hour(1)), columns=("account_id", "shop_id", "event_timestamp"))
        assert len(store(STOCK).get_historical_features(frame, ["two:total"]).to_df()) == 4
        assert store().get_historical_features(frame, ["two:total"]).to_df()["total"].tolist() == [1, 2]

    def test_the_newest_row_of_all(self, connection: psycopg.Connection[Any], store: Open) -> None:
        """A view without entities has one newest row; asked for every column, Feast's store answers one per time."""
        connection.execute("CREATE TABLE world (at timestamptz, made timestamptz, mood bigint)")
        fill(connection, [(hour(i), hour(i), i) for i in range(3)], "world")
        world = view("world", entities=(), schema=[Field(name="mood", dtype=Int64)])
        store().apply([world])

        def latest(kind: str, features: list[str]) -> list[int]:
            feast = store(kind)
            offline: Any = feast._get_provider().offline_store
            pulled = offline.pull_latest_from_table_or_query(
                feast.config, world.batch_source, [], features, "at", "made", hour(0), hour(9)
            ).to_arrow()
            return sorted(pulled["mood"].to_pylist())

        assert latest(STOCK, ["mood"]) == latest(OURS, ["mood"]) == [2]
        assert latest(STOCK, []) == [0, 1, 2]
        assert latest(OURS, []) == [2]

    def test_no_entity_rows(self, connection: psycopg.Connection[Any], store: Open) -> None:
        """None asked, none answered, with every column; Feast's store fails."""
        fill(connection, [("ann", hour(0), hour(0), 1)])
        store().apply([ACCOUNT, view()])
        frame = asked(("ann", hour(1))).head(0)
        with pytest.raises(psycopg.errors.SyntaxError):
            store(STOCK).get_historical_features(frame, ["one:total"]).to_df()
        answer = store().get_historical_features(frame, ["one:total"]).to_arrow()
        assert answer.column_names == ["account_id", "event_timestamp", "total"]
        assert answer.num_rows == 0

    def test_a_column_of_nothing(self, connection: psycopg.Connection[Any], store: Open) -> None:
        """A column of the entity rows that is all null comes back; Feast's store has no type for it."""
        fill(connection, [("ann", hour(0), hour(0), 1)])
        store().apply([ACCOUNT, view()])
        frame = asked(("ann", hour(1))).assign(note=None)
        with pytest.raises(psycopg.Error):
            store(STOCK).get_historical_features(frame, ["one:total"]).to_df()
        answer = store().get_historical_features(frame, ["one:total"]).to_df()
        assert answer["note"].tolist() == [None]
        assert answer["total"].tolist() == [1]

    def test_times_without_a_zone(self, connection: psycopg.Connection[Any], store: Open) -> None:
        """They are UTC, and come back with it, as from Feast's other stores; Feast's PostgreSQL store leaves it out."""
        fill(connection, [("ann", hour(0), hour(0), 1)])
        store().apply([ACCOUNT, view()])
        frame = asked(("ann", hour(1).replace(tzinfo=None)))
        stock = store(STOCK).get_historical_features(frame, ["one:total"]).to_df()
        ours = store().get_historical_features(frame, ["one:total"]).to_df()
        assert ours["total"].tolist() == stock["total"].tolist() == [1]
        assert ours["event_timestamp"].tolist() == [hour(1)]

    def test_a_time_column_with_capitals(self, connection: psycopg.Connection[Any], store: Open) -> None:
        """Feast's store asks for it without quotes, which PostgreSQL reads in small letters."""
        fill(connection, [("ann", hour(0), hour(0), 1)])
        store().apply([ACCOUNT, view()])
        frame = asked(("ann", hour(1)), columns=("account_id", "At"))
        with pytest.raises(psycopg.errors.UndefinedColumn):
            store(STOCK).get_historical_features(frame, ["one:total"]).to_df()
        assert store().get_historical_features(frame, ["one:total"]).to_df()["total"].tolist() == [1]

    def test_numbers_without_a_fixed_width(self, connection: psycopg.Connection[Any], store: Open) -> None:
        """A numeric comes as the nearest float, of any length; Feast's store is off in the last place, or fails."""
        connection.execute("CREATE TABLE two (account_id text, at timestamptz, made timestamptz, total numeric)")
        fill(connection, [("ann", hour(0), hour(0), "34.30"), ("bob", hour(0), hour(0), "1" * 80)], "two")
        store().apply([ACCOUNT, view("two")])
        ann, both = asked(("ann", hour(1))), asked(("ann", hour(1)), ("bob", hour(1)))
        assert store(STOCK).get_historical_features(ann, ["two:total"]).to_df()["total"].tolist() == [
            34.300000000000004
        ]
        with pytest.raises(pa.ArrowInvalid):
            store(STOCK).get_historical_features(both, ["two:total"]).to_df()
        found = store().get_historical_features(both, ["two:total"]).to_df()
        assert found["total"].tolist() == [34.3, float("1" * 80)]

    def test_the_order_asked(self, connection: psycopg.Connection[Any], store: Open) -> None:
        """Answers come in the order of the entity rows, which Feast's store does not promise."""
        accounts = [f"a{i}" for i in range(500)]
        fill(connection, [(account, hour(0), hour(0), i) for i, account in enumerate(accounts)])
        store().apply([ACCOUNT, view()])
        order = np.random.default_rng(1).permutation(500).tolist()
        frame = asked(*((accounts[i], hour(1)) for i in order))
        assert store().get_historical_features(frame, ["one:total"]).to_df()["total"].tolist() == order


def many(connection: psycopg.Connection[Any], count: int = 300) -> pd.DataFrame:
    """Fill the table with hourly rows of ten accounts; return entity rows for them, and what they must find."""
    fill(connection, [(f"a{i % 10}", hour(i), hour(i), i) for i in range(count)])
    frame = asked(*((f"a{i * 7 % 11}", hour(i)) for i in range(count)))
    frame["expected"] = [i - (i - i * 7 % 11) % 10 for i in range(count)]
    unknown = (frame["expected"] < 0) | (frame["account_id"] == "a10")
    return frame.assign(expected=frame["expected"].astype("Int64").mask(unknown))


def same(answer: pa.Table) -> bool:
    """Whether the answer's total is what was expected."""
    return bool(answer["total"].to_pylist() == answer["expected"].to_pylist())


@pytest.mark.parametrize("options", [{}, {"rows_per_chunk": 7}, {"rows_per_chunk": 64, "connections": 1}])
def test_in_chunks(connection: psycopg.Connection[Any], store: Open, options: dict[str, Any], tmp_path: Path) -> None:
    """However many rows are joined at a time: one table, batches, files, from a data frame or from a query."""
    frame = many(connection)
    ours = store(**options)
    ours.apply([ACCOUNT, view(), view("two", source=view("one").batch_source)])
    refs = ["one:total", "two:total"]
    found = ours.get_historical_features(frame, refs, full_feature_names=True).to_arrow()
    assert found["one__total"].to_pylist() == found["two__total"].to_pylist() == found["expected"].to_pylist()
    job = ours.get_historical_features(frame, refs[:1])
    assert isinstance(job, StreamedRetrievalJob)
    batches = list(job.to_batches(max_rows=50))
    assert max(batch.num_rows for batch in batches) <= 50
    assert same(pa.Table.from_batches(batches))
    files = job.to_parquet(tmp_path / "answer", rows_per_file=100)
    assert [pq.read_metadata(file).num_rows for file in files] == [100, 100, 100]
    assert same(pa.concat_tables([pq.read_table(file) for file in files]))
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.to_parquet(tmp_path / "answer")
    assert len(job.to_parquet(tmp_path / "answer", overwrite=True)) == 1
    connection.execute("CREATE TABLE asked (account_id text, event_timestamp timestamptz, expected bigint)")
    rows = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    connection.cursor().executemany("INSERT INTO asked VALUES (%s, %s, %s)", rows)
    assert same(ours.get_historical_features("SELECT * FROM asked", refs[:1]).to_arrow())


def test_a_view_without_entities(connection: psycopg.Connection[Any], store: Open) -> None:
    """Its newest row for every entity row, beside a view that has entities, by itself, in chunks, or for none."""
    frame = many(connection, 40)
    connection.execute("CREATE TABLE world (at timestamptz, made timestamptz, mood bigint)")
    fill(connection, [(hour(i), hour(i), i) for i in range(0, 40, 7)], "world")
    world = view("world", entities=(), schema=[Field(name="mood", dtype=Int64)])
    for options in ({}, {"rows_per_chunk": 9}):
        ours = store(**options)
        ours.apply([ACCOUNT, view(), world])
        answer = ours.get_historical_features(frame, ["one:total", "world:mood"]).to_arrow()
        assert same(answer)
        assert answer["mood"].to_pylist() == [i - i % 7 for i in range(40)]
        alone = ours.get_historical_features(frame[["event_timestamp"]], ["world:mood"]).to_arrow()
        assert alone["mood"].to_pylist() == answer["mood"].to_pylist()
        assert ours.get_historical_features(frame[["event_timestamp"]].head(0), ["world:mood"]).to_arrow().num_rows == 0


def test_rows_written_come_back_in_stocks_types(connection: psycopg.Connection[Any], store: Open) -> None:
    """A real is a float32 and a double a float64, as Feast's store answers them, of a period as for entity rows."""
    connection.execute("CREATE TABLE two (account_id text, at timestamptz, made timestamptz, low real, high float8)")
    schema = [Field(name="account_id", dtype=String), Field(name="low", dtype=Float32)]
    two = view("two", schema=[*schema, Field(name="high", dtype=Float64)])
    ours, stock = store(), store(STOCK)
    ours.apply([ACCOUNT, two])
    times = [hour(0), hour(1)]
    rows = {"account_id": ["ann"] * 2, "at": times, "made": times, "low": [0.1, 0.2], "high": [0.1, 0.2]}
    ours.write_to_offline_store("two", pd.DataFrame(rows))
    period: dict[str, Any] = {"start_date": hour(0), "end_date": hour(2)}
    for frame, more in ((asked(("ann", hour(0)), ("ann", hour(3))), {}), (None, period)):
        found, wanted = (
            side.get_historical_features(frame, ["two:low", "two:high"], **more).to_arrow() for side in (ours, stock)
        )
        assert [found.schema.field(name).type for name in ("low", "high")] == [pa.float32(), pa.float64()]
        for name in ("low", "high"):
            assert found[name].type == wanted[name].type
            assert sorted(found[name].to_pylist()) == sorted(wanted[name].to_pylist())
        assert sorted(found["high"].to_pylist()) == [0.1, 0.2]


def test_a_table_outlives_the_data_frame(connection: psycopg.Connection[Any], store: Open) -> None:
    """An answer in Arrow stays whole when the same job is asked for a data frame, once and again."""
    frame = many(connection)
    ours = store(rows_per_chunk=64)
    ours.apply([ACCOUNT, view()])
    job = ours.get_historical_features(frame, ["one:total"])
    first = job.to_df()
    table = job.to_arrow()
    second = job.to_df()
    assert same(table)
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(first, table.to_pandas())
    assert first.index.equals(pd.RangeIndex(len(frame)))
    first["total"] = 0
    assert same(table)
    assert job.to_df()["total"].equals(second["total"])


def test_on_demand_views(connection: psycopg.Connection[Any], store: Open) -> None:
    """They see the joined features and the request's own inputs, chunk by chunk, as they do in Feast's own store."""
    frame = many(connection, 60).assign(amount=1.5)
    request = RequestSource(name="request", schema=[Field(name="amount", dtype=Float64)])
    one = view()

    @on_demand_feature_view(sources=[one, request], schema=[Field(name="both", dtype=Float64)])  # type: ignore[untyped-decorator]
    def added(inputs: pd.DataFrame) -> pd.DataFrame:
        out = pd.DataFrame()
        out["both"] = inputs["total"] + inputs["amount"]
        return out

    ours = store(rows_per_chunk=16)
    ours.apply([ACCOUNT, one, added])
    refs = ["one:total", "added:both"]
    found = ours.get_historical_features(frame, refs).to_df()
    stock = store(STOCK).get_historical_features(frame, refs).to_df()
    order = ["event_timestamp", "account_id"]
    pd.testing.assert_frame_equal(
        found.sort_values(order, ignore_index=True)[["total", "both"]],
        stock.sort_values(order, ignore_index=True)[["total", "both"]],
        check_dtype=False,
    )
    batches = ours.get_historical_features(frame, refs).to_batches()  # type: ignore[attr-defined]
    assert pa.Table.from_batches(list(batches))["both"].to_pandas().equals(found["both"])


def test_saved_datasets(connection: psycopg.Connection[Any], store: Open, tmp_path: Path) -> None:
    """Saved to a table or to files, and read back; nothing is overwritten unasked."""
    frame = many(connection)
    ours = store(rows_per_chunk=100)
    ours.apply([ACCOUNT, view()])
    job = ours.get_historical_features(frame, ["one:total"])
    for name, storage in (
        ("table", SavedDatasetPostgreSQLStorage(table_ref="saved")),
        ("files", SavedDatasetFileStorage(path=str(tmp_path / "saved"))),
    ):
        saved = ours.create_saved_dataset(from_=job, name=name, storage=storage)
        found = saved.to_arrow().sort_by("event_timestamp")
        assert found["total"].to_pylist() == pa.array(frame["expected"]).to_pylist()
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            job.persist(storage)
        job.persist(storage, allow_overwrite=True)
        assert ours.get_saved_dataset(name).to_arrow().num_rows == len(frame)


def test_push_to_offline(connection: psycopg.Connection[Any], store: Open) -> None:
    """A data frame pushed to a user's own table is appended, values cast to the table's types."""
    connection.execute("CREATE TABLE pushed (account_id varchar(9), at timestamptz, made timestamp, total numeric)")
    connection.execute("ALTER TABLE pushed ADD names text[], ADD note jsonb, ADD id uuid")
    schema = [Field(name="account_id", dtype=String), Field(name="total", dtype=Float64)]
    schema += [Field(name="names", dtype=Array(String))]
    batch = PostgreSQLSource(name="batch", table="pushed", timestamp_field="at", created_timestamp_column="made")
    ours = store()
    source = PushSource(name="push", batch_source=batch)
    ours.apply([ACCOUNT, FeatureView(name="pushed", entities=[ACCOUNT], schema=schema, source=source)])
    number = str(uuid.UUID(int=5))
    frame = pd.DataFrame(
        {
            "account_id": ["ann", "bob"],
            "at": [hour(0), hour(1)],
            "made": [hour(2), hour(2)],
            "total": [0.25, None],
            "names": [["a", "b,c"], None],
            "note": ['{"a": 1}', None],
            "id": [number, None],
        }
    )
    ours.push("push", frame, to=PushMode.OFFLINE)
    row = connection.execute(
        "SELECT total::text, names, note, id::text FROM pushed WHERE account_id = 'ann'"
    ).fetchone()
    assert row == ("0.25", ["a", "b,c"], {"a": 1}, number)
    found = ours.get_historical_features(asked(("ann", hour(3)), ("bob", hour(3))), ["pushed:total", "pushed:names"])
    assert found.to_arrow()["total"].to_pylist() == [0.25, None]
    assert found.to_arrow()["names"].to_pylist() == [["a", "b,c"], None]
    table = pa.table({"account_id": ["ann"], "at": [hour(0)], "unknown": [1]})
    with pytest.raises(SchemaMismatchError, match="no columns unknown"):
        ours._get_provider().offline_store.offline_write_batch(
            ours.config, ours.get_feature_view("pushed"), table, None
        )


def test_feature_logs(connection: psycopg.Connection[Any], store: Open, tmp_path: Path) -> None:
    """Logs of a feature service, as a table and as a folder of files, land in a table that is made and grows."""
    ours = store()
    logging = LoggingConfig(destination=PostgreSQLLoggingDestination(table="service_logs"))
    service = FeatureService(name="service", features=[view()], logging_config=logging)
    ours.apply([ACCOUNT, view(), service])

    def logs(count: int, **more: Any) -> pa.Table:
        times = [hour(i) for i in range(count)]
        columns = {
            "account_id": [f"a{i}" for i in range(count)],
            "one__total": list(range(count)),
            "one__total__timestamp": times,
            "one__total__status": pa.array([1] * count, pa.int32()),
            "__log_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
            "__log_date": [START.date()] * count,
            "__request_id": [f"r{i}" for i in range(count)],
        }
        return pa.table(columns | more)

    ours.write_logged_features(logs(3), ours.get_feature_service("service"))
    pq.write_to_dataset(logs(4), tmp_path / "logs")
    ours.write_logged_features(tmp_path / "logs", ours.get_feature_service("service"))
    rows = connection.execute('SELECT account_id, one__total, "__log_date" FROM service_logs').fetchall()
    assert sorted(rows) == sorted((f"a{i}", i, START.date()) for count in (3, 4) for i in range(count))
    schema = [*view().schema, Field(name="mean", dtype=Float64)]
    connection.execute("ALTER TABLE one ADD mean float8")
    wider = view(schema=schema)
    ours.apply([wider, FeatureService(name="service", features=[wider], logging_config=logging)])
    means = {"one__mean": [0.5] * 2, "one__mean__timestamp": [hour(0)] * 2}
    status = {"one__mean__status": pa.array([1] * 2, pa.int32())}
    ours.write_logged_features(logs(2, **means, **status), ours.get_feature_service("service"))
    assert connection.execute("SELECT count(*), count(one__mean) FROM service_logs").fetchone() == (9, 2)
    provider = ours._get_provider()
    read = provider.retrieve_feature_service_logs(
        ours.get_feature_service("service"), hour(0), hour(1), ours.config, ours.registry
    )
    assert sorted(read.to_arrow()["one__total"].to_pylist()) == [0, 0, 0, 1, 1, 1]


def test_types_without_a_column_in_arrow(connection: psycopg.Connection[Any], store: Open) -> None:
    """JSON, uuid and enumerations come as text; dates as times; several dimensions are refused with the way out."""
    connection.execute("CREATE TYPE mood AS ENUM ('good', 'bad')")
    connection.execute("CREATE TABLE odd (account_id text, at timestamptz, made timestamptz, total mood, grid int[])")
    connection.execute("INSERT INTO odd VALUES ('ann', %s, NULL, 'good', '{{1,2},{3,4}}')", [hour(0)])
    odd = view("odd", schema=[Field(name=name, dtype=String) for name in ("account_id", "total", "grid")])
    ours = store()
    ours.apply([ACCOUNT, odd])
    frame = asked(("ann", hour(1)))
    assert ours.get_historical_features(frame, ["odd:total"]).to_arrow()["total"].to_pylist() == ["good"]
    with pytest.raises(SchemaMismatchError, match="several dimensions"):
        ours.get_historical_features(frame, ["odd:grid"]).to_arrow()
