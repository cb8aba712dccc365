"""Feast's offline store on PostgreSQL without the cliff, and able to write.

Entity rows go in by binary COPY and are analysed; each view is joined by one index probe per entity row (a LATERAL
join with LIMIT 1); answers come out by COPY into Arrow columns. A source without a fitting index is copied, as far as
the request needs it, into a temporary table that has one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

import pandas as pd
import pyarrow as pa
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import (
    PostgreSQLOfflineStore,
    PostgreSQLOfflineStoreConfig,
    PostgreSQLRetrievalJob,
)
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
    SavedDatasetPostgreSQLStorage,
)
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.utils.postgres.connection_utils import _get_conn
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from psycopg import sql
from pydantic import model_validator

from feature_repo.stores.asof import ColumnarRetrievalJob, check_columns, requested_views
from feature_repo.stores.pgcsv import fetch
from feature_repo.stores.pgjoin import Cursor, copy_rows, join, upload
from feature_repo.stores.source import ViewSource
from graph_features.settings import PostgresSettings, load
from graph_features.stores.pgcopy import postgres_type
from graph_features.stores.postgres import PostgresOfflineStore


class RingfencePostgreSQLOfflineStoreConfig(PostgreSQLOfflineStoreConfig):
    """Feast's own settings; what is not given comes from RINGFENCE_POSTGRES_*.

    `row_timestamps` adds the event and created timestamp of each joined row to the answer: see `requested_views`.
    """

    # Feast pins its own name here, and finds a plugin by its dotted path.
    type: str = "feature_repo.stores.postgres.RingfencePostgreSQLOfflineStore"  # type: ignore[assignment]
    row_timestamps: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_environment(cls, values: dict[str, Any]) -> dict[str, Any]:
        settings = load(PostgresSettings)
        given = {
            "host": settings.host,
            "port": settings.port,
            "user": settings.user,
            "password": settings.password.get_secret_value(),
            "database": settings.database,
            "sslmode": settings.sslmode,
        }
        return {**given, **values}


class RingfencePostgreSQLOfflineStore(PostgreSQLOfflineStore):
    """Point-in-time joins, latest and all rows, and writes."""

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
        **kwargs: Any,
    ) -> RetrievalJob:
        """Join each entity row (a data frame, or the rows of a SQL query) with the newest row of every view."""
        if entity_df is None:
            # Everything within a period: Feast's own query, read in columns.
            views_of_tables = [_as_table(view) for view in feature_views]
            stock = PostgreSQLOfflineStore.get_historical_features(
                config, views_of_tables, feature_refs, None, registry, project, full_feature_names, **kwargs
            )
            return _in_columns(config, stock)
        views = requested_views(
            feature_refs,
            feature_views,
            registry,
            project,
            full_feature_names=full_feature_names,
            row_timestamps=config.offline_store.row_timestamps,
        )
        columns, timestamp, period = _described(config, entity_df)
        check_columns(columns, views, timestamp)

        def run() -> pa.Table:
            with _cursor(config) as cursor:
                answer = upload(cursor, entity_df, views, timestamp)
                for view in views:
                    for name, values in join(cursor, view, answer.num_rows, timestamp, filter_by_created_timestamp):
                        answer = answer.append_column(name, values)
                return answer

        return ColumnarRetrievalJob(
            run,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in columns if name != timestamp],
                min_event_timestamp=period[0],
                max_event_timestamp=period[1],
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
        period = (start_date, end_date)
        return _pull(config, data_source, join_key_columns, feature_name_columns, times, period, latest=True)

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
        period = (start_date, end_date)
        return _pull(config, data_source, join_key_columns, feature_name_columns, times, period, latest=False)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Write rows by COPY: of our views with equal versions replaced, to any other table appended."""
        source: Any = feature_view.batch_source
        if isinstance(source, ViewSource):
            schema = source.view.arrow_schema
            with closing(offline_store(config)) as store:
                store.write(source.view, table.select(schema.names).cast(schema, safe=False), part="pushed")
        else:
            with _cursor(config) as cursor:
                copy_rows(cursor, sql.SQL(source.get_table_query_string()), table)
        if progress:
            progress(table.num_rows)


def offline_store(config: RepoConfig) -> PostgresOfflineStore:
    """The platform's own store behind this one."""
    given = config.offline_store
    names = ("host", "port", "user", "password", "database", "sslmode")
    return PostgresOfflineStore(PostgresSettings(**{name: getattr(given, name) for name in names}))


@contextmanager
def _cursor(config: RepoConfig) -> Iterator[Cursor]:
    """One transaction; temporary tables end with it."""
    with _get_conn(config.offline_store) as connection, connection.cursor() as cursor:
        yield cursor


