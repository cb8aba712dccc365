"""What feature functions take and give: the rows that are asked for, and one column over them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.edges import EdgeTable, Int32, Int64
from graph_features.schema import DType
from graph_features.settings import FeatureSettings

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ListColumn:
    """A ragged column: row i holds values[offsets[i]:offsets[i + 1]]. Strings come as an Arrow array."""

    offsets: Int64
    values: npt.NDArray[Any] | pa.Array


Column = npt.NDArray[Any] | np.ma.MaskedArray[Any, Any] | ListColumn
"""int64 or float64 of length n; NaN in floats and masked items in integers are null."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows to compute. `memo` keeps intermediate results that several features of the same rows share."""

    edges: EdgeTable
    as_of_ms: Int64
    settings: FeatureSettings
    shared: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.as_of_ms)

    def memo(self, key: Hashable, compute: Callable[[], T]) -> T:
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class AccountRows(Rows):
    """n (account code, as_of) rows, in any order. Each sees what was known strictly before its as_of.

    Slice features may rely on all rows having one as_of.
    """

    account: Int32


@dataclass(frozen=True, kw_only=True)
class PairRows(Rows):
    """n (sender code, receiver code, as_of) rows."""

    sender: Int32
    receiver: Int32


def to_arrow(column: Column, dtype: DType) -> pa.Array:
    """Return `column` as an Arrow array of the feature's type, nulls included."""
    if isinstance(column, ListColumn):
        values = column.values
        if not isinstance(values, pa.Array):
            values = pa.array(values, dtype.arrow.value_type)
        return pa.ListArray.from_arrays(pa.array(column.offsets, pa.int32()), values)
    if isinstance(column, np.ma.MaskedArray):
        return _integers(column.data, np.ma.getmaskarray(column)).cast(dtype.arrow)
    if column.dtype.kind == "f":
        return _with_nulls(pa.float64(), np.ascontiguousarray(column, np.float64), np.isnan(column))
    return pa.array(column, pa.int64()).cast(dtype.arrow)


def _integers(values: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> pa.Array:
    from graph_features.kernels.columns import zero_where

    return _with_nulls(pa.int64(), zero_where(np.ascontiguousarray(values), mask), mask)


def _with_nulls(dtype: pa.DataType, values: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> pa.Array:
    """Return an array over the memory of `values`: pa.array(values, mask=...) takes ten times as long."""
    valid = pa.py_buffer(np.packbits(~mask, bitorder="little")) if mask.any() else None
    return pa.Array.from_buffers(dtype, len(values), [valid, pa.py_buffer(values)])
