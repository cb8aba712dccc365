"""Feast's online store on the platform's packed values, on Redis and on SQLite.

Every Feast command and client works as on Feast's own stores. What differs: of two rows the one with the later
(event_timestamp, created_timestamp) is kept, whichever comes last, and several views are read in one round trip.
"""
# ruff: noqa: ARG002 - the arguments are Feast's

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from feast import Entity, FeatureView, utils
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import field_validator

from feature_repo.stores.values import FeastRow, OnlineRow, entity_key, to_feast, to_table
from feature_repo.stores.views import view_schema
from graph_features.settings import RedisSettings, load
from graph_features.stores import base
from graph_features.stores.blocks import RowBlock
from graph_features.stores.redis import RedisOnlineStore
from graph_features.stores.sqlite import SqliteOnlineStore

logger = logging.getLogger(__name__)

Progress = Callable[[int], Any] | None


class PackedOnlineStore(OnlineStore):
    """What the stores have in common; one of the platform's stores per project does the work."""

    def __init__(self) -> None:
        self._stores: dict[str, base.OnlineStore] = {}

    @abstractmethod
    def _open(self, config: RepoConfig) -> base.OnlineStore:
        """Make the platform's store for this configuration."""

    def packed(self, config: RepoConfig) -> base.OnlineStore:
        """Return the platform's store behind this one."""
        if config.project not in self._stores:
            self._stores[config.project] = self._open(config)
        return self._stores[config.project]

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        return SupportedAsyncMethods(read=True, write=True)

    def write_table(self, config: RepoConfig, table: FeatureView, rows: pa.Table) -> int:
        """Write rows that are columns already, without a protobuf value each; return how many were stored."""
        view = view_schema(table)
        return self.packed(config).write(view, rows.select(view.arrow_schema.names).cast(view.arrow_schema, safe=False))

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[FeastRow], progress: Progress
    ) -> None:
        """Write rows as Feast's push and its own materialization hand them over."""
        view = view_schema(table)
        self.packed(config).write(view, to_table(view, data))
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self, config: RepoConfig, table: FeatureView, data: list[FeastRow], progress: Progress
    ) -> None:
        """The same without holding up the event loop."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[OnlineRow]:
        """Read one view's rows; absent ones, and those of another feature set, are (None, None)."""
        return self._read(config, [(table, entity_keys, requested_features)])[0]

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[OnlineRow]:
        """The same without holding up the event loop."""
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

    def _read(
        self, config: RepoConfig, requests: Sequence[tuple[FeatureView, Sequence[EntityKeyProto], list[str] | None]]
    ) -> list[list[OnlineRow]]:
        views = [view_schema(table) for table, _, _ in requests]
        wanted = [[entity_key(view, key) for key in keys] for view, (_, keys, _) in zip(views, requests, strict=True)]
        found = self.packed(config).read(list(zip(views, wanted, strict=True)))
        answers = []
        for view, values, (_, _, names) in zip(views, found, requests, strict=True):
            block = RowBlock.from_packed(view, values)
            if block.mismatched.any():
                logger.warning("%s: %d rows are of another feature set", view.name, int(block.mismatched.sum()))
            known = set(view.names)
            answers.append(to_feast(block, view.names if names is None else [n for n in names if n in known]))
        return answers

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[Any],
        join_key_values: dict[str, Any],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: Any,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        # Feast's own reads one view after the other.
        entities = [
            utils._get_unique_entities(table, join_key_values, entity_name_to_join_key_map) for table, _ in grouped_refs
        ]
        requests = [
            (table, utils._get_entity_key_protos(unique), names)
            for (table, names), (unique, _, _) in zip(grouped_refs, entities, strict=True)
        ]
        answers = self._read(config, requests)
        for (table, names), (_, indexes, length), rows in zip(grouped_refs, entities, answers, strict=True):
            utils._populate_response_from_feature_data(
                names,
                rows,
                indexes,
                online_features_response,
                full_feature_names,
                table,
                length,
                include_feature_view_version_metadata,
            )

    async def _read_features_per_fv_async(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self._read_features_per_fv, *args, **kwargs)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Remove the rows of deleted views; nothing needs to be prepared for new ones."""
        for table in tables_to_delete:
            self.packed(config).delete_view(view_schema(table))

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove everything of this project, and nothing else."""
        self.packed(config).teardown()

    async def close(self) -> None:
        for store in self._stores.values():
            store.close()
        self._stores.clear()


class RedisPackedOnlineStoreConfig(FeastConfigBaseModel):
    """Everything else comes from RINGFENCE_REDIS_*: see docs/configuration.md."""

    type: Literal["feature_repo.stores.online.RedisPackedOnlineStore"] = (
        "feature_repo.stores.online.RedisPackedOnlineStore"
    )


class RedisPackedOnlineStore(PackedOnlineStore):
    """One packed value per entity and view on Redis."""

    def _open(self, config: RepoConfig) -> base.OnlineStore:
        return RedisOnlineStore(load(RedisSettings), project=config.project)


class SqlitePackedOnlineStoreConfig(FeastConfigBaseModel):
    """`path` is the file; relative to the feature repo."""

    type: Literal["feature_repo.stores.online.SqlitePackedOnlineStore"] = (
        "feature_repo.stores.online.SqlitePackedOnlineStore"
    )
    path: str = "../.ringfence/online.sqlite"

    @field_validator("path")
    @classmethod
    def _make_folder(cls, path: str) -> str:
        # Feast's registry in the same folder cannot make it, and the configuration is read before either is opened.
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return path


class SqlitePackedOnlineStore(PackedOnlineStore):
    """One packed value per entity and view in a SQLite file."""

    def _open(self, config: RepoConfig) -> base.OnlineStore:
        path = Path(config.online_store.path)
        return SqliteOnlineStore((config.repo_path or Path()) / path, project=config.project)
