"""Feast's feature views as the platform's schemas, and the types of both."""

from __future__ import annotations

from typing import Any

from feast.types import Array, FeastType, Float64, Int64, String, UnixTimestamp

from feature_repo.stores.source import ViewSource
from graph_features.errors import SchemaMismatchError
from graph_features.schema import ENTITY_KEYS, Cadence, DType, FeatureSchema, ViewSchema

FEAST_TYPES: dict[DType, FeastType] = {
    DType.INT64: Int64,
    DType.FLOAT64: Float64,
    DType.TIMESTAMP: UnixTimestamp,
    DType.INT64_LIST: Array(Int64),
    DType.FLOAT64_LIST: Array(Float64),
    DType.STRING_LIST: Array(String),
}


def view_schema(feature_view: Any) -> ViewSchema:
    """Return the schema of a Feast feature view, the one that its rows are packed by; raise SchemaMismatchError.

    Feast keeps no order of features (it puts them through sets), so that of our own views comes with their source, and
    features of others are taken by name.
    """
    if isinstance(feature_view.batch_source, ViewSource):
        return feature_view.batch_source.view
    keys = {column.name for column in feature_view.entity_columns}
    entities = [entity for entity, names in ENTITY_KEYS.items() if keys == set(names)]
    if not entities:
        expected = " or ".join(str(names) for names in ENTITY_KEYS.values())
        raise SchemaMismatchError(f"view {feature_view.name}: join keys are {sorted(keys)}, expected {expected}")
    fields = sorted(feature_view.features, key=lambda field: str(field.name))
    return ViewSchema(
        name=feature_view.name,
        entity=entities[0],
        cadence=Cadence.SLICE if feature_view.ttl else Cadence.EVENT,
        description=feature_view.description,
        features=tuple(_feature(feature_view.name, field) for field in fields),
        max_age_s=int(feature_view.ttl.total_seconds()) if feature_view.ttl else None,
    )


def _feature(view_name: str, field: Any) -> FeatureSchema:
    for dtype, feast_type in FEAST_TYPES.items():
        if field.dtype == feast_type:
            return FeatureSchema(name=field.name, dtype=dtype, description=field.description, unit="", range="")
    raise SchemaMismatchError(
        f"view {view_name}: feature {field.name} is of Feast type {field.dtype}, "
        f"expected one of {', '.join(str(known) for known in FEAST_TYPES.values())}"
    )
