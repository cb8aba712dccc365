"""The one place where rows are made: any view, any (entity, as_of), from an EdgeTable to an Arrow table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.catalog import catalog
from graph_features.clock import created_timestamp
from graph_features.contracts import CREATED, TIMESTAMP
from graph_features.edges import EdgeTable, Int32, Int64
from graph_features.kernels.timeline import pair_index
from graph_features.rows import AccountRows, PairRows, Rows, to_arrow
from graph_features.schema import EntityKey, ViewSchema
from graph_features.settings import FeatureSettings


@dataclass(frozen=True, kw_only=True)
class Entities:
    """The entities of n rows: join key columns as they are written, and account codes beside them (-1 unknown)."""

    ids: tuple[pa.Array, ...]
    codes: tuple[Int32, ...]

    def __len__(self) -> int:
        return len(self.codes[0])

    @classmethod
    def of_keys(cls, edges: EdgeTable, keys: Sequence[EntityKey]) -> Entities:
        """Return the entities named by `keys`, which all have one length."""
        columns = [list(column) for column in zip(*keys, strict=True)]
        return cls(
            ids=tuple(pa.array(column, pa.string()) for column in columns),
            codes=tuple(edges.codes(column) for column in columns),
        )

    @classmethod
    def of_groups(cls, edges: EdgeTable, entity: str, groups: Int64) -> Entities:
        """Return the entities with these group codes: accounts' own codes, or pair codes (see kernels.timeline)."""
        codes: tuple[npt.NDArray[np.integer], ...] = (groups,)
        if entity == "pair":
            pairs = pair_index(edges)
            codes = (pairs.sender[groups], pairs.receiver[groups])
        ids = edges.memo("account_ids", lambda: pa.array(edges.account_ids, pa.string()))
        return cls(
            ids=tuple(ids.take(pa.array(column)) for column in codes),
            codes=tuple(column.astype(np.int32) for column in codes),
        )


def compute_rows(
    view: ViewSchema, edges: EdgeTable, *, entities: Entities, as_of_ms: Int64, settings: FeatureSettings
) -> pa.Table:
    """Return one row per entity and as_of, with exactly `view.arrow_schema`; entities without history get empty values.

    Raises UnknownFeatureError for a view that is not in the catalogue and FeatureComputationError naming the accounts
    whose features cannot be computed.
    """
    as_of_ms = np.asarray(as_of_ms, np.int64)
    rows = _rows(view, edges, entities, as_of_ms, settings)
    created = pa.scalar(created_timestamp(edges.max_seq), CREATED)
    columns = [*entities.ids, pa.array(as_of_ms).cast(TIMESTAMP), pa.repeat(created, len(entities))]
    features = catalog().view(view.name).features
    columns.extend(to_arrow(feature.compute(rows), feature.schema.dtype) for feature in features)
    return view.check(pa.Table.from_arrays(columns, schema=view.arrow_schema))


def _rows(view: ViewSchema, edges: EdgeTable, entities: Entities, as_of_ms: Int64, settings: FeatureSettings) -> Rows:
    if view.entity == "pair":
        sender, receiver = entities.codes
        return PairRows(edges=edges, as_of_ms=as_of_ms, settings=settings, sender=sender, receiver=receiver)
    return AccountRows(edges=edges, as_of_ms=as_of_ms, settings=settings, account=entities.codes[0])
