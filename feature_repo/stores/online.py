"""Feast's online store on packed values, on Redis and on SQLite.

Every Feast command and client works as on Feast's own stores, for any feature view. What differs: of two rows the one
with the later (event_timestamp, created_timestamp) is kept, whichever comes last; several views are read in one round
trip; a row that was written under another schema counts as missing.
"""
# ruff: noqa: ARG002 - the arguments are Feast's

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from feast import Entity, FeatureView
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import ConfigDict, Field, field_validator

from feature_repo.stores.answers import rows_of
from feature_repo.stores.packing import Packing, packing
from feature_repo.stores.reading import Request, answer, read_blocks
from feature_repo.stores.values import FeastRow, OnlineRow
from graph_features.settings import RedisSettings, load
from graph_features.stores import base
from graph_features.stores.redis import RedisOnlineStore
from graph_features.stores.redis_link import RedisKind, RedisTarget
from graph_features.stores.sqlite import SqliteOnlineStore
from graph_features.stores.storing import PLAIN, Storing

Progress = Callable[[int], Any] | None


class PackedOnlineStore(OnlineStore):
    """What the stores have in common; one of the platform's stores per project does the work."""

    def __init__(self) -> None:
        self._stores: dict[str, base.ValueStore] = {}

    @abstractmethod
    def _open(self, config: RepoConfig) -> base.ValueStore:
        """Make the platform's store for this configuration."""

    def _storing(self, config: RepoConfig, table: Any, event_ms: Sequence[int]) -> Storing:
        """How rows of this view with these event times are put."""
        return PLAIN

    def _deletes(self, config: RepoConfig) -> bool:
        """Whether the rows of deleted views are looked for."""
        return True

    def packed(self, config: RepoConfig) -> base.ValueStore:
        """Return the platform's store behind this one."""
        if config.project not in self._stores:
            self._stores[config.project] = self._open(config)
        return self._stores[config.project]

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        return SupportedAsyncMethods(read=True, write=True)

    def _is_versioned_read_supported(self) -> bool:
        # Rows are kept under the versioned name of their view.
        return True

    def pack_table(self, config: RepoConfig, table: FeatureView, rows: pa.Table) -> Packing:
        """Pack rows that are columns already, without a protobuf value each."""
        return packing(table, config).of_table(rows)

    def put(self, config: RepoConfig, table: FeatureView, rows: Packing) -> int:
        """Write packed rows; return how many were stored, the rest being older than what is there."""
        return self.packed(config).put(rows.names, rows.values, self._storing(config, table, rows.event_ms))

    def write_table(self, config: RepoConfig, table: FeatureView, rows: pa.Table) -> int:
        """`pack_table`, then `put`."""
        return self.put(config, table, self.pack_table(config, table, rows))

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[FeastRow], progress: Progress
    ) -> None:
        """Write rows as Feast's push and its own materialization hand them over."""
        self.put(config, table, packing(table, config).of_rows(data))
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
        """Read one view's rows; absent ones, and those of another schema, are (None, None)."""
        packer = packing(table, config)
        [block] = read_blocks(self.packed(config), [Request(packing=packer, keys=packer.of_keys(entity_keys))])
        known = set(block.view.names)
        wanted = block.view.names if requested_features is None else requested_features
        return rows_of(block, [name for name in wanted if name in known])

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[OnlineRow]:
        """The same without holding up the event loop."""
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

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
        # Feast's own reads one view after the other, and makes an object of every value.
        answer(
            self.packed(config),
            config,
            grouped_refs,
            join_key_values,
            entity_name_to_join_key_map,
            online_features_response,
            full_feature_names=full_feature_names,
            with_versions=include_feature_view_version_metadata,
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
        if self._deletes(config):
            for table in tables_to_delete:
                self.packed(config).delete_rows(packing(table, config).view.name)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove everything of this project, and nothing else."""
        self.packed(config).teardown()

    async def close(self) -> None:
        for store in self._stores.values():
            store.close()
        self._stores.clear()


class RedisPackedOnlineStoreConfig(FeastConfigBaseModel):
    """The options of Feast's own Redis store, and those of ours: see docs/feast.md.

    Without a `connection_string` the address comes from RINGFENCE_REDIS_*: see docs/configuration.md.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True)

    type: Literal["feature_repo.stores.online.RedisPackedOnlineStore"] = (
        "feature_repo.stores.online.RedisPackedOnlineStore"
    )
    connection_string: str | None = Field(default=None, repr=False)
    redis_type: RedisKind = RedisKind.SINGLE
    sentinel_master: str = "mymaster"
    key_ttl_seconds: int | dict[str, int] | None = None
    """Seconds after its last write that a row is kept: for all views, or by view."""
    expire_with_view_ttl: bool = False
    """Remove rows once they are older than their view's ttl; `key_ttl_seconds` of a view goes before."""
    full_scan_for_deletion: bool | None = True
    skip_dedup: bool = False
    """Write without a comparison, so that older rows may overwrite newer ones."""
    client: Literal["redis", "glide"] = "redis"
    """Taken from configurations of Feast's own store; all reads go through redis-py."""


class RedisPackedOnlineStore(PackedOnlineStore):
    """One packed value per entity and view on Redis: a server, a cluster, or what Sentinel watches."""

    def _open(self, config: RepoConfig) -> base.ValueStore:
        options: RedisPackedOnlineStoreConfig = config.online_store
        if options.connection_string is None:
            return RedisOnlineStore(load(RedisSettings), project=config.project)
        target = RedisTarget.from_connection_string(
            options.connection_string, kind=options.redis_type, sentinel_master=options.sentinel_master
        )
        return RedisOnlineStore(target, project=config.project)

    def _storing(self, config: RepoConfig, table: Any, event_ms: Sequence[int]) -> Storing:
        options: RedisPackedOnlineStoreConfig = config.online_store
        seconds = options.key_ttl_seconds
        if isinstance(seconds, dict):
            seconds = seconds.get(table.name)
        if seconds:
            return Storing(after_ms=seconds * 1_000, compare=not options.skip_dedup)
        ttl = getattr(table, "ttl", None)
        if options.expire_with_view_ttl and ttl:
            ttl_ms = int(ttl.total_seconds() * 1_000)
            return Storing(at_ms=[moment + ttl_ms for moment in event_ms], compare=not options.skip_dedup)
        return Storing(compare=not options.skip_dedup)

    def _deletes(self, config: RepoConfig) -> bool:
        return bool(config.online_store.full_scan_for_deletion)


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

    def _open(self, config: RepoConfig) -> base.ValueStore:
        path = Path(config.online_store.path)
        return SqliteOnlineStore((config.repo_path or Path()) / path, project=config.project)
