"""Feast's own Redis store and ours, side by side: random views, rows and histories must read the same.

Where the two differ on purpose, `TestDifferences` has a test that says how.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast import types as feast_types
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.settings import RedisSettings

pytestmark = pytest.mark.services

START = datetime(2024, 3, 1, tzinfo=UTC)
ENTITIES = [
    Entity(name="account", join_keys=["account_id"], value_type=ValueType.STRING),
    Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64),
]
KEYS = {"account_id": "string_val", "shop_id": "int64_val"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
SCALARS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "bytes": (feast_types.Bytes, st.binary(max_size=12)),
    "string": (feast_types.String, TEXT),
    "int32": (feast_types.Int32, INT32),
    "int64": (feast_types.Int64, INT64),
    "double": (feast_types.Float64, st.floats()),
    "float": (feast_types.Float32, st.floats(width=32)),
    "bool": (feast_types.Bool, st.booleans()),
    "unix_timestamp": (feast_types.UnixTimestamp, INT64),
    "json": (feast_types.Json, st.sampled_from(["{}", '{"a": [1, null]}'])),
    "uuid": (feast_types.Uuid, st.uuids().map(str)),
    "decimal": (feast_types.Decimal, st.decimals(allow_nan=False).map(str)),
}
COLLECTED = ["bytes", "string", "int32", "int64", "double", "float", "bool", "unix_timestamp", "uuid", "decimal"]


@dataclass(frozen=True)
class Kind:
    """A type of feature and its values as Feast's messages."""

    type: Any
    values: st.SearchStrategy[Value]


def _kinds() -> dict[str, Kind]:
    kinds = {}
    for name, (kind, plain) in SCALARS.items():
        kinds[name] = Kind(kind, plain.map(lambda value, field=f"{name}_val": Value(**{field: value})))
    for name in COLLECTED:
        kind, plain = SCALARS[name]
        kinds[f"{name}_list"] = Kind(
            feast_types.Array(kind), _collection(f"{name}_list_val", st.lists(plain, max_size=4))
        )
        kinds[f"{name}_set"] = Kind(feast_types.Set(kind), _collection(f"{name}_set_val", st.lists(plain, max_size=4)))
    entries = st.dictionaries(TEXT, SCALARS["int64"][1].map(lambda value: Value(int64_val=value)), max_size=3)
    kinds["map"] = Kind(feast_types.Map, entries.map(_map))
    return kinds


