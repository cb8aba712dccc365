"""Retention: what is past its limit goes, and what point-in-time joins and resumptions need stays."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graph_features.clock import to_ms
from graph_features.contracts import TIMESTAMP
from graph_features.jobs.engine import sqlite_engine
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.records import JobState
from graph_features.jobs.runner import JobContext, JobRunner
from graph_features.schema import Cadence, DType, FeatureSchema, Renewal, ViewSchema
from graph_features.settings import PlatformSettings, RetentionSettings
from graph_features.stores.parquet import ParquetOfflineStore

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
COUNT = FeatureSchema(name="n", dtype=DType.INT64, description="n", unit="n", range="any", empty=0)


def view(cadence: Cadence) -> ViewSchema:
    """A view of accounts with one feature."""
    renewed = (Renewal.TRANSACTION,) if cadence is Cadence.EVENT else ()
    return ViewSchema(
        name=f"view_{cadence.value}", entity="account", cadence=cadence, description="", features=(COUNT,),
        renewed_by=renewed,
    )  # fmt: skip


def rows(schema: ViewSchema, *items: tuple[str, int, int]) -> pa.Table:
    """Rows of (account, days after noon, sequence)."""
    names, days, sequence = zip(*items, strict=True)
    moments = pa.array([to_ms(NOON + timedelta(days=day)) for day in days]).cast(TIMESTAMP)
    columns = [pa.array(names), moments, pa.array(list(sequence), pa.int64()).cast(schema.arrow_schema.field(2).type)]
    return pa.Table.from_arrays([*columns, pa.array(list(sequence), pa.int64())], schema=schema.arrow_schema)


@pytest.fixture(params=["parquet", pytest.param("postgres", marks=pytest.mark.services)])
def offline(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each profile's offline store."""
    if request.param == "parquet":
        return ParquetOfflineStore(tmp_path / "offline")
    from graph_features.stores.postgres import PostgresOfflineStore

    return PostgresOfflineStore(request.getfixturevalue("postgres_settings"))


def test_of_event_rows_each_entity_keeps_its_last_one_before_the_limit(offline: Any) -> None:
    """A payment at the limit still needs the row before it; everything older and every older version may go."""
    schema = view(Cadence.EVENT)
    offline.create_view(schema)
    some = rows(schema, ("a", -9, 1), ("a", -8, 1), ("a", -7, 2), ("a", 1, 2), ("b", -9, 1), ("c", 2, 1))
    offline.write(schema, some, part="one")
    assert offline.delete_before(schema, to_ms(NOON)) == 2
    assert offline.delete_before(schema, to_ms(NOON)) == 0
    assert [offline.count_entity(schema, name) for name in "abc"] == [2, 1, 1]
    offline.close()


def test_slices_before_the_limit_go(offline: Any) -> None:
    """Old slices count as absent in any case: nothing of them has to stay."""
    schema = view(Cadence.SLICE)
    offline.create_view(schema)
    offline.write(schema, rows(schema, ("a", -9, 1), ("a", -1, 1), ("a", 0, 1), ("b", -9, 1)), part="one")
    assert offline.delete_before(schema, to_ms(NOON)) == 3
    assert [offline.count_entity(schema, name) for name in "ab"] == [1, 0]
    offline.close()


def test_erased_entities_go_in_every_version(offline: Any) -> None:
    """Every version of the named accounts must go, others' stay, and an unknown view is no error."""
    schema = view(Cadence.EVENT)
    assert offline.count_entity(schema, "a") == 0
    offline.create_view(schema)
    offline.write(schema, rows(schema, ("a", 0, 1), ("a", 0, 2), ("a1", 0, 1)), part="one")
    assert offline.delete_entities(schema, ["a", "zz"]) == 2
    assert [offline.count_entity(schema, name) for name in ("a", "a1")] == [0, 1]
    offline.close()


def test_the_job_keeps_every_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registry intervals, MLflow runs, ended jobs and logs past their limits must go; the newest interval stays."""
    import feature_repo
    from infra.retention import retain
    from infra.wiring import Platform
    from training.registry import Registry

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = PlatformSettings(home=tmp_path / "home")
    ledger = Ledger(sqlite_engine(tmp_path / "ledger.sqlite"), clock=lambda: NOON)
    ledger.create_schema()
    old, running = (ledger.submit("x", {}, requested_by="t") for _ in range(2))
    ledger.claim(old, "r")
    ledger.finish(old, "r", JobState.DONE)
    now = NOON + timedelta(days=400)
    with Platform(settings) as platform:
        store = feature_repo.apply(settings)
        for day in (1, 2, 390):
            moment = NOON + timedelta(days=day)
            feast_view = store.get_feature_view("account_activity")
            store.registry.apply_materialization(feast_view, store.project, moment, moment + timedelta(hours=1))
        registry = Registry.open(settings.home)
        client = registry.client()
        experiment = registry.experiment("ringfence")
        runs = [
            client.create_run(experiment, start_time=to_ms(NOON + timedelta(days=day))).info.run_id for day in (0, 395)
        ]
        log = settings.home / "old.log"
        log.write_text("something")
        os.utime(log, (NOON.timestamp(), NOON.timestamp()))
        runner = JobRunner(ledger=ledger, handlers={})
        context = JobContext(job=ledger.get(running), ledger=ledger, runner="r", stop=runner.stopping)
        removed = retain(platform, context, now=now, settings=RetentionSettings())
        assert {name: count for name, count in removed.items() if count} == {
            "jobs": 1, "registry intervals": 2, "MLflow runs": 1, "log files": 1,
        }  # fmt: skip
        again = feature_repo.open_store(settings).get_feature_view("account_activity").materialization_intervals
        assert [interval[0] for interval in again] == [NOON + timedelta(days=390)]
        assert [job.id for job in ledger.list()] == [running]
        assert log.stat().st_size == 0
        assert client.get_run(runs[0]).info.lifecycle_stage == "deleted"
        assert client.get_run(runs[1]).info.lifecycle_stage == "active"
        runner.close()
    ledger.close()
