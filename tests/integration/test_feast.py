"""Feast over the platform's stores, on both profiles: what Feast promises, checked against plain Python."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import feature_repo
from graph_features.backends import open_offline, open_online
from graph_features.catalog import catalog
from graph_features.clock import created_timestamp, from_ms, to_ms
from graph_features.schema import Cadence, DType, FeatureSchema, ViewSchema
from graph_features.settings import PlatformSettings, Profile
from graph_features.stores.blocks import RowBlock

START_MS = to_ms(datetime(2024, 3, 1, tzinfo=UTC))
HOUR_MS = 3_600_000
PROFILES = [Profile.EMBEDDED, pytest.param(Profile.SERVICES, marks=pytest.mark.services)]


def feature(name: str, dtype: DType) -> FeatureSchema:
    return FeatureSchema(name=name, dtype=dtype, description=f"The {name}.", unit="units", range="any")


ALL_TYPES = tuple(feature(f"a_{dtype.value}", dtype) for dtype in DType)
ACTIVITY = ViewSchema(
    name="account_activity", entity="account", cadence=Cadence.EVENT, description="Event rows.", features=ALL_TYPES
)
SLICES = ViewSchema(
    name="account_slices",
    entity="account",
    cadence=Cadence.SLICE,
    description="Rows that expire.",
    features=(feature("s_count", DType.INT64), feature("s_mean", DType.FLOAT64)),
    max_age_s=7_200,
)
PAIRS = ViewSchema(
    name="pair_history",
    entity="pair",
    cadence=Cadence.EVENT,
    description="Pairs.",
    features=(feature("p_count", DType.INT64), feature("p_names", DType.STRING_LIST)),
)
VIEWS = {view.name: view for view in (ACTIVITY, SLICES, PAIRS)}
TEXTS = ["plain", "", "with, comma", 'quo"te', "back\\slash", "brace}", "NULL", "new\nline", "é", " space "]

Row = tuple[tuple[str, ...], int, int, dict[str, Any]]
"""Entity key, as_of_ms, ingest sequence, features."""


def some_value(rng: random.Random, dtype: DType) -> Any:
    """A value of the type, or null; ends of ranges among them."""
    if rng.random() < 0.15:
        return None
    if dtype is DType.INT64:
        return rng.choice([0, -1, 2**63 - 1, -(2**63), rng.randrange(1000)])
    if dtype is DType.FLOAT64:
        return rng.choice([0.1, -1e300, 5e-324, float("inf"), rng.random()])
    if dtype is DType.TIMESTAMP:
        return START_MS + rng.randrange(10**9)
    item = {DType.INT64_LIST: DType.INT64, DType.FLOAT64_LIST: DType.FLOAT64}.get(dtype)
    if item is None:
        return [rng.choice(TEXTS) for _ in range(rng.randrange(4))]
    values = [some_value(rng, item) for _ in range(rng.randrange(4))]
    return [value for value in values if value is not None]


def some_rows(view: ViewSchema, count: int, seed: int) -> list[Row]:
    """Rows of few entities at few instants, so that several versions of one instant come about."""
    rng = random.Random(seed)
    rows = []
    for seq in range(1, count + 1):
        key = tuple(f"acc-{rng.randrange(6)}" for _ in view.keys)
        as_of_ms = START_MS + rng.randrange(20) * HOUR_MS // 2 + rng.choice([0, 0, 1])
        rows.append((key, as_of_ms, seq, {f.name: some_value(rng, f.dtype) for f in view.features}))
    rng.shuffle(rows)
    return rows


def table_of(view: ViewSchema, rows: Sequence[Row]) -> pa.Table:
    columns: dict[str, pa.Array] = {
        name: pa.array([row[0][i] for row in rows], pa.string()) for i, name in enumerate(view.keys)
    }
    columns["event_timestamp"] = pa.array([row[1] for row in rows], pa.int64()).cast(pa.timestamp("ms", "UTC"))
    columns["created_timestamp"] = pa.array([created_timestamp(row[2]) for row in rows], pa.timestamp("us", "UTC"))
    for f in view.features:
        values = [row[3][f.name] for row in rows]
        raw = pa.array(values, pa.int64() if f.dtype is DType.TIMESTAMP else f.dtype.arrow)
        columns[f.name] = raw.cast(f.dtype.arrow)
    return pa.table([columns[name] for name in view.arrow_schema.names], schema=view.arrow_schema)


def newest(view: ViewSchema, rows: Sequence[Row], key: tuple[str, ...], at_ms: int) -> Row | None:
    """What a point-in-time join must find, by looking at every row."""
    found = [row for row in rows if row[0] == key and row[1] <= at_ms]
    if view.max_age_s is not None:
        found = [row for row in found if row[1] >= at_ms - view.max_age_s * 1_000]
    return max(found, key=lambda row: (row[1], row[2]), default=None)


def read_feature(block: RowBlock, f: FeatureSchema, i: int) -> Any:
    """Row i's value as Python has it, None for null."""
    if not block.valid(f.name)[i]:
        return None
    if f.dtype.is_list:
        offsets, values = block.lists(f.name)
        return values[offsets[i] : offsets[i + 1]].tolist()
    return block.float64(f.name)[i].item() if f.dtype is DType.FLOAT64 else block.int64(f.name)[0][i].item()