def _collection(field: str, values: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[Value]:
    def make(items: list[Any]) -> Value:
        value = Value()
        getattr(value, field).SetInParent()
        getattr(value, field).val.extend(items)
        return value

    return values.map(make)


def _map(entries: dict[str, Value]) -> Value:
    value = Value()
    value.map_val.SetInParent()
    for name, item in entries.items():
        value.map_val.val[name].CopyFrom(item)
    return value


KINDS = _kinds()

Row = tuple[tuple[str, int], int, dict[str, Value]]
"""Entity, seconds after START, features."""

Pair = Callable[[], tuple[FeatureStore, FeatureStore]]


@pytest.fixture
def stores(redis_settings: RedisSettings, tmp_path: Path) -> Pair:
    """stores(): Feast over its own store and over ours, in projects of their own on one server."""
    numbers = itertools.count()
    password = redis_settings.password.get_secret_value()
    address = f"{redis_settings.host}:{redis_settings.port},password={password},db={redis_settings.db}"

    def make() -> tuple[FeatureStore, FeatureStore]:
        number = next(numbers)
        return tuple(
            FeatureStore(
                config=RepoConfig(
                    project=f"{name}{number}",
                    registry=str(tmp_path / f"{name}{number}.db"),
                    provider="local",
                    online_store={"type": kind, "connection_string": address},
                    batch_engine={"type": engine},
                    entity_key_serialization_version=3,
                )
            )
            for name, kind, engine in (
                ("stock", "redis", "local"),
                (
                    "ours",
                    "feature_repo.stores.online.RedisPackedOnlineStore",
                    "feature_repo.stores.engine.ColumnarComputeEngine",
                ),
            )
        )  # type: ignore[return-value]

    return make


def make_view(name: str, kinds: Sequence[str], join_keys: Sequence[str], folder: Path) -> FeatureView:
    """A view over a file that need not exist."""
    entities = [entity for entity in ENTITIES if entity.join_key in join_keys]
    types = {"account_id": feast_types.String, "shop_id": feast_types.Int64}
    schema = [Field(name=key, dtype=types[key]) for key in join_keys]
    schema += [Field(name=f"f{i}_{kind}", dtype=KINDS[kind].type) for i, kind in enumerate(kinds)]
    source = FileSource(
        name=f"{name}_source",
        path=str(folder / f"{name}.parquet"),
        timestamp_field="at",
        created_timestamp_column="made",
    )
    return FeatureView(name=name, entities=entities, schema=schema, source=source, ttl=timedelta(0))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[str], list[str], list[Row]]:
    """Types of a view's features, its join keys, and rows of few entities at different instants."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=6))
    join_keys = draw(st.sampled_from([["account_id"], ["shop_id"], ["account_id", "shop_id"]]))
    instants = draw(st.lists(st.integers(1, 10**7), unique=True, max_size=6))
    rows = []
    for instant in instants:
        key = (draw(st.sampled_from(["a", "", "é:*"])), draw(st.sampled_from([0, -1, 2**62])))
        values = {f"f{i}_{kind}": draw(st.just(Value()) | KINDS[kind].values) for i, kind in enumerate(kinds)}
        rows.append((key, instant, values))
    return kinds, join_keys, rows


def feast_rows(view: FeatureView, rows: Sequence[Row]) -> list[Any]:
    """Rows as Feast hands them to a store."""
    out = []
    for key, second, values in rows:
        plain = {"account_id": Value(string_val=key[0]), "shop_id": Value(int64_val=key[1])}
        names = [entity.name for entity in view.entity_columns]
        proto = EntityKey(join_keys=names, entity_values=[plain[name] for name in names])
        at = START + timedelta(seconds=second, milliseconds=second % 1_000)
        out.append((proto, values, at, at + timedelta(seconds=1)))
    return out


def write(store: FeatureStore, view: FeatureView, rows: Sequence[Row]) -> None:
    store._get_provider().online_write_batch(store.config, view, feast_rows(view, rows), None)


def answer(store: FeatureStore, refs: list[str], rows: list[dict[str, Any]], **options: Any) -> bytes:
    """The whole answer as bytes."""
    return comparable(store.get_online_features(refs, rows, **options).proto)


def comparable(proto: Any) -> bytes:
    """An answer as bytes, so that NaN equals NaN; times too, and statuses but for what TestDifferences says of them."""
    for result in proto.results:
        statuses = [FieldStatus.PRESENT if one == FieldStatus.NOT_FOUND else one for one in result.statuses]
        result.statuses[:] = statuses
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def entity_rows(join_keys: Sequence[str]) -> list[dict[str, Any]]:
    """Every entity that may have been written, one that was not, and one twice."""
    keys = [*itertools.product(["a", "", "é:*"], [0, -1, 2**62]), ("nobody", 5), ("a", 0)]
    return [{name: value for name, value in zip(KEYS, key, strict=True) if name in join_keys} for key in keys]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=histories(), second=histories(), seed=st.integers(0, 9))
def test_online_features(stores: Pair, tmp_path: Path, first: Any, second: Any, seed: int) -> None:
    """Two random views, their rows in any order and in batches: every answer is the same to the last byte."""
    stock, ours = stores()
    both = [(f"view{i}", *one) for i, one in enumerate((first, second))]
    join_keys = sorted({key for _, _, keys, _ in both for key in keys})
    refs = []
    for store in (stock, ours):
        views = [make_view(name, kinds, keys, tmp_path) for name, kinds, keys, _ in both]
        store.apply([*ENTITIES, *views])
        refs = [f"{view.name}:{field.name}" for view in views for field in view.features]
        for view, (_, _, _, rows) in zip(views, both, strict=True):
            shuffled = random.Random(seed).sample(rows, len(rows))
            for part in (shuffled[:3], shuffled[3:]):
                write(store, view, part)
    rows = entity_rows(join_keys)
    expected = answer(stock, refs, rows, full_feature_names=True)
    assert answer(ours, refs, rows, full_feature_names=True) == expected
    later = asyncio.run(ours.get_online_features_async(refs, rows, full_feature_names=True))
    assert comparable(later.proto) == expected
    asyncio.run(ours.close())


def materialized(folder: Path, view: FeatureView, count: int) -> pd.DataFrame:
    """A source file with several rows an entity, nulls among them; return the last row of each entity."""
    rng = random.Random(count)
    frame = pd.DataFrame(
        {
            "account_id": [f"a{i % (count // 3)}" for i in range(count)],
            "at": [START + timedelta(seconds=i) for i in range(count)],
            "made": [START + timedelta(days=1, seconds=i) for i in range(count)],
            "f0_int64": [rng.randrange(-(10**12), 10**12) for _ in range(count)],
            "f1_double": [None if rng.random() < 0.2 else rng.random() for _ in range(count)],
            "f2_string": [None if rng.random() < 0.2 else f"té {i}" for i in range(count)],
            "f3_bool": [rng.random() < 0.5 for _ in range(count)],
            "f4_unix_timestamp": [START + timedelta(minutes=i) for i in range(count)],
            "f5_int64_list": [[i] * (i % 3 + 1) for i in range(count)],
            "f6_float": [rng.random() for _ in range(count)],
        }
    )
    table = pa.Table.from_pandas(frame).set_column(9, "f6_float", pa.array(frame["f6_float"], pa.float32()))
    pq.write_table(table.select(frame.columns), view.batch_source.path)
    return frame.drop_duplicates("account_id", keep="last")


def test_materialize(stores: Pair, tmp_path: Path) -> None:
    """A file of somebody's own goes online in columns and reads as the stock store reads it."""
    kinds = ["int64", "double", "string", "bool", "unix_timestamp", "int64_list", "float"]
    answers = []
    for store in stores():
        view = make_view("theirs", kinds, ["account_id"], tmp_path)
        store.apply([*ENTITIES, view])
        last = materialized(tmp_path, view, 3_000)
        store.materialize(START - timedelta(days=1), START + timedelta(days=2))
        refs = [f"theirs:{field.name}" for field in view.features]
        answers.append(answer(store, refs, [{"account_id": key} for key in [*last["account_id"], "nobody"]]))
    assert answers[0] == answers[1]


