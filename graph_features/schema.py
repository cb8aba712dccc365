"""What a feature view holds: named, ordered, typed features. Pure data, so that a scoring worker needs no kernels.

`graph_features.catalog` builds these from the feature functions; a model bundle carries them as JSON; the stores
encode rows by them and refuse rows of another fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import pyarrow as pa

from graph_features.contracts import CREATED, TIMESTAMP
from graph_features.errors import SchemaMismatchError, UnknownFeatureError


class DType(StrEnum):
    """A feature's type. Timestamps are epoch milliseconds, UTC; lists have any length and no null items."""

    INT64 = "int64"
    FLOAT64 = "float64"
    TIMESTAMP = "timestamp"
    INT64_LIST = "int64_list"
    FLOAT64_LIST = "float64_list"
    STRING_LIST = "string_list"

    @property
    def is_list(self) -> bool:
        return self in _LISTS

    @property
    def arrow(self) -> pa.DataType:
        return _ARROW_TYPES[self]


_ARROW_TYPES: dict[DType, pa.DataType] = {
    DType.INT64: pa.int64(),
    DType.FLOAT64: pa.float64(),
    DType.TIMESTAMP: TIMESTAMP,
    DType.INT64_LIST: pa.list_(pa.int64()),
    DType.FLOAT64_LIST: pa.list_(pa.float64()),
    DType.STRING_LIST: pa.list_(pa.string()),
}


_LISTS = frozenset(dtype for dtype, arrow in _ARROW_TYPES.items() if pa.types.is_list(arrow))


class Cadence(StrEnum):
    """When a view's rows are renewed: by what happens to the account, or on a schedule."""

    EVENT = "event"
    SLICE = "slice"


class Renewal(StrEnum):
    """What renews the rows of an event view."""

    TRANSACTION = "transaction"
    STATUS = "status"
    LABEL = "label"


ENTITY_KEYS: dict[str, tuple[str, ...]] = {"account": ("account_id",), "pair": ("sender_id", "receiver_id")}
"""The two entities and their join keys, in order."""

EntityKey = tuple[str, ...]
"""Join key values in that order: (account_id,) or (sender_id, receiver_id)."""


@dataclass(frozen=True, kw_only=True)
class FeatureSchema:
    """One column of a view. `empty` is its value for an account (or pair) without history; None is null."""

    name: str
    dtype: DType
    description: str
    unit: str
    range: str
    empty: float | None = None


@dataclass(frozen=True, kw_only=True)
class ViewSchema:
    """One feature view: entity, cadence and ordered features.

    `code_hash` changes when the definition or the code of any of its features changes. `max_age_s` is the age in
    seconds after which a slice row counts as absent, online and in training alike (Feast's TTL); None for event views.
    """

    name: str
    entity: str
    cadence: Cadence
    description: str
    features: tuple[FeatureSchema, ...]
    renewed_by: tuple[Renewal, ...] = ()
    max_age_s: int | None = None
    code_hash: str = field(default="", compare=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """Join keys, in order."""
        return ENTITY_KEYS[self.entity]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @cached_property
    def lists(self) -> tuple[tuple[int, str, DType], ...]:
        """Position, name and type of each list feature, in order."""
        return tuple((at, one.name, one.dtype) for at, one in enumerate(self.features) if one.dtype.is_list)

    @cached_property
    def scalars(self) -> dict[tuple[str, ...], tuple[list[int], list[bool]]]:
        """Positions of scalar features and which are floats, by the names that were asked for: kept by readers."""
        return {}

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """Columns of a table of rows: join keys, event_timestamp (as_of), created_timestamp, then the features."""
        fields = [pa.field(key, pa.string(), nullable=False) for key in self.keys]
        fields.append(pa.field("event_timestamp", TIMESTAMP, nullable=False))
        fields.append(pa.field("created_timestamp", CREATED, nullable=False))
        fields.extend(pa.field(feature.name, feature.dtype.arrow) for feature in self.features)
        return pa.schema(fields)

    @cached_property
    def fingerprint(self) -> int:
        """64 bits over names, order and types: what a packed row is checked against when it is read."""
        text = json.dumps([self.name, self.entity, [(f.name, f.dtype.value) for f in self.features]])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    @cached_property
    def _by_name(self) -> dict[str, FeatureSchema]:
        return {feature.name: feature for feature in self.features}

    def feature(self, name: str) -> FeatureSchema:
        feature = self._by_name.get(name)
        if feature is not None:
            return feature
        raise UnknownFeatureError(f"view {self.name} has no feature {name!r}; it has {', '.join(self.names)}")

    def check(self, table: pa.Table) -> pa.Table:
        """Return `table` if its columns are exactly this view's, in order and type; raise SchemaMismatchError."""
        if not table.schema.equals(self.arrow_schema, check_metadata=False):
            expected, got = _columns(self.arrow_schema), _columns(table.schema)
            raise SchemaMismatchError(f"rows for view {self.name}: expected columns {expected}, got {got}")
        return table

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ViewSchema:
        return cls(
            **{
                **data,
                "cadence": Cadence(data["cadence"]),
                "renewed_by": tuple(Renewal(kind) for kind in data["renewed_by"]),
                "features": tuple(FeatureSchema(**{**f, "dtype": DType(f["dtype"])}) for f in data["features"]),
            }
        )


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name}: {f.type}{'' if f.nullable else ' not null'}" for f in schema)
