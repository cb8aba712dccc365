"""Feast's own Ray engine on the cluster that Ringfence works on, for a feature view of another team."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from graph_features.executor import open_executor
from graph_features.ray_cluster import connect

# Feast's engine and Ray Data are not up to date with pandas, and leave temporary files to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def open_repo(home: Path, address: str) -> Any:
    """A repo of its own: Feast's offline store and engine on Ray, and rows online in SQLite."""
    from feast import FeatureStore, RepoConfig

    return FeatureStore(
        config=RepoConfig(
            project="others",
            provider="local",
            registry=str(home / "registry.db"),
            offline_store={"type": "ray", "storage_path": str(home / "lake"), "ray_address": address},
            online_store={"type": "sqlite", "path": str(home / "online.db")},
            batch_engine={"type": "ray.engine", "ray_address": address},
            entity_key_serialization_version=3,
        )
    )


def apply_view(store: Any, rows: pd.DataFrame, path: Path) -> None:
    """Register a plain view of the rows of a file."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64

    rows.to_parquet(path)
    account = Entity(name="account", join_keys=["account_id"], value_type=ValueType.STRING)
    view = FeatureView(
        name="branch_visits",
        entities=[account],
        ttl=timedelta(days=3_650),
        schema=[Field(name="visits", dtype=Int64), Field(name="minutes", dtype=Float64)],
        source=FileSource(name="visits", path=str(path), timestamp_field="event_timestamp"),
    )
    store.apply([account, view])


def test_feasts_engine_materializes_beside_ours(nodes: Any, tmp_path: Path) -> None:
    """The newest row of each account is online, by tasks on the cluster that our executor uses before and after."""
    ray = connect(nodes.settings)
    rows = pd.DataFrame(
        {
            "account_id": [f"a{number % 40}" for number in range(80)],
            "visits": range(80),
            "minutes": [number / 4 for number in range(80)],
            "event_timestamp": [DAY + timedelta(hours=number) for number in range(80)],
        }
    )
    store = open_repo(tmp_path, nodes.cluster.address)
    apply_view(store, rows, tmp_path / "visits.parquet")
    store.materialize(start_date=DAY - timedelta(days=1), end_date=DAY + timedelta(days=30))
    found = store.get_online_features(
        features=["branch_visits:visits", "branch_visits:minutes"],
        entity_rows=[{"account_id": f"a{number}"} for number in range(41)],
    ).to_dict()
    assert found["visits"] == [*range(40, 80), None]
    assert found["minutes"] == [*(number / 4 for number in range(40, 80)), None]
    assert ray.is_initialized()
    executor = open_executor(2)
    assert [result.get() for result in executor.map(abs, [-1, -2, -3])] == [1, 2, 3]
    executor.close()
