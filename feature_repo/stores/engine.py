"""Feast's compute engine without a Python object per value: what `feast apply` and `feast materialize` run through."""
# ruff: noqa: ARG002 - the arguments are Feast's

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Literal

import pyarrow as pa
from feast import Entity
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_column_names

from feature_repo.stores.online import PackedOnlineStore
from feature_repo.stores.source import ViewSource
from graph_features.stores.base import OfflineStore

ROWS_PER_WRITE = 20_000


class ColumnarComputeEngineConfig(FeastConfigBaseModel):
    """Nothing to configure."""

    type: Literal["feature_repo.stores.engine.ColumnarComputeEngine"] = (
        "feature_repo.stores.engine.ColumnarComputeEngine"
    )


class ColumnarComputeEngine(LocalComputeEngine):
    """Creates the tables of views, and moves their rows online in columns; all else is Feast's local engine."""

    def __init__(self, *, type: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def update(
        self,
        project: str,
        views_to_delete: Sequence[Any],
        views_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
    ) -> None:
        """Create the offline tables of views. Rows of deleted views stay: they cannot be had back."""
        sources = [getattr(view, "batch_source", None) for view in views_to_keep]
        schemas = [source.view for source in sources if isinstance(source, ViewSource)]
        if schemas:
            with closing(self._offline_rows()) as store:
                for schema in schemas:
                    store.create_view(schema)

    def _offline_rows(self) -> OfflineStore:
        # Only the configured plugin is imported, and it is already.
        module = importlib.import_module(type(self.offline_store).__module__)
        store: OfflineStore = module.offline_store(self.repo_config)
        return store

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        if not isinstance(self.online_store, PackedOnlineStore) or not _is_plain(view):
            return super()._materialize_one(registry, task, **kwargs)
        rows = self._newest_rows(registry, task)
        bar = task.tqdm_builder(rows.num_rows) if task.tqdm_builder else None
        # One part is packed while the one before is on its way.
        with ThreadPoolExecutor(1) as sender:
            sending: Future[int] | None = None
            for start in range(0, rows.num_rows, ROWS_PER_WRITE):
                part = rows.slice(start, ROWS_PER_WRITE)
                packed = self.online_store.pack_table(self.repo_config, view, part)
                if sending is not None:
                    sending.result()
                sending = sender.submit(self.online_store.put, self.repo_config, view, packed)
                if bar is not None:
                    bar.update(part.num_rows)
            if sending is not None:
                sending.result()
        if bar is not None:
            bar.close()
        name = f"{view.name}-{task.start_time}-{task.end_time}"
        return LocalMaterializationJob(job_id=name, status=MaterializationJobStatus.SUCCEEDED)

    def _newest_rows(self, registry: BaseRegistry, task: MaterializationTask) -> pa.Table:
        """The newest row of each entity in the period, columns named as the view names them."""
        view: Any = task.feature_view
        source = view.batch_source
        if isinstance(source, ViewSource):
            keys, features = [column.name for column in view.entity_columns], [one.name for one in view.features]
            event: str = source.timestamp_field
            created: str | None = source.created_timestamp_column
        else:
            entities = [registry.get_entity(name, task.project) for name in view.entities]
            keys, features, event, created = _get_column_names(view, entities)
        rows: pa.Table = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=keys,
            feature_name_columns=features,
            timestamp_field=event,
            created_timestamp_column=created,
            start_date=task.start_time,
            end_date=task.end_time,
        ).to_arrow()
        mapping = source.field_mapping or {}
        return rows.rename_columns([mapping.get(name, name) for name in rows.column_names])


def _is_plain(view: Any) -> bool:
    """Whether rows go online as they are in the source, so that nothing but columns need moving."""
    if isinstance(getattr(view, "batch_source", None), ViewSource):
        return True
    changed = ("feature_transformation", "aggregations", "filter", "enable_validation", "source_views", "offline")
    return bool(view.batch_source and view.online) and not any(getattr(view, name, None) for name in changed)
