"""A small catalogue of its own and tables made from Python values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from graph_features.schema import Cadence, DType, FeatureSchema, ViewSchema


def _feature(name: str, dtype: DType) -> FeatureSchema:
    return FeatureSchema(name=name, dtype=dtype, description=name, unit="units", range="any")


@pytest.fixture(scope="session")
def account_view() -> ViewSchema:
    """An account view with every type of feature."""
    types = {f"{dtype.value}_feature": dtype for dtype in DType}
    return ViewSchema(
        name="account_all_types",
        entity="account",
        cadence=Cadence.EVENT,
        description="Every type.",
        features=tuple(_feature(name, dtype) for name, dtype in types.items()),
    )


@pytest.fixture(scope="session")
def pair_view() -> ViewSchema:
    """A pair view of scalars only, more than fit one word of the null bitmap."""
    return ViewSchema(
        name="pair_scalars",
        entity="pair",
        cadence=Cadence.EVENT,
        description="Scalars.",
        features=tuple(_feature(f"x{i}", DType.FLOAT64 if i % 2 else DType.INT64) for i in range(70)),
    )


Row = tuple[tuple[str, ...], int, int, Sequence[Any]]


@pytest.fixture(scope="session")
def make_table() -> Callable[[ViewSchema, Sequence[Row]], pa.Table]:
    """Rows of (key, as_of_ms, created_us, values in schema order) as a view's table."""

    def make(view: ViewSchema, rows: Sequence[Row]) -> pa.Table:
        schema = view.arrow_schema
        columns = [[row[0][i] for row in rows] for i in range(len(view.keys))]
        columns += [[row[1] for row in rows], [row[2] for row in rows]]
        columns += [[row[3][i] for row in rows] for i in range(len(view.features))]
        arrays = []
        for field, values in zip(schema, columns, strict=True):
            if pa.types.is_timestamp(field.type):
                arrays.append(pa.array(values, pa.int64()).cast(field.type))
            else:
                arrays.append(pa.array(values, field.type))
        return pa.Table.from_arrays(arrays, schema=schema)

    return make
