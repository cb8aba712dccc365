"""What Feast's own universal test suite runs against: FULL_REPO_CONFIGS_MODULE names this module (see run.py).

It is imported by Feast's tests, from a checkout of Feast's repository, and by nothing else. The environment says which
stores are meant: UNIVERSAL_ONLINE_STORE and UNIVERSAL_OFFLINE_STORE are their configurations as JSON,
UNIVERSAL_BATCH_ENGINE the type of the compute engine, UNIVERSAL_LOGGING_DESTINATION the class that tells the offline
store where feature logs go, empty where it keeps none.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast.data_source import DataSource
from feast.feature_logging import LoggingDestination
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
    SavedDatasetPostgreSQLStorage,
)
from feast.infra.utils.postgres.connection_utils import _get_conn
from feast.repo_config import FeastConfigBaseModel, get_offline_config_from_type
from psycopg import sql
from psycopg.types.json import Jsonb
from tests.universal.feature_repos import integration_test_repo_config as configs  # type: ignore[import-not-found]
from tests.universal.feature_repos.universal.data_source_creator import (  # type: ignore[import-not-found]
    DataSourceCreator,
)


class UnderEveryName(dict[str, Any]):
    """One online store, run once by tests of any store, and found by those that ask for one that it stands in for."""

    def values(self) -> Collection[Any]:  # type: ignore[override]
        return [*super().values()][:1]


_ONLINE = (json.loads(os.environ["UNIVERSAL_ONLINE_STORE"]), None)
# Tests of value types run with SQLite alone, asynchronous push with MongoDB alone; neither asks for more of a store.
AVAILABLE_ONLINE_STORES = UnderEveryName(dict.fromkeys(("redis", "sqlite", "mongodb"), _ONLINE))


class PostgresCreator(DataSourceCreator):  # type: ignore[misc]
    """Tables in a database of the run's own, read by the offline store that is meant."""

    def __init__(self, project_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(project_name)
        values = json.loads(os.environ["UNIVERSAL_OFFLINE_STORE"])
        self._config = get_offline_config_from_type(values["type"])(**values)

    def create_data_source(
        self,
        df: pd.DataFrame,
        destination_name: str,
        created_timestamp_column: str = "created_ts",
        field_mapping: dict[str, str] | None = None,
        timestamp_field: str | None = "ts",
    ) -> DataSource:
        """Write the rows to a table and return it as a source."""
        table = self._name(destination_name)
        self._write(df, table)
        return PostgreSQLSource(
            name=table,
            table=table,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping or {"ts_1": "ts"},
        )

    def create_offline_store_config(self) -> FeastConfigBaseModel:
        return self._config

    def create_saved_dataset_destination(self) -> SavedDatasetPostgreSQLStorage:
        return SavedDatasetPostgreSQLStorage(table_ref=self._name("saved"))

    def create_logged_features_destination(self) -> LoggingDestination:
        """A table of this test's; skips the test where the store keeps no logs."""
        name = os.environ["UNIVERSAL_LOGGING_DESTINATION"]
        if not name:
            pytest.skip("this offline store keeps no feature logs")
        module, _, kind = name.rpartition(".")
        destination: LoggingDestination = getattr(importlib.import_module(module), kind)(table=self._name("logs"))
        return destination

    def teardown(self) -> None:
        """The database goes with the run."""

    def _name(self, suffix: str) -> str:
        return f"{self.project_name}_{suffix}"

    def _write(self, df: pd.DataFrame, table: str) -> None:
        # Feast's own helper writes neither dictionaries nor lists of texts.
        rows = pa.Table.from_pandas(df, preserve_index=False)
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(postgres_type(field.type)))
            for field in rows.schema
        )
        names = sql.SQL(", ").join(map(sql.Identifier, rows.column_names))
        values = zip(*([_plain(one) for one in df[name].tolist()] for name in rows.column_names), strict=True)
        with _get_conn(self._config) as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(table), columns))
            with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), names)) as copy:
                for row in values:
                    copy.write_row(row)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return Jsonb(value)
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if value is None or pd.isna(value) else value


def postgres_type(kind: pa.DataType) -> str:
    """The type of a column that holds these values."""
    if pa.types.is_list(kind):
        return f"{postgres_type(kind.value_type)}[]"
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return "jsonb"
    return POSTGRES_TYPES.get(str(kind), "text")


POSTGRES_TYPES = {
    "bool": "boolean",
    "int8": "smallint",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "float": "double precision",  # as Feast's own tables for PostgreSQL have it; its tests expect 0.1 back as such
    "double": "double precision",
    "binary": "bytea",
    "date32[day]": "date",
}


AVAILABLE_OFFLINE_STORES = [("local", PostgresCreator)]


class RepoConfig(configs.IntegrationTestRepoConfig):  # type: ignore[misc]
    """Feast's configuration of a test with the compute engine that belongs to the stores."""

    def __init__(self, **values: object) -> None:
        engine = os.environ["UNIVERSAL_BATCH_ENGINE"]
        super().__init__(**{"batch_engine": engine if engine == "local" else {"type": engine}, **values})


configs.IntegrationTestRepoConfig = RepoConfig