def test_field_mapping_and_no_entity(stores: Pair, tmp_path: Path) -> None:
    """Columns that the source names otherwise, in ours its times too; and a view without an entity."""
    table = pa.table(
        {
            "acc": ["a", "b"],
            "happened": pa.array([START, START + timedelta(seconds=5)], pa.timestamp("us", "UTC")),
            "raw": pa.array([1, 2], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "mapped.parquet")
    answers = []
    for store in stores():
        source = FileSource(
            name="mapped",
            path=str(tmp_path / "mapped.parquet"),
            timestamp_field="happened",
            # The stock engine does not find a time that is named otherwise.
            field_mapping={"acc": "account_id", "raw": "total", **({"happened": "at"} if answers else {})},
        )
        schema = [Field(name="account_id", dtype=feast_types.String), Field(name="total", dtype=feast_types.Int64)]
        view = FeatureView(name="mapped", entities=ENTITIES[:1], schema=schema, source=source)
        plain = FileSource(name="plain", path=str(tmp_path / "mapped.parquet"), timestamp_field="happened")
        alone = FeatureView(name="alone", schema=[Field(name="raw", dtype=feast_types.Int64)], source=plain)
        store.apply([*ENTITIES, view, alone])
        store.materialize(START - timedelta(days=1), START + timedelta(days=2))
        answers.append(answer(store, ["mapped:total", "alone:raw"], [{"account_id": "a"}, {"account_id": "b"}]))
        assert store.get_online_features(["alone:raw"], [{"account_id": "a"}]).to_dict()["raw"] == [2]
    assert answers[0] == answers[1]


def test_push(stores: Pair, tmp_path: Path) -> None:
    """A data frame written through Feast reads the same."""
    answers = []
    for store in stores():
        view = make_view("pushed", ["int64", "string", "double"], ["account_id"], tmp_path)
        store.apply([*ENTITIES, view])
        frame = pd.DataFrame(
            {
                "account_id": ["a", "b"],
                "at": [START, START],
                "made": [START, START],
                "f0_int64": [1, 2],
                "f1_string": ["x", None],
                "f2_double": [0.5, None],
            }
        )
        store.write_to_online_store("pushed", frame)
        later = frame.assign(at=START + timedelta(hours=1))
        if answers:
            asyncio.run(store.write_to_online_store_async("pushed", later))
        else:  # the stock store's asynchronous client leaves its connection open
            store.write_to_online_store("pushed", later)
        refs = [f"pushed:{field.name}" for field in view.features]
        answers.append(answer(store, refs, [{"account_id": "a"}, {"account_id": "b"}]))
    assert answers[0] == answers[1]


def test_versions_of_a_view(stores: Pair, tmp_path: Path) -> None:
    """With versioning on, each version of a view has rows of its own, found by its tag; one goes without the other."""
    key = EntityKey(join_keys=["account_id"], entity_values=[Value(string_val="a")])
    answers = []
    for store in stores():
        store.config.registry.enable_online_feature_view_versioning = True
        online, versions = store._get_provider().online_store, []
        for number in (1, 2):
            view = make_view("one", ["int64"], ["account_id"], tmp_path)
            view.current_version_number = number
            versions.append(view)
            online.online_write_batch(store.config, view, feast_rows(view, [_one(number)]), None)
        tagged = make_view("one", ["int64"], ["account_id"], tmp_path)
        seen = []
        for tag in (1, 2):
            tagged.projection.version_tag = tag
            seen += online.online_read(store.config, tagged, [key], ["f0_int64"])
        online.update(store.config, versions[:1], versions[1:], [], [], False)
        seen += online.online_read(store.config, versions[1], [key], ["f0_int64"])
        answers.append([values["f0_int64"].int64_val for _, values in seen])
        online.teardown(store.config, versions, [])
    assert answers == [[1, 2, 2]] * 2


def _one(number: int) -> Row:
    return ("a", 0), 5, {"f0_int64": Value(int64_val=number)}


class TestDifferences:
    """What ours does otherwise than the stock store, and why."""

    @pytest.fixture
    def pair(self, stores: Pair, tmp_path: Path) -> Callable[[list[list[Row]]], list[dict[str, list[Any]]]]:
        """pair(batches): what both stores answer about entity "a" after these writes."""

        def run(batches: list[list[Row]]) -> list[dict[str, list[Any]]]:
            answers = []
            for store in stores():
                view = make_view("one", ["int64", "string"], ["account_id"], tmp_path)
                store.apply([*ENTITIES, view])
                for batch in batches:
                    write(store, view, batch)
                answers.append(
                    store.get_online_features(["one:f0_int64", "one:f1_string"], [{"account_id": "a"}]).to_dict()
                )
            return answers

        return run

    def test_a_correction_at_the_same_instant_wins(self, pair: Callable[..., list[dict[str, list[Any]]]]) -> None:
        """The stock store drops a second row of one event time; ours keeps the later (or equal) created timestamp."""
        first = [(("a", 0), 5, {"f0_int64": Value(int64_val=1), "f1_string": Value(string_val="old")})]
        second = [(("a", 0), 5, {"f0_int64": Value(int64_val=2), "f1_string": Value(string_val="new")})]
        stock, ours = pair([first, second])
        assert (stock["f0_int64"], ours["f0_int64"]) == ([1], [2])

    def test_a_row_is_never_a_mixture(self, pair: Callable[..., list[dict[str, list[Any]]]]) -> None:
        """The stock store leaves a feature that a newer row lacks as the older row had it; in ours it is null."""
        first = [(("a", 0), 5, {"f0_int64": Value(int64_val=1), "f1_string": Value(string_val="old")})]
        second = [(("a", 0), 6, {"f0_int64": Value(int64_val=2)})]
        stock, ours = pair([first, second])
        assert (stock["f0_int64"], stock["f1_string"]) == ([2], ["old"])
        assert (ours["f0_int64"], ours["f1_string"]) == ([2], [None])

    def test_a_missing_row_is_not_found(self, stores: Pair, tmp_path: Path) -> None:
        """The stock store calls a feature of an entity that it does not know present; ours says NOT_FOUND."""
        answers = []
        for store in stores():
            view = make_view("one", ["int64"], ["account_id"], tmp_path)
            store.apply([*ENTITIES, view])
            write(store, view, [(("a", 0), 5, {"f0_int64": Value()})])
            found = store.get_online_features(["one:f0_int64"], [{"account_id": "a"}, {"account_id": "b"}]).proto
            answers.append(list(found.results[1].statuses))
        assert answers == [[FieldStatus.PRESENT] * 2, [FieldStatus.PRESENT, FieldStatus.NOT_FOUND]]

    def test_a_change_of_type_is_seen(self, stores: Pair, tmp_path: Path) -> None:
        """After a feature changed its type the stock store answers the old value; ours answers that there is no row."""
        answers = []
        for store in stores():
            before = make_view("one", ["int64"], ["account_id"], tmp_path)
            store.apply([*ENTITIES, before])
            write(store, before, [(("a", 0), 5, {"f0_int64": Value(int64_val=2**40)})])
            after = make_view("one", ["int64"], ["account_id"], tmp_path)
            after.features[0].dtype = feast_types.String
            after.schema[[field.name for field in after.schema].index("f0_int64")].dtype = feast_types.String
            store.apply([after])
            answers.append(json.dumps(store.get_online_features(["one:f0_int64"], [{"account_id": "a"}]).to_dict()))
        assert json.loads(answers[0])["f0_int64"] == [2**40]
        assert json.loads(answers[1])["f0_int64"] == [None]

    def test_teardown_removes_own_keys_only(self, stores: Pair, tmp_path: Path, redis_settings: RedisSettings) -> None:
        """Keys of another project, whose name begins with ours, and of anybody else stay."""
        import redis

        _, ours = stores()
        _, other = stores()
        other.config.project = f"{ours.config.project}x"
        view = make_view("one", ["int64"], ["account_id"], tmp_path)
        row = [(("a", 0), 5, {"f0_int64": Value(int64_val=1)})]
        for store in (ours, other):
            store.apply([*ENTITIES, view])
            write(store, view, row)
        password = redis_settings.password.get_secret_value()
        with redis.Redis(
            host=redis_settings.host, port=redis_settings.port, password=password, db=redis_settings.db
        ) as client:
            client.set("somebody:else", "x")
            assert client.dbsize() == 3
            ours.teardown()
            left = sorted(client.keys())
        assert len(left) == 2
        assert left[1] == b"somebody:else"
        assert left[0].startswith(other.config.project.encode() + b":rows:")
