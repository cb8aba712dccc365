"""RowBlock: rows of one view as columns, the same from the online store's values and from a historical join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graph_features.errors import SchemaMismatchError, UnknownFeatureError
from graph_features.schema import DType, ViewSchema
from graph_features.stores.codec import Columns, Ragged, from_table, unpack
from graph_features.stores.heads import Bool, Float32, Int64, float32_of

if TYPE_CHECKING:
    import pyarrow as pa

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RowBlock:
    """n rows of one view, some of them perhaps absent: what training and serving read features from.

    `present` is bool[n]. `mismatched` is bool[n]: a value was there but of another feature set or format; such rows
    count as absent. `as_of_ms` (epoch milliseconds) and `created_us` (epoch microseconds) mean nothing where absent.
    """

    view: ViewSchema
    present: Bool
    mismatched: Bool
    columns: Columns

    @classmethod
    def from_packed(cls, view: ViewSchema, values: Sequence[bytes | None]) -> RowBlock:
        """Decode packed values of `view`, None for absent rows."""
        columns, present, mismatched = unpack(view, values)
        return cls(view=view, present=present, mismatched=mismatched, columns=columns)

    @classmethod
    def from_arrow(cls, view: ViewSchema, table: pa.Table, *, prefix: str = "") -> RowBlock:
        """Read a table with event_timestamp, created_timestamp and the features, each behind `prefix`.

        Rows whose event_timestamp is null are absent, as in the result of a historical join. Raises
        SchemaMismatchError.
        """
        wanted = ["event_timestamp", "created_timestamp", *view.names]
        missing = [prefix + name for name in wanted if prefix + name not in table.column_names]
        if missing:
            raise SchemaMismatchError(f"rows for view {view.name}: no columns {', '.join(missing[:5])}")
        table = table.select([prefix + name for name in wanted]).rename_columns(wanted)
        columns = from_table(view, table)
        present = ~table["event_timestamp"].is_null().combine_chunks().to_numpy(zero_copy_only=False)
        return cls(view=view, present=present, mismatched=np.zeros(len(present), np.bool_), columns=columns)

    def __len__(self) -> int:
        return len(self.present)

    @property
    def as_of_ms(self) -> Int64:
        return self.columns.as_of_ms

    @property
    def created_us(self) -> Int64:
        return self.columns.created_us

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.view.names)}

    def _position(self, name: str, *dtypes: DType) -> int:
        feature = self.view.feature(name)
        if feature.dtype not in dtypes:
            expected = " or ".join(dtypes)
            raise UnknownFeatureError(f"{self.view.name}:{name} is of type {feature.dtype}, expected {expected}")
        return self._positions[name]

    def valid(self, name: str) -> Bool:
        """Where the row is present and the feature, of any type, is not null."""
        self.view.feature(name)
        return self.columns.valid[:, self._positions[name]]

    def matrix(self, names: Sequence[str]) -> Float32:
        """Return float32[n, len(names)] of scalar features, NaN for null or absent; timestamps are epoch ms."""
        wanted = tuple(names)
        if wanted not in self.view.scalars:
            # Serving asks for the same names again and again.
            found = [self._position(name, DType.INT64, DType.FLOAT64, DType.TIMESTAMP) for name in wanted]
            self.view.scalars[wanted] = found, [self.view.features[place].dtype is DType.FLOAT64 for place in found]
        places, floating = self.view.scalars[wanted]
        return float32_of(self.columns.slots, self.columns.valid, places, np.array(floating, np.bool_))

    def float64(self, name: str) -> Float64:
        """Return float64[n] of a scalar feature, NaN for null or absent."""
        place = self._position(name, DType.INT64, DType.FLOAT64, DType.TIMESTAMP)
        slots = self.columns.slots[:, place]
        if self.view.features[place].dtype is DType.FLOAT64:
            slots = np.ascontiguousarray(slots).view(np.float64)
        return np.where(self.columns.valid[:, place], slots, np.nan)

    def int64(self, name: str) -> tuple[Int64, Bool]:
        """Return int64[n] of an integer or timestamp (epoch ms) feature, and where it is valid; 0 elsewhere."""
        place = self._position(name, DType.INT64, DType.TIMESTAMP)
        valid = self.columns.valid[:, place]
        return np.where(valid, self.columns.slots[:, place], 0), valid

    def lists(self, name: str) -> tuple[Int64, npt.NDArray[Any]]:
        """Return offsets int64[n + 1] and values of a list feature, empty for null or absent; strings as objects."""
        ragged = self.ragged(name)
        return ragged.offsets, ragged.values

    def ragged(self, name: str) -> Ragged:
        """Return a list feature as it is kept: strings may not have been decoded yet."""
        self._position(name, DType.INT64_LIST, DType.FLOAT64_LIST, DType.STRING_LIST)
        return self.columns.lists[name]

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> RowBlock:
        """Return the block of these rows, in this order; a row may come several times."""
        columns = self.columns
        return RowBlock(
            view=self.view,
            present=self.present[rows],
            mismatched=self.mismatched[rows],
            columns=Columns(
                as_of_ms=columns.as_of_ms[rows],
                created_us=columns.created_us[rows],
                slots=columns.slots[rows],
                valid=columns.valid[rows],
                lists={name: ragged.take(rows) for name, ragged in columns.lists.items()},
            ),
        )
