"""The Feast repo that the online benchmarks run over, once with Feast's own stores and once with ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float64, Int64, String
from feast.value_type import ValueType

from graph_features.settings import RedisSettings

Side = Literal["feast", "ours"]

VIEWS = 4
FEATURES = 15
EVENT = datetime(2025, 1, 1, tzinfo=UTC)
PERIOD = (datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 6, 1, tzinfo=UTC))
SERVICE = "everything"
OURS = "feature_repo.stores.online"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the benchmark's files and its Redis are."""

    folder: Path
    redis: RedisSettings

    def database(self, side: Side) -> int:
        """Databases of their own, so that each side's memory can be told."""
        return 1 if side == "feast" else 2

    def connection_string(self, side: Side) -> str:
        """As both stores take it."""
        redis = self.redis
        password = redis.password.get_secret_value()
        return f"{redis.host}:{redis.port},password={password},db={self.database(side)}"


def redis_store(place: Place, side: Side) -> Mapping[str, Any]:
    """The online store on Redis, Feast's or ours."""
    kind = "redis" if side == "feast" else f"{OURS}.RedisPackedOnlineStore"
    return {"type": kind, "connection_string": place.connection_string(side)}


def sqlite_store(place: Place, side: Side) -> Mapping[str, Any]:
    """The same in a file."""
    kind = "sqlite" if side == "feast" else f"{OURS}.SqlitePackedOnlineStore"
    return {"type": kind, "path": str(place.folder / f"{side}.sqlite")}


def open_repo(place: Place, side: Side, online_store: Mapping[str, Any], *, name: str = "online") -> FeatureStore:
    """A repo in a project of its own, with the settings that suit Feast's own materialization best."""
    engine = "local" if side == "feast" else "feature_repo.stores.engine.ColumnarComputeEngine"
    config = RepoConfig(
        project=f"{name}_{side}",
        provider="local",
        registry={"path": str(place.folder / f"{name}_{side}.db"), "cache_ttl_seconds": 3_600},
        online_store=dict(online_store),
        offline_store={"type": "duckdb"},
        batch_engine={"type": engine},
        materialization={"pull_latest_features": True, "online_write_batch_size": 10_000},
        entity_key_serialization_version=3,
    )
    return FeatureStore(config=config)


def write_rows(path: Path, accounts: int, seed: int) -> None:
    """One row per account: whole numbers and floats in turn, a few nulls among the floats."""
    rng = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {
        "account_id": pa.array([f"account-{at:07}" for at in range(accounts)]),
        "event_timestamp": pa.array([EVENT] * accounts, pa.timestamp("us", "UTC")),
    }
    for at in range(FEATURES):
        numbers = rng.integers(0, 100_000, accounts) if at % 2 else rng.lognormal(3, 2, accounts)
        columns[f"f{at}"] = pa.array(numbers, mask=rng.random(accounts) < 0.02 if not at % 2 else None)
    pq.write_table(pa.table(columns), path)


def views(place: Place, accounts: int, *, count: int = VIEWS) -> list[Any]:
    """The objects to apply; their rows are written where they are missing."""
    account = Entity(name="account", join_keys=["account_id"], value_type=ValueType.STRING)
    made: list[Any] = []
    for number in range(count):
        path = place.folder / f"rows_{accounts}_{number}.parquet"
        if not path.exists():
            write_rows(path, accounts, number)
        fields = [Field(name=f"f{at}", dtype=Int64 if at % 2 else Float64) for at in range(FEATURES)]
        source = FileSource(name=f"rows_{number}", path=str(path), timestamp_field="event_timestamp")
        schema = [*fields, Field(name="account_id", dtype=String)]
        made.append(
            FeatureView(name=f"view_{number}", entities=[account], schema=schema, source=source, ttl=timedelta(0))
        )
    return [account, *made, FeatureService(name=SERVICE, features=made)]
