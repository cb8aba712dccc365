"""Feast's offline store on PostgreSQL without the cliff, and able to write.

Entity rows go in by binary COPY and are analysed; each view is joined by one index probe per entity row (a LATERAL
join with LIMIT 1), several views at once over connections of their own; answers come out by binary COPY into Arrow
columns, a chunk of entity rows at a time. A source without a fitting index is copied, as far as the request needs it,
into a temporary table that has one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import FeatureView
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import (
    PostgreSQLOfflineStore,
    PostgreSQLOfflineStoreConfig,
    PostgreSQLRetrievalJob,
)
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
    SavedDatasetPostgreSQLStorage,
)
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from psycopg import sql
from pydantic import Field, model_validator

from feature_repo.stores.asof import check_columns, requested_views
from feature_repo.stores.pgjob import StreamedRetrievalJob
from feature_repo.stores.pglogging import PostgreSQLLoggingDestination, write_logs
from feature_repo.stores.pgpull import Pull, file_chunks
from feature_repo.stores.pgread import fetch
from feature_repo.stores.pgretrieve import Retrieval, described, transaction
from feature_repo.stores.pgwrite import append_rows, write_tables
from feature_repo.stores.source import ViewSource
from graph_features.errors import SchemaMismatchError
from graph_features.settings import PostgresSettings, load
from graph_features.stores.postgres import PostgresOfflineStore


class RingfencePostgreSQLOfflineStoreConfig(PostgreSQLOfflineStoreConfig):
    """Feast's own settings; what is not given comes from RINGFENCE_POSTGRES_*.

    `row_timestamps` adds the event and created timestamp of each joined row to the answer: see `requested_views`.
    Up to `connections` join views at once; `rows_per_chunk` entity rows are joined at a time, and are held in memory.
    """

    # Feast pins its own name here, and finds a plugin by its dotted path.
    type: str = "feature_repo.stores.postgres.RingfencePostgreSQLOfflineStore"  # type: ignore[assignment]
    row_timestamps: bool = False
    connections: int = Field(default=4, ge=1)
    rows_per_chunk: int = Field(default=50_000, ge=1)

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
    """Point-in-time joins, latest and all rows, writes of rows and of feature logs."""

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
        views_of_tables = [_as_table(view) for view in feature_views]
        as_stock = partial(
            PostgreSQLOfflineStore.get_historical_features,
            config,
            views_of_tables,
            feature_refs,
            entity_df,
            registry,
            project,
            full_feature_names,
            filter_by_created_timestamp,
            **kwargs,
        )
        if entity_df is None:
            # Everything within a period: Feast's own query, read in columns.
            return _in_columns(config, as_stock())
        settings = config.offline_store
        names = {"full_feature_names": full_feature_names, "row_timestamps": settings.row_timestamps}
        views = requested_views(feature_refs, feature_views, registry, project, **names)
        entities = described(settings, entity_df)
        check_columns(entities.columns, views, entities.timestamp)
        retrieval = Retrieval(
            offline_store=settings,
            entities=entities,
            views=views,
            only_known=filter_by_created_timestamp,
            connections=settings.connections,
            rows_per_chunk=settings.rows_per_chunk,
        )
        return StreamedRetrievalJob(
            retrieval.chunks,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.columns if name != entities.timestamp],
                min_event_timestamp=entities.first,
                max_event_timestamp=entities.last,
            ),
            persist_as_table=partial(_persist, config),
            query=lambda: str(as_stock().to_sql()),
            base=config.repo_path,
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
        pull = Pull(
            source=data_source,
            keys=join_key_columns,
            features=feature_name_columns,
            timestamp=timestamp_field,
            created=created_timestamp_column,
            start=start_date,
            end=end_date,
            latest=True,
        )
        return _pulled(config, pull)

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
        pull = Pull(
            source=data_source,
            keys=join_key_columns,
            features=feature_name_columns,
            timestamp=timestamp_field,
            created=created_timestamp_column,
            start=start_date,
            end=end_date,
            latest=False,
        )
        return _pulled(config, pull)

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
            with transaction(config.offline_store) as cursor:
                append_rows(cursor, _table_of(source), table)
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
        """Append logs to the table of a PostgreSQLLoggingDestination, which is made when it is missing."""
        destination = logging_config.destination
        if not isinstance(destination, PostgreSQLLoggingDestination):
            raise ValueError(
                f"logging destination: expected a PostgreSQLLoggingDestination, got {type(destination).__name__}"
            )
        with transaction(config.offline_store) as cursor:
            write_logs(cursor, destination, source.get_schema(registry), data)


def offline_store(config: RepoConfig) -> PostgresOfflineStore:
    """The platform's own store behind this one."""
    given = config.offline_store
    names = ("host", "port", "user", "password", "database", "sslmode")
    return PostgresOfflineStore(PostgresSettings(**{name: getattr(given, name) for name in names}))


def _table_of(source: Any) -> sql.SQL:
    """The table behind a source; a query has none to write to."""
    place: str = source.get_table_query_string()
    if place.lstrip().startswith("("):
        raise SchemaMismatchError(
            f"source {source.name} is a query, which nothing can be written to; give it a table instead"
        )
    return sql.SQL(place)


def _pulled(config: RepoConfig, pull: Pull) -> RetrievalJob:
    base = Path(config.repo_path or ".")
    if isinstance(pull.source, FileSource):
        # A saved dataset that was persisted to files.
        return StreamedRetrievalJob(partial(file_chunks, pull.source, pull, base), base=base)
    return StreamedRetrievalJob(
        partial(pull.chunks, config.offline_store),
        persist_as_table=partial(_persist, config),
        query=lambda: pull.query().as_string(),
        base=base,
    )


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

    def run() -> Iterator[pa.Table]:
        with stock._query_generator() as query, transaction(config.offline_store) as cursor:
            yield fetch(cursor, sql.SQL(query))

    return StreamedRetrievalJob(
        run,
        full_feature_names=stock.full_feature_names,
        on_demand_feature_views=stock.on_demand_feature_views,
        metadata=stock.metadata,
        persist_as_table=partial(_persist, config),
        query=stock.to_sql,
        base=config.repo_path,
    )


def _persist(config: RepoConfig, tables: Iterator[pa.Table], storage: SavedDatasetStorage, overwrite: bool) -> None:
    """Write a retrieved data set into a table of its own."""
    assert isinstance(storage, SavedDatasetPostgreSQLStorage)
    place: str = storage.postgres_options._table
    into = sql.SQL(place)
    with transaction(config.offline_store) as cursor:
        (found,) = cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [place]).fetchone() or (False,)
        if found and not overwrite:
            raise SavedDatasetLocationAlreadyExists(location=place)
        cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(into))
        write_tables(cursor, into, tables, create=True)