def assert_block(block: RowBlock, expected: Sequence[Row | None]) -> None:
    assert block.present.tolist() == [row is not None for row in expected]
    for i, row in enumerate(expected):
        if row is not None:
            assert block.as_of_ms[i] == row[1]
            assert from_ms(0) + timedelta(microseconds=int(block.created_us[i])) == created_timestamp(row[2])
        for f in block.view.features:
            assert read_feature(block, f, i) == (None if row is None else row[3][f.name]), (f.name, row)


@pytest.fixture(params=PROFILES)
def platform(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlatformSettings:
    """A home, and on services an empty database and an empty Redis, of this test's own."""
    settings = PlatformSettings(profile=request.param, home=tmp_path / "home")
    if settings.profile is Profile.SERVICES:
        from infra.local.environment import variables

        for name in ("postgres_settings", "redis_settings"):
            for variable, value in variables(request.getfixturevalue(name)).items():
                monkeypatch.setenv(variable, value)
    return settings


@pytest.fixture
def write(platform: PlatformSettings) -> Callable[..., None]:
    """write(view, rows, offline=True, online=True, part="p"): rows into the platform's own stores."""

    def to_stores(
        view: ViewSchema, rows: Sequence[Row], *, offline: bool = True, online: bool = True, part: str = "p"
    ) -> None:
        table = table_of(view, rows)
        if offline:
            store = open_offline(platform)
            store.write(view, table, part=part)
            store.close()
        if online:
            newest_rows = open_online(platform)
            newest_rows.write(view, table)
            newest_rows.close()

    return to_stores


def payments(count: int, seed: int) -> pd.DataFrame:
    """Entity rows: known and unknown accounts, before, at and after rows' own times, repeated."""
    rng = random.Random(seed)
    at_ms = [START_MS + rng.randrange(-2, 24) * HOUR_MS // 2 + rng.choice([-1, 0, 0, 1]) for _ in range(count)]
    frame = pd.DataFrame(
        {
            "transaction_id": [f"t{i}" for i in range(count)],
            "sender_id": [f"acc-{rng.randrange(8)}" for _ in range(count)],
            "event_timestamp": pd.to_datetime(at_ms, unit="ms", utc=True),
            "receiver_id": [f"acc-{rng.randrange(8)}" for _ in range(count)],
            "payment_timestamp": pd.to_datetime(at_ms, unit="ms", utc=True),
            "amount_base": [rng.randrange(10_000) for _ in range(count)],
            "channel": ["card"] * count,
        }
    )
    for place in ("sender_lat", "sender_lon", "receiver_lat", "receiver_lon"):
        frame[place] = np.nan
    return pd.concat([frame, frame.head(3)], ignore_index=True)


JOINED: Mapping[str, tuple[str, str]] = {
    "sender_account_activity": ("account_activity", "sender_id"),
    "receiver_account_activity": ("account_activity", "receiver_id"),
    "sender_account_slices": ("account_slices", "sender_id"),
    "receiver_account_slices": ("account_slices", "receiver_id"),
    "pair_history": ("pair_history", "sender_id receiver_id"),
    "reverse_pair_history": ("pair_history", "receiver_id sender_id"),
}


def test_point_in_time_join(platform: PlatformSettings, write: Callable[..., None]) -> None:
    """Aliases, expiry, ties and missing entities come out as a search through every row says, in the order asked."""
    store = feature_repo.apply(platform, VIEWS)
    rows = {name: some_rows(view, 250, seed) for seed, (name, view) in enumerate(VIEWS.items())}
    for name, view in VIEWS.items():
        write(view, rows[name][:150], online=False, part="first")
        write(view, rows[name][150:], online=False, part="second")
    frame = payments(200, seed=9)
    service = store.get_feature_service("fraud_model_v1")
    answer = store.get_historical_features(frame, features=service, full_feature_names=True).to_arrow()
    assert answer["transaction_id"].to_pylist() == frame["transaction_id"].tolist()
    assert answer.column_names[: frame.shape[1]] == list(frame.columns)
    at_ms = [to_ms(moment) for moment in frame["event_timestamp"]]
    for alias, (name, columns) in JOINED.items():
        keys = list(zip(*(frame[column] for column in columns.split()), strict=True))
        expected = [newest(VIEWS[name], rows[name], key, at) for key, at in zip(keys, at_ms, strict=True)]
        assert any(row is None for row in expected)
        assert_block(RowBlock.from_arrow(VIEWS[name], answer, prefix=f"{alias}__"), expected)
    assert answer["transaction_features__amount"].to_pylist() == [amount / 100 for amount in frame["amount_base"]]


def test_a_version_written_again_is_replaced(platform: PlatformSettings, write: Callable[..., None]) -> None:
    """The same part again, the same version in another part, and twice in one table: the last written counts, once."""
    store = feature_repo.apply(platform, VIEWS)
    first = [(("a",), START_MS, 1, {"s_count": count, "s_mean": None}) for count in (1, 2)]
    for count, part in ((3, "one"), (4, "one"), (5, "two")):
        again = [(("a",), START_MS, 1, {"s_count": count, "s_mean": 0.5})]
        write(SLICES, again, online=False, part=part)
    frame = pd.DataFrame({"account_id": ["a"], "event_timestamp": [from_ms(START_MS)]})
    ask = ["account_slices:s_count"]
    assert store.get_historical_features(frame, features=ask).to_df()["s_count"].tolist() == [5]
    write(SLICES, first, online=False, part="three")
    assert store.get_historical_features(frame, features=ask).to_df()["s_count"].tolist() == [2]
    provider = store._get_provider()
    pulled = provider.offline_store.pull_all_from_table_or_query(
        config=store.config,
        data_source=store.get_feature_view("account_slices").batch_source,
        join_key_columns=["account_id"],
        feature_name_columns=["s_count"],
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    ).to_arrow()
    assert pulled["s_count"].to_pylist() == [2]


def test_created_timestamps_can_be_cut_off(platform: PlatformSettings, write: Callable[..., None]) -> None:
    """With filter_by_created_timestamp a row that was created after the entity's time is not seen."""
    store = feature_repo.apply(platform, VIEWS)
    seq_at = (from_ms(START_MS + 10) - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    rows = [
        (("a",), START_MS, seq, {"s_count": count, "s_mean": 0.0})
        for seq, count in ((1, 1), (seq_at, 2), (seq_at + 10**9, 3))
    ]
    write(SLICES, rows, online=False)
    moments = [from_ms(START_MS + 5), from_ms(START_MS + 10), from_ms(START_MS + 3_600_000)]
    frame = pd.DataFrame({"account_id": ["a"] * 3, "event_timestamp": moments})
    answer = store.get_historical_features(frame, ["account_slices:s_count"], filter_by_created_timestamp=True)
    assert answer.to_df()["s_count"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("full_names", [True, False])
def test_online_answers_equal_the_rows(
    platform: PlatformSettings, write: Callable[..., None], full_names: bool
) -> None:
    """get_online_features says what the packed rows say: newest versions, nulls, unknown accounts, every type."""
    store = feature_repo.apply(platform, VIEWS)
    rows = some_rows(ACTIVITY, 100, seed=1)
    write(ACTIVITY, rows, offline=False)
    accounts = ["acc-0", "nobody", "acc-3", "acc-0", "acc-5"]
    ask = [f"account_activity:{name}" for name in ACTIVITY.names]
    entities = [{"account_id": account} for account in accounts]
    answer = store.get_online_features(ask, entities, full_feature_names=full_names)
    later = asyncio.run(store.get_online_features_async(ask, entities, full_feature_names=full_names))
    assert answer.to_dict(include_event_timestamps=True) == later.to_dict(include_event_timestamps=True)
    values = answer.to_dict(include_event_timestamps=True)
    packed = open_online(platform)
    block = RowBlock.from_packed(ACTIVITY, packed.read([(ACTIVITY, [(account,) for account in accounts])])[0])
    packed.close()
    for f in ACTIVITY.features:
        shown = f"account_activity__{f.name}" if full_names else f.name
        for i, account in enumerate(accounts):
            row = newest(ACTIVITY, rows, (account,), 2**60)
            expected = read_feature(block, f, i)
            assert expected == (None if row is None else row[3][f.name])
            if f.dtype is DType.TIMESTAMP and expected is not None:
                expected = from_ms(expected // 1_000 * 1_000)
            assert values[shown][i] == expected
            assert values[f"{shown}__ts"][i] == (0 if row is None else row[1] // 1_000)


def test_the_models_service_online(platform: PlatformSettings, write: Callable[..., None]) -> None:
    """Both accounts, the pair there and back, and the payment itself, from one request with nulls in it."""
    store = feature_repo.apply(platform, VIEWS)
    for seed, view in enumerate(VIEWS.values()):
        write(view, some_rows(view, 80, seed), offline=False)
    payment = {"payment_timestamp": START_MS // 1_000, "amount_base": 1_250, "channel": None}
    places = dict.fromkeys(("sender_lat", "sender_lon", "receiver_lat", "receiver_lon"))
    pairs = [("acc-1", "acc-2"), ("acc-2", "acc-1"), ("acc-1", "nobody")]
    entities = [{"sender_id": s, "receiver_id": r, **payment, **places} for s, r in pairs]
    service = store.get_feature_service("fraud_model_v1")
    values = store.get_online_features(service, entities, full_feature_names=True).to_dict()
    assert values["sender_account_activity__a_int64"][0] == values["receiver_account_activity__a_int64"][1]
    assert values["pair_history__p_names"][0] == values["reverse_pair_history__p_names"][1]
    assert values["receiver_account_activity__a_float64"][2] is None
    assert values["transaction_features__amount"] == [12.5] * 3
    assert values["transaction_features__geographic_distance_km"] == [None] * 3
    assert values["transaction_features__channel_card"] == [0.0] * 3


def test_materialize(platform: PlatformSettings, write: Callable[..., None]) -> None:
    """Rows of the period come online as they are, to the millisecond; older ones never replace newer ones."""
    store = feature_repo.apply(platform, VIEWS)
    rows = some_rows(ACTIVITY, 200, seed=4)
    until_ms = START_MS + 5 * HOUR_MS
    write(ACTIVITY, rows, online=False)
    newer = (("acc-1",), until_ms + HOUR_MS, 10**6, {f.name: None for f in ACTIVITY.features})
    write(ACTIVITY, [newer], offline=False)
    store.materialize(from_ms(START_MS), from_ms(until_ms), ["account_activity"])
    accounts = [(f"acc-{i}",) for i in range(7)]
    expected = [newest(ACTIVITY, rows, key, until_ms) for key in accounts]
    expected[1] = newer
    packed = open_online(platform)
    assert_block(RowBlock.from_packed(ACTIVITY, packed.read([(ACTIVITY, accounts)])[0]), expected)
    store.materialize_incremental(from_ms(START_MS + 20 * HOUR_MS), ["account_activity"])
    expected = [newest(ACTIVITY, [*rows, newer], key, 2**60) for key in accounts]
    assert_block(RowBlock.from_packed(ACTIVITY, packed.read([(ACTIVITY, accounts)])[0]), expected)
    packed.close()
    store = feature_repo.apply(platform, VIEWS)
    assert len(store.get_feature_view("account_activity").materialization_intervals) == 2


def test_push(platform: PlatformSettings) -> None:
    """A data frame pushed to both sides is found on both."""
    from feast.data_source import PushMode

    store = feature_repo.apply(platform, VIEWS)
    table = table_of(ACTIVITY, [(("p",), START_MS, 5, {f.name: None for f in ACTIVITY.features} | {"a_int64": 7})])
    frame = table.to_pandas().astype({"a_int64": "Int64", "a_timestamp": "datetime64[us, UTC]"})
    store.push("account_activity_push", frame, to=PushMode.ONLINE_AND_OFFLINE)
    entity = {"account_id": "p"}
    assert store.get_online_features(["account_activity:a_int64"], [entity]).to_dict()["a_int64"] == [7]
    asked = pd.DataFrame({**{k: [v] for k, v in entity.items()}, "event_timestamp": [from_ms(START_MS)]})
    answer = store.get_historical_features(asked, ["account_activity:a_int64"]).to_df()
    assert answer["a_int64"].tolist() == [7]


def test_apply_again_and_without_a_view(platform: PlatformSettings, write: Callable[..., None]) -> None:
    """Applying twice changes nothing; a view that is gone leaves the registry and the online store."""
    feature_repo.apply(platform, VIEWS)
    write(SLICES, [(("a",), START_MS, 1, {"s_count": 1, "s_mean": 0.0})])
    store = feature_repo.apply(platform, VIEWS)
    assert {view.name for view in store.list_feature_views()} == set(VIEWS)
    packed = open_online(platform)
    assert packed.read([(SLICES, [("a",)])])[0][0] is not None
    fewer = {name: view for name, view in VIEWS.items() if name != SLICES.name}
    store = feature_repo.apply(platform, fewer)
    assert {view.name for view in store.list_feature_views()} == set(fewer)
    assert f"{SLICES.name}_rows" not in {source.name for source in store.list_data_sources()}
    assert packed.read([(SLICES, [("a",)])]) == [[None]]
    packed.close()


def test_a_new_feature(platform: PlatformSettings, write: Callable[..., None]) -> None:
    """Old offline rows have null for it; old online rows are seen as another feature set's and give way."""
    feature_repo.apply(platform, VIEWS)
    write(SLICES, [(("a",), START_MS, 1, {"s_count": 1, "s_mean": 0.0})])
    wider = replace(SLICES, features=(*SLICES.features, feature("s_new", DType.INT64)))
    store = feature_repo.apply(platform, {**VIEWS, SLICES.name: wider})
    frame = pd.DataFrame({"account_id": ["a", "a"], "event_timestamp": [from_ms(START_MS), from_ms(START_MS + 1)]})
    ask = ["account_slices:s_count", "account_slices:s_new"]
    packed = open_online(platform)
    assert RowBlock.from_packed(wider, packed.read([(wider, [("a",)])])[0]).mismatched.tolist() == [True]
    write(wider, [(("a",), START_MS + 1, 2, {"s_count": 2, "s_mean": 0.0, "s_new": 3})], part="later")
    assert RowBlock.from_packed(wider, packed.read([(wider, [("a",)])])[0]).present.tolist() == [True]
    packed.close()
    answer = store.get_historical_features(frame, ask).to_arrow()
    assert answer["s_count"].to_pylist() == [1, 2]
    assert answer["s_new"].to_pylist() == [None, 3]
    assert store.get_online_features(ask, [{"account_id": "a"}]).to_dict()["s_new"] == [3]


def test_reads_go_on_through_a_materialization(platform: PlatformSettings, write: Callable[..., None]) -> None:
    """Feast must not refuse a view that is being materialized."""
    store = feature_repo.apply(platform, VIEWS)
    write(SLICES, [(("a",), START_MS, 1, {"s_count": 1, "s_mean": 0.0})])
    view = store.get_feature_view("account_slices")
    view.state = type(view.state).MATERIALIZING
    store.registry.apply_feature_view(view, store.project, commit=True)
    answer = feature_repo.open_store(platform).get_online_features(["account_slices:s_count"], [{"account_id": "a"}])
    assert answer.to_dict()["s_count"] == [1]


@pytest.mark.parametrize("platform", [Profile.SERVICES], indirect=True)
@pytest.mark.services
class TestPostgresOnly:
    """What a SQL database lets a user do besides."""

    def test_entity_rows_from_sql(self, platform: PlatformSettings, write: Callable[..., None]) -> None:
        """Entity rows given as a query answer the same as the same rows given as a data frame."""
        import psycopg

        from graph_features.settings import PostgresSettings, load

        store = feature_repo.apply(platform, VIEWS)
        write(ACTIVITY, some_rows(ACTIVITY, 150, seed=2), online=False)
        frame = payments(50, seed=3)[["transaction_id", "sender_id", "event_timestamp"]]
        frame = frame.rename(columns={"sender_id": "account_id"}).drop_duplicates("transaction_id")
        options: Any = load(PostgresSettings).conninfo()
        with psycopg.connect(**options) as connection:
            connection.execute('CREATE TABLE asked (transaction_id text, account_id text COLLATE "C", at timestamptz)')
            cursor = connection.cursor()
            cursor.executemany("INSERT INTO asked VALUES (%s, %s, %s)", frame.to_numpy().tolist())
        query = "SELECT transaction_id, account_id, at AS event_timestamp FROM asked WHERE transaction_id LIKE 't%'"
        ask = [f"account_activity:{name}" for name in ACTIVITY.names]
        by_frame = store.get_historical_features(frame, ask).to_arrow()
        by_query = store.get_historical_features(query, ask).to_arrow()
        order = [("transaction_id", "ascending")]
        columns = ["transaction_id", *ACTIVITY.names, "account_activity__event_timestamp"]
        assert by_query.sort_by(order).select(columns).equals(by_frame.sort_by(order).select(columns))

    def test_a_table_without_an_index(self, platform: PlatformSettings) -> None:
        """A user's own table or query, not made for this store, answers the same point-in-time join."""
        import psycopg
        from feast import FeatureView, Field
        from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
        from feast.types import Int64, String

        from graph_features.settings import PostgresSettings, load

        store = feature_repo.apply(platform, VIEWS)
        options: Any = load(PostgresSettings).conninfo()
        rows = [(f"acc-{i % 3}", from_ms(START_MS + i * 1_000), i) for i in range(300)]
        with psycopg.connect(**options) as connection:
            connection.execute("CREATE TABLE theirs (account_id varchar(20), happened timestamptz, total integer)")
            connection.cursor().executemany("INSERT INTO theirs VALUES (%s, %s, %s)", rows)
        account = store.get_entity("account")
        views = []
        for name, place in (("by_table", {"table": "theirs"}), ("by_query", {"query": "SELECT * FROM theirs"})):
            source = PostgreSQLSource(name=name, timestamp_field="happened", **place)
            schema = [Field(name="account_id", dtype=String), Field(name="total", dtype=Int64)]
            views.append(FeatureView(name=name, entities=[account], schema=schema, source=source, online=False))
        store.apply(views)
        asked = [(f"acc-{i % 4}", START_MS + i * 2_500) for i in range(100)]
        frame = pd.DataFrame({"account_id": [a for a, _ in asked], "event_timestamp": [from_ms(ms) for _, ms in asked]})
        answer = store.get_historical_features(frame, ["by_table:total", "by_query:total"], full_feature_names=True)
        expected = [
            max((total for a, at, total in rows if a == account_id and to_ms(at) <= ms), default=None)
            for account_id, ms in asked
        ]
        table = answer.to_arrow()
        assert table["by_table__total"].to_pylist() == expected
        assert table["by_query__total"].to_pylist() == expected

    def test_a_period_without_entity_rows(self, platform: PlatformSettings, write: Callable[..., None]) -> None:
        """Everything within a period, as Feast's own store answers it."""
        store = feature_repo.apply(platform, VIEWS)
        rows = some_rows(SLICES, 40, seed=6)
        write(SLICES, rows, online=False)
        answer = store.get_historical_features(
            None, ["account_slices:s_count"], start_date=from_ms(START_MS), end_date=from_ms(START_MS + 3 * HOUR_MS)
        ).to_arrow()
        expected = sorted(str(row[3]["s_count"]) for row in rows if row[1] <= START_MS + 3 * HOUR_MS)
        assert sorted(map(str, answer["s_count"].to_pylist())) == expected


def feast(environment: Mapping[str, str], repo: Path, *arguments: str) -> str:
    """Run Feast's command line in the repo; return what it printed."""
    command = [str(Path(sys.executable).with_name("feast")), *arguments]
    done = subprocess.run(command, cwd=repo, env=dict(environment), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    return done.stdout


def test_feasts_own_commands(platform: PlatformSettings, tmp_path: Path) -> None:
    """From the shell, in a repo folder next to an empty one: apply, list, materialize, materialize-incremental."""
    ignored = shutil.ignore_patterns("stores", "*.pyc", "__pycache__")
    repo = Path(shutil.copytree(feature_repo.REPO_FOLDER, tmp_path / "feature_repo", ignore=ignored))
    environment = dict(os.environ)
    if platform.profile is Profile.SERVICES:
        environment["FEAST_FS_YAML_FILE_PATH"] = str(repo / "feature_store.services.yaml")
    feast(environment, repo, "apply")
    listed = feast(environment, repo, "feature-views", "list")
    schemas = catalog().schemas
    assert all(name in listed for name in schemas)
    home = platform.model_copy(update={"home": tmp_path / ".ringfence"})
    view = next(iter(schemas.values()))
    row = (("acc-1",), START_MS, 1, {f.name: None for f in view.features} | {view.names[0]: 3})
    offline = open_offline(home)
    offline.write(view, table_of(view, [row]), part="p")
    offline.close()
    feast(environment, repo, "materialize", "2024-02-01T00:00:00", "2024-02-20T00:00:00")
    packed = open_online(home)
    assert packed.read([(view, [("acc-1",)])]) == [[None]]
    feast(environment, repo, "materialize-incremental", "2024-03-02T00:00:00")
    assert_block(RowBlock.from_packed(view, packed.read([(view, [("acc-1",)])])[0]), [row])
    packed.close()