def _described(config: RepoConfig, entity_df: pd.DataFrame | str) -> tuple[list[str], str, tuple[datetime, datetime]]:
    """Columns of the entity rows, the one with their time, and its range."""
    if isinstance(entity_df, pd.DataFrame):
        timestamp = offline_utils.infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
        moments = pd.to_datetime(entity_df[timestamp], utc=True)
        return list(entity_df.columns), timestamp, (moments.min().to_pydatetime(), moments.max().to_pydatetime())
    query = sql.SQL(entity_df)
    with _cursor(config) as cursor:
        empty = fetch(cursor, sql.SQL("SELECT * FROM ({}) AS entities LIMIT 0").format(query)).to_pandas()
        timestamp = offline_utils.infer_event_timestamp_from_entity_df(dict(empty.dtypes))
        span = sql.SQL("SELECT min({0}), max({0}) FROM ({1}) AS entities").format(sql.Identifier(timestamp), query)
        row = cursor.execute(span).fetchone()
    assert row is not None
    return list(empty.columns), timestamp, (row[0], row[1])


def _pull(
    config: RepoConfig,
    source: Any,
    keys: list[str],
    features: list[str],
    times: tuple[str, str | None],
    period: tuple[datetime | None, datetime | None],
    *,
    latest: bool,
) -> RetrievalJob:
    stamps = [name for name in times if name]
    wanted = list(dict.fromkeys([*keys, *features, *stamps]))
    columns: sql.Composable = sql.SQL(", ").join(sql.SQL("v.{}").format(sql.Identifier(name)) for name in wanted)
    if not features:
        columns = sql.SQL("v.*")
    if not keys:
        columns = sql.SQL("{}, {} AS {}").format(
            columns, sql.Literal(DUMMY_ENTITY_VAL), sql.Identifier(DUMMY_ENTITY_ID)
        )
    where = [
        sql.SQL("v.{} {} {}::timestamptz").format(sql.Identifier(times[0]), sql.SQL(sign), sql.Literal(moment))
        for sign, moment in zip((">=", "<="), period, strict=True)
        if moment is not None
    ]
    distinct: sql.Composable = sql.SQL("")
    order: sql.Composable = sql.SQL("")
    if latest:
        entity: list[sql.Composable] = [*map(sql.Identifier, keys)] or [sql.SQL("true")]
        newest = [sql.SQL("{} DESC").format(sql.Identifier(name)) for name in stamps]
        distinct = sql.SQL("DISTINCT ON ({})").format(sql.SQL(", ").join(entity))
        order = sql.SQL("ORDER BY {}").format(sql.SQL(", ").join([*entity, *newest]))
    query = sql.SQL("SELECT {} {} FROM {} v WHERE {} {}").format(
        distinct,
        columns,
        sql.SQL(source.get_table_query_string()),
        sql.SQL(" AND ").join([sql.SQL("true"), *where]),
        order,
    )

    def run() -> pa.Table:
        with _cursor(config) as cursor:
            return fetch(cursor, query)

    return ColumnarRetrievalJob(run)


def _as_table(view: FeatureView) -> FeatureView:
    """The same view, its rows in a table that Feast's own store accepts."""
    source = view.batch_source
    if not isinstance(source, ViewSource):
        return view
    changed = copy.copy(view)
    changed.batch_source = PostgreSQLSource(
        name=source.name,
        table=source.get_table_query_string(),
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column,
    )
    return changed


def _in_columns(config: RepoConfig, stock: RetrievalJob) -> RetrievalJob:
    """Feast's own query, read without a Python object per value."""
    assert isinstance(stock, PostgreSQLRetrievalJob)

    def run() -> pa.Table:
        with stock._query_generator() as query, _cursor(config) as cursor:
            return fetch(cursor, sql.SQL(query))

    return ColumnarRetrievalJob(
        run,
        full_feature_names=stock.full_feature_names,
        on_demand_feature_views=stock.on_demand_feature_views,
        metadata=stock.metadata,
    )


def _persist(config: RepoConfig, table: pa.Table, storage: SavedDatasetStorage, overwrite: bool) -> None:
    """Write a retrieved data set into a table of its own."""
    assert isinstance(storage, SavedDatasetPostgreSQLStorage)
    into = sql.SQL(storage.postgres_options._table)
    definitions = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(postgres_type(field.type)))
        for field in table.schema
    )
    with _cursor(config) as cursor:
        if overwrite:
            cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(into))
        cursor.execute(sql.SQL("CREATE TABLE {} ({})").format(into, definitions))
        copy_rows(cursor, into, table)
