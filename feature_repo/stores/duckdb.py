"""Feast's offline store for the embedded profile: DuckDB's as-of join over the views' Parquet files.

Feast's own DuckDB store joins every row of an entity that is not later with every request for it, which grows with the
square of an account's payments; this one sorts and merges. It reads Feast's Parquet file sources too.
"""
# ruff: noqa: S608 - names are quoted, everything else is written here

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from pydantic import StrictStr

from feature_repo.stores.asof import AsOfView, ColumnarRetrievalJob, check_columns, entity_rows, requested_views
from feature_repo.stores.source import ViewSource
from graph_features.clock import EPOCH
from graph_features.stores.parquet import ParquetOfflineStore, live_files
from graph_features.stores.versions import WRITE_ORDER

ROW = "__entity_row"
RANK = "__rank"


class RingfenceDuckDBOfflineStoreConfig(FeastConfigBaseModel):
    """`path` is the folder of the views' folders, relative to the feature repo.

    `row_timestamps` adds the event and created timestamp of each joined row to the answer: see `requested_views`.
    """

    type: StrictStr = "feature_repo.stores.duckdb.RingfenceDuckDBOfflineStore"
    path: StrictStr = "../.ringfence/offline"
    row_timestamps: bool = False


class RingfenceDuckDBOfflineStore(OfflineStore):
    """Point-in-time joins, latest and all rows of views and Parquet files; writes of views; feature logs."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Join each entity row with the newest row of every view at or before its time."""
        if not isinstance(entity_df, pd.DataFrame):
            raise ValueError(f"entity_df: expected a pandas DataFrame, got {type(entity_df).__name__}")
        entities, timestamp = entity_rows(entity_df)
        views = requested_views(
            feature_refs,
            feature_views,
            registry,
            project,
            full_feature_names=full_feature_names,
            row_timestamps=config.offline_store.row_timestamps,
        )
        check_columns(entities.column_names, views, timestamp)

        def run() -> pa.Table:
            answer = entities
            for view in views:
                for column in _join(config, view, entities, timestamp, filter_by_created_timestamp):
                    answer = answer.append_column(*column)
            return answer

        moments = pd.to_datetime(entity_df[timestamp], utc=True)
        return ColumnarRetrievalJob(
            run,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.column_names if name != timestamp],
                min_event_timestamp=moments.min().to_pydatetime(),
                max_event_timestamp=moments.max().to_pydatetime(),
            ),
            persist=lambda table, storage, overwrite: _persist(config, table, storage, overwrite),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Newest row per entity within the period."""
        times = (timestamp_field, created_timestamp_column)
        return _pull(
            config, data_source, join_key_columns, feature_name_columns, times, (start_date, end_date), latest=True
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every version of every row within the period."""
        times = (timestamp_field, created_timestamp_column)
        return _pull(
            config, data_source, join_key_columns, feature_name_columns, times, (start_date, end_date), latest=False
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Write rows of a view; another source's the way Feast's own DuckDB store does."""
        source = feature_view.batch_source
        if not isinstance(source, ViewSource):
            # Imported here: it brings ibis, which takes as long as all of Feast.
            from feast.infra.offline_stores.duckdb import DuckDBOfflineStore

            DuckDBOfflineStore.offline_write_batch(config, feature_view, table, progress)
            return
        schema = source.view.arrow_schema
        rows = table.select(schema.names).cast(schema, safe=False)
        offline_store(config).write(source.view, rows, part=f"pushed {time.time_ns()}")
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Append logs as one more Parquet file in the folder of a FileLoggingDestination."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise ValueError(
                f"logging destination: expected a FileLoggingDestination, got {type(destination).__name__}"
            )
        schema = source.get_schema(registry)
        logs = data if isinstance(data, pa.Table) else pads.dataset(data, format="parquet").to_table()
        target = (config.repo_path or Path()) / destination.path
        pads.write_dataset(
            logs.select(schema.names).cast(schema),
            target,
            format="parquet",
            basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
            partitioning=destination.partition_by,
            partitioning_flavor="hive" if destination.partition_by else None,
            existing_data_behavior="overwrite_or_ignore",
        )


def folder(config: RepoConfig) -> Path:
    """Where the views' folders are."""
    path: str = config.offline_store.path
    return (config.repo_path or Path()) / path


def offline_store(config: RepoConfig) -> ParquetOfflineStore:
    """The platform's own store behind this one."""
    return ParquetOfflineStore(folder(config))


def _persist(config: RepoConfig, table: pa.Table, storage: SavedDatasetStorage, overwrite: bool) -> None:
    """Write a retrieved data set as Parquet."""
    target = storage.to_data_source()
    assert isinstance(target, FileSource)
    path = Path((config.repo_path or Path()) / target.path)
    if path.exists() and not overwrite:
        raise SavedDatasetLocationAlreadyExists(location=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _join(
    config: RepoConfig, view: AsOfView, entities: pa.Table, timestamp: str, filter_by_created_timestamp: bool
) -> list[tuple[str, pa.ChunkedArray]]:
    """Return the view's features for every entity row, in their order, null where there is no row."""
    relation = _relation(config, view.source)
    rank = _rank(view.source, "v", view.timestamp, view.created)
    same = " AND ".join(f"v.{_quote(column)} = e.{_quote(key)}" for column, key in view.keys) or "true"
    chosen = ", ".join(f"v.{_quote(column)} AS {_quote(name)}" for column, name in view.features)
    limit = _limit(view.source, f"e.{_quote(timestamp)}")
    fresh = f"epoch_us(v.{_quote(view.timestamp)}) >= epoch_us(e.{_quote(timestamp)}) - {view.ttl_s * 1_000_000}"
    columns = ", ".join(f"v.{_quote(column)}" for column in view.columns)
    newest = f"SELECT {columns}, {rank} AS {RANK} FROM {relation} v SEMI JOIN entities e ON {same}"
    if filter_by_created_timestamp and view.created:
        known = f"v.{_quote(view.created)} <= e.{_quote(timestamp)}"
        join = f"JOIN ({newest}) v ON {same} AND {limit} > v.{RANK} AND {known}"
        once = f"QUALIFY row_number() OVER (PARTITION BY e.{ROW} ORDER BY v.{RANK} DESC) = 1"
    else:
        join, once = f"ASOF JOIN ({newest}) v ON {same} AND {limit} > v.{RANK}", ""
    where = f"WHERE {fresh}" if view.ttl_s else ""
    # Of several rows an as-of join with the same rank takes any; ranks of different versions differ.
    query = f"SELECT e.{ROW}, {chosen} FROM entities e {join} {where} {once}"
    needed = list(dict.fromkeys([*(key for _, key in view.keys), timestamp]))
    numbered = entities.select(needed).append_column(ROW, pa.array(range(entities.num_rows), pa.int64()))
    joined = _run(query, entities=numbered)
    place = np.full(entities.num_rows, -1, np.int64)
    place[joined[ROW].to_numpy()] = np.arange(joined.num_rows)
    aligned = joined.drop_columns([ROW]).take(pa.array(place, mask=place < 0))
    return [(name, aligned[name]) for name in aligned.column_names]


def _pull(
    config: RepoConfig,
    source: DataSource,
    keys: list[str],
    features: list[str],
    times: tuple[str, str | None],
    period: tuple[datetime | None, datetime | None],
    *,
    latest: bool,
) -> RetrievalJob:
    timestamp, created = times
    identity = [*keys, timestamp, *([created] if created else [])]
    wanted = ", ".join(_quote(name) for name in dict.fromkeys([*keys, *features, *identity]))
    if not features:
        wanted = f"* EXCLUDE ({WRITE_ORDER.name})" if isinstance(source, ViewSource) else "*"
    if not keys:
        wanted += f", '{DUMMY_ENTITY_VAL}' AS {DUMMY_ENTITY_ID}"
    where = [
        f"epoch_us({_quote(timestamp)}) {sign} {_micros(moment)}"
        for sign, moment in zip((">=", "<="), period, strict=True)
        if moment is not None
    ]
    once = ""
    if latest or isinstance(source, ViewSource):
        # A view's versions may have been written twice; the later writing counts.
        partition = ", ".join(_quote(name) for name in (keys if latest else identity))
        rank = _rank(source, "v", timestamp, created)
        by = f"PARTITION BY {partition} " if partition else ""
        once = f"QUALIFY row_number() OVER ({by}ORDER BY {rank} DESC) = 1"
    condition = f"WHERE {' AND '.join(where)}" if where else ""

    def run() -> pa.Table:
        relation = _relation(config, source)
        return _run(f"SELECT {wanted} FROM {relation} v {condition} {once}")

    return ColumnarRetrievalJob(run)


def _run(query: str, **tables: pa.Table) -> pa.Table:
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(query).to_arrow_table()


def _relation(config: RepoConfig, source: Any) -> str:
    """The source's files as a table function."""
    if isinstance(source, ViewSource):
        files = [str(path) for path in live_files(folder(config) / source.view.name)]
    elif isinstance(source, FileSource):
        files = [str(_file_source_path(config, source.path))]
    else:
        raise ValueError(f"source {source.name}: expected a view or a Parquet file, got {type(source).__name__}")
    names = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    return f"read_parquet([{names}], union_by_name = true)"


def _file_source_path(config: RepoConfig, path: str) -> str | Path:
    if "://" in path:
        return path
    local = (config.repo_path or Path()) / path
    return local / "**" / "*.parquet" if local.is_dir() else local


def _rank(source: Any, alias: str, timestamp: str, created: str | None) -> str:
    """One 128-bit number that orders versions: event time, then created time, then (views) order of writing."""
    moment = f"{alias}.{_quote(timestamp)}"
    version = f"coalesce(epoch_us({alias}.{_quote(created)}), 0)" if created else "0"
    if isinstance(source, ViewSource):
        # 43 bits of milliseconds, 53 of microseconds, 31 of writes.
        order = f"{alias}.{_quote(WRITE_ORDER.name)}"
        return f"(epoch_ms({moment})::HUGEINT * {2**84} + {version}::HUGEINT * {2**31} + {order})"
    return f"(epoch_us({moment})::HUGEINT * {2**64} + {version})"


def _limit(source: Any, moment: str) -> str:
    """What the rank of every version at or before `moment` is below."""
    if isinstance(source, ViewSource):
        return f"((epoch_ms({moment}) + 1)::HUGEINT * {2**84})"
    return f"((epoch_us({moment}) + 1)::HUGEINT * {2**64})"


def _quote(name: str | None) -> str:
    return '"' + str(name).replace('"', '""') + '"'


def _micros(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - EPOCH) // timedelta(microseconds=1)
