"""What both offline plugins make of a historical request before they ask their engine."""
# ruff: noqa: ARG002 - the arguments are Feast's

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
from feast.errors import FeastEntityDFMissingColumnsError
from feast.feature_view import FeatureView
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage, ValidationReference

UTC_MICROS = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, kw_only=True)
class AsOfView:
    """One requested view: for each entity row its newest row at or before the entity's time, not older than `ttl_s`.

    `keys` are (column of the view, column of the entity rows); `features` (column of the view, name in the answer).
    """

    name: str
    source: Any
    keys: tuple[tuple[str, str], ...]
    features: tuple[tuple[str, str], ...]
    timestamp: str
    created: str | None
    ttl_s: int

    @property
    def columns(self) -> list[str]:
        """Every column of the view that is needed, once."""
        times = [self.timestamp, *([self.created] if self.created else [])]
        return list(dict.fromkeys([*(key for key, _ in self.keys), *times, *(column for column, _ in self.features)]))


def requested_views(
    feature_refs: list[str],
    feature_views: list[FeatureView],
    registry: BaseRegistry,
    project: str,
    *,
    full_feature_names: bool,
    row_timestamps: bool,
) -> list[AsOfView]:
    """Resolve aliases, join key maps, field mappings and names.

    With `row_timestamps` every view also answers `<name>__event_timestamp` and `<name>__created_timestamp` of the row
    that was joined, null where none was.
    """
    projections: list[tuple[Any, Any]] = [(view.projection, view.batch_source) for view in feature_views]
    sources = {projection.name_to_use(): source for projection, source in projections}
    epoch = pd.Timestamp(0, tz="UTC").to_pydatetime()
    contexts = offline_utils.get_feature_view_query_context(
        feature_refs, feature_views, registry, project, (epoch, epoch)
    )
    views = []
    for context in contexts:
        prefix = f"{context.name}__"
        shown = [(column, context.field_mapping.get(column, column)) for column in context.features]
        features = [(column, prefix + name if full_feature_names else name) for column, name in shown]
        created = context.created_timestamp_column or None
        if row_timestamps:
            features.append((context.timestamp_field, f"{prefix}event_timestamp"))
            features += [(created, f"{prefix}created_timestamp")] if created else []
        keys = (selection.partition(" AS ") for selection in context.entity_selections)
        views.append(
            AsOfView(
                name=context.name,
                source=sources[context.name],
                keys=tuple((column, key) for column, _, key in keys),
                features=tuple(features),
                timestamp=context.timestamp_field,
                created=created,
                ttl_s=context.ttl,
            )
        )
    return views


def entity_rows(entity_df: pd.DataFrame) -> tuple[pa.Table, str]:
    """Return the entity data frame as Arrow, its time in UTC, and the name of the time column."""
    column = offline_utils.infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
    moments = pd.to_datetime(entity_df[column], utc=True)
    # A number stands in for the time, which may be of any type, and may be the only column.
    table = pa.Table.from_pandas(entity_df.assign(**{column: 0}), preserve_index=False)
    position = list(entity_df.columns).index(column)
    return table.set_column(position, column, pa.array(moments, UTC_MICROS)).replace_schema_metadata(), column


def check_columns(columns: Sequence[str], views: Sequence[AsOfView], timestamp: str) -> None:
    """Raise Feast's error when entity rows lack a join key or the time."""
    keys = {key for view in views for _, key in view.keys}
    missing = (keys | {timestamp}) - set(columns)
    if missing:
        raise FeastEntityDFMissingColumnsError(keys | {timestamp}, missing)  # type: ignore[no-untyped-call]


class ColumnarRetrievalJob(RetrievalJob):
    """A retrieval that answers an Arrow table; `run` is called when the answer is asked for.

    `to_arrow` keeps it for the next call. `to_df` does not: pandas takes over column after column, so that the answer
    is never in memory twice.
    """

    def __init__(
        self,
        run: Callable[[], pa.Table],
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
        persist: Callable[[pa.Table, SavedDatasetStorage, bool], None] | None = None,
    ) -> None:
        self._run = run
        self._table: pa.Table | None = None
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata
        self._persist = persist

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        if self._table is None:
            self._table = self._run()
        return self._table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    def to_df(
        self, validation_reference: ValidationReference | None = None, timeout: int | None = None
    ) -> pd.DataFrame:
        kept = self._table is not None
        answer = self.to_arrow(validation_reference=validation_reference, timeout=timeout)
        if not kept:
            self._table = None
        # Whoever else holds the answer keeps it: what is destroyed is this table's hold on each column.
        taken = pa.Table.from_arrays(answer.columns, schema=answer.schema)
        del answer
        frame: pd.DataFrame = taken.to_pandas(self_destruct=True)
        frame.index = pd.RangeIndex(len(frame))
        return frame

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the answer to a saved dataset."""
        if self._persist is None:
            raise NotImplementedError("this retrieval cannot be saved as a dataset")
        self._persist(self.to_arrow(timeout=timeout), storage, allow_overwrite)
