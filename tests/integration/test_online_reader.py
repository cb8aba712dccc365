"""The columnar read of serving against Feast's get_online_features over the same rows."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast import types as feast_types
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import StringList, Value
from feast.value_type import ValueType
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import feature_repo
from feature_repo.stores.export import service_spec
from graph_features.backends import open_online
from graph_features.catalog import catalog
from graph_features.clock import created_timestamp, to_ms
from graph_features.errors import InvalidInputError
from graph_features.schema import DType
from graph_features.settings import PlatformSettings, RedisSettings
from graph_features.stores.reader import FeatureMatrix, ServiceSpec, read_service
from graph_features.stores.redis import RedisOnlineStore
from serving import online

START = datetime(2024, 3, 1, tzinfo=UTC)
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
TYPES = {
    "i32": (feast_types.Int32, INT32.map(lambda value: Value(int32_val=value))),
    "i64": (feast_types.Int64, INT64.map(lambda value: Value(int64_val=value))),
    "f32": (feast_types.Float32, st.floats(width=32, allow_nan=False).map(lambda value: Value(float_val=value))),
    "f64": (feast_types.Float64, st.floats(allow_nan=False).map(lambda value: Value(double_val=value))),
    "flag": (feast_types.Bool, st.booleans().map(lambda value: Value(bool_val=value))),
    "moment": (feast_types.UnixTimestamp, st.integers(0, 2**33).map(lambda value: Value(unix_timestamp_val=value))),
    "words": (feast_types.Array(feast_types.String), st.just(Value(string_list_val=StringList(val=["a", ""])))),
}
ACCOUNTS = ["a", "b", "é:*", "nobody"]
SHOPS = [0, -1, 2**62]


def assert_same(matrix: FeatureMatrix, response: Any, service: ServiceSpec) -> None:
    """Values, validity and event times are those of Feast's answer."""
    values = response.to_dict(include_event_timestamps=True)
    for column, name in enumerate(matrix.names):
        plain = [_number(value) for value in values[name]]
        assert matrix.valid[:, column].tolist() == [value is not None for value in plain]
        # Integers in one step: by way of float64 they would be rounded twice.
        kind = np.int64 if all(isinstance(value, int | None) for value in plain) else np.float64
        with np.errstate(over="ignore"):
            expected = np.array([value or 0 for value in plain], kind).astype(np.float32)
        expected[[value is None for value in plain]] = np.nan
        np.testing.assert_array_equal(matrix.values[:, column], expected, err_msg=name)
    for place, one in enumerate(service.views):
        seconds = values[f"{one.name}__{one.features[0]}__ts"]
        assert (matrix.event_ms[:, place] // 1_000).tolist() == seconds
        assert (matrix.event_ms[:, place] > 0).tolist() == matrix.present[:, place].tolist()


def _number(value: Any) -> float | None:
    if isinstance(value, datetime):
        return value.timestamp()
    return None if value is None else value


@pytest.fixture(scope="module")
def repo(redis_server: RedisSettings, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A Feast repo of somebody else: views of one entity (twice, under other names), of two, and of none."""
    folder = tmp_path_factory.mktemp("repo")
    password = redis_server.password.get_secret_value()
    config = RepoConfig(
        project="reader",
        registry=str(folder / "registry.db"),
        provider="local",
        online_store={
            "type": "feature_repo.stores.online.RedisPackedOnlineStore",
            "connection_string": f"{redis_server.host}:{redis_server.port},password={password}",
        },
        entity_key_serialization_version=3,
    )
    account = Entity(name="account", join_keys=["account_id"], value_type=ValueType.STRING)
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
    schema = [Field(name=name, dtype=kind) for name, (kind, _) in TYPES.items()]
    source = FileSource(name="rows", path=str(folder / "none.parquet"), timestamp_field="at")
    one = FeatureView(name="one", entities=[account], schema=schema, source=source, ttl=timedelta(0))
    two = FeatureView(name="two", entities=[account, shop], schema=schema, source=source, ttl=timedelta(0))
    both = [one.with_name(side).with_join_key_map({"account_id": f"{side}_id"}) for side in ("sender", "receiver")]
    # Under an alias too: Feast takes the plain join key for every view where a request has both.
    owner = two[["f64", "i32"]].with_name("owned").with_join_key_map({"account_id": "owner_id"})
    store = FeatureStore(config=config)
    alone = FeatureView(name="alone", entities=[], schema=schema, source=source, ttl=timedelta(0))
    store.apply([account, shop, one, two, alone, FeatureService(name="both", features=[*both, owner, alone[["f64"]]])])
    return store


@st.composite
def rows(draw: st.DrawFn, *key: tuple[str, str, list[Any]]) -> list[Any]:
    """Rows of a few entities as Feast hands them to a store, nulls among their features."""
    out = []
    for _ in range(draw(st.integers(1, 3))):
        ids = [Value(**{field: draw(st.sampled_from(known))}) for _, field, known in key]
        values = {name: draw(st.just(Value()) | strategy) for name, (_, strategy) in TYPES.items()}
        at = START + timedelta(milliseconds=draw(st.integers(0, 10**9)))
        out.append((EntityKey(join_keys=[name for name, _, _ in key], entity_values=ids), values, at, None))
    return out


@pytest.mark.services
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_repo(repo: FeatureStore, data: st.DataObject) -> None:
    """Aliases, several entities, nulls, unknown ids: the matrix says what Feast says, and its plan travels as JSON."""
    account, shop = ("account_id", "string_val", ACCOUNTS[:3]), ("shop_id", "int64_val", SHOPS)
    none = ("__dummy_id", "string_val", [""])
    for name, keys in (("one", [account]), ("two", [account, shop]), ("alone", [none])):
        view, provider = repo.get_feature_view(name), repo._get_provider()
        provider.online_write_batch(repo.config, view, data.draw(rows(*keys)), None)
    service = ServiceSpec.from_json(json.loads(json.dumps(service_spec(repo, "both").to_json())))
    assert service == service_spec(repo, "both")
    n = data.draw(st.integers(1, 5))
    sides = ("sender_id", "receiver_id", "owner_id")
    entities: dict[str, list[Any]] = {name: [data.draw(st.sampled_from(ACCOUNTS)) for _ in range(n)] for name in sides}
    entities["shop_id"] = [data.draw(st.sampled_from(SHOPS)) for _ in range(n)]
    packed = repo._get_provider().online_store.packed(repo.config)
    matrix = read_service(packed, service, entities)
    feast_service = repo.get_feature_service("both")
    assert_same(matrix, repo.get_online_features(feast_service, entities, full_feature_names=True), service)


@pytest.mark.services
def test_wrong_ids_are_named(repo: FeatureStore, redis_settings: RedisSettings) -> None:
    """A missing column, one that is shorter and an id of another type are named, and what was expected."""
    service = service_spec(repo, "both")
    store = RedisOnlineStore(redis_settings, project="reader")
    with pytest.raises(InvalidInputError, match="sender_id"):
        read_service(store, service, {"owner_id": ["a"]})
    sides = {name: ["a"] for name in ("sender_id", "receiver_id", "owner_id")}
    with pytest.raises(InvalidInputError, match="shop_id: expected ids of type INT64"):
        read_service(store, service, {**sides, "shop_id": ["7"]})
    with pytest.raises(InvalidInputError, match=r"as many ids in every column.*'shop_id': 2"):
        read_service(store, service, {**sides, "shop_id": [7, 8]})
    store.close()


def test_the_platforms_services(tmp_path: Path) -> None:
    """The catalogue's own services: serving's plan is the registry's, and the matrix says what Feast says."""
    platform = PlatformSettings(home=tmp_path / "home")
    store = feature_repo.apply(platform)
    schemas = catalog().schemas
    packed = open_online(platform)
    for seq, view in enumerate(schemas.values(), start=1):
        columns: dict[str, Any] = {key: ["acc-1", "acc-2"] for key in view.keys}
        columns["event_timestamp"] = [START, START + timedelta(milliseconds=1)]
        columns["created_timestamp"] = [created_timestamp(seq)] * 2
        for place, one in enumerate(view.features):
            columns[one.name] = _sample(one.dtype, place)
        frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
        packed.write(view, _table(view, frame))
    service = online.service_spec(schemas, online.ACCOUNT_SERVICE)
    registered = service_spec(store, online.ACCOUNT_SERVICE)
    assert {one.name: one.view for one in service.views} == {one.name: one.view for one in registered.views}
    entities = {"account_id": ["acc-2", "nobody", "acc-1"]}
    matrix = read_service(packed, service, entities)  # type: ignore[arg-type] - both kinds of store have both sides
    times = {f"{one.name}__{f.name}" for one in service.views for f in one.view.features if f.dtype is DType.TIMESTAMP}
    # Feast's times are whole seconds; ours keep milliseconds.
    scale = np.array([1_000 if name in times else 1 for name in matrix.names], np.float32)
    answer = store.get_online_features(
        store.get_feature_service(online.ACCOUNT_SERVICE), entities, full_feature_names=True
    )
    seconds = FeatureMatrix(**{**matrix.__dict__, "values": matrix.values / scale})
    assert_same(seconds, answer, service)
    assert matrix.event_ms[:, 0].tolist() == [to_ms(START) + 1, 0, to_ms(START)]
    packed.close()


def _sample(dtype: DType, place: int) -> list[Any]:
    if dtype is DType.TIMESTAMP:
        return [START - timedelta(days=place), None]
    if dtype.is_list:
        return [["x"] if dtype is DType.STRING_LIST else [1], []]
    return [place, None] if dtype is DType.INT64 else [place / 7, None]


def _table(view: Any, frame: pd.DataFrame) -> Any:
    import pyarrow as pa

    columns = [
        pa.array([None if value is None or value is pd.NaT else value for value in frame[field.name]], field.type)
        for field in view.arrow_schema
    ]
    return pa.Table.from_arrays(columns, schema=view.arrow_schema)


def test_without_feast() -> None:
    """Reading imports neither feast nor pandas."""
    code = "import sys, serving.online, graph_features.stores.reader, graph_features.stores.redis\n"
    code += "assert not {'feast', 'pandas', 'mlflow', 'torch'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
