"""The answer of a PostgreSQL query as an Arrow table, by COPY and Arrow's CSV reader."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from psycopg import sql

_SCALARS: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int2": pa.int32(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "numeric": pa.float64(),
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "timestamp": pa.timestamp("us"),
    "date": pa.date32(),
}


def fetch(cursor: psycopg.Cursor[Any], query: sql.Composable) -> pa.Table:
    """Run a query and return its rows in their order; types that Arrow has no column for come as text."""
    types = _types(cursor, query)
    cursor.execute("SET LOCAL datestyle = 'ISO'")
    cursor.execute("SET LOCAL timezone = 'UTC'")
    with cursor.copy(sql.SQL("COPY ({}) TO STDOUT (FORMAT csv)").format(query)) as copy:
        data = pa.BufferReader(b"".join(copy))
    read = {f"c{i}": _read_as(dtype) for i, (_, dtype) in enumerate(types)}
    if not data.size():
        table = pa.table({name: pa.array([], dtype) for name, dtype in read.items()})
    else:
        table = pacsv.read_csv(
            data,
            read_options=pacsv.ReadOptions(column_names=list(read)),
            parse_options=pacsv.ParseOptions(newlines_in_values=pa.string() in read.values()),
            convert_options=pacsv.ConvertOptions(
                column_types=read,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                true_values=["t"],
                false_values=["f"],
            ),
        )
    columns = [_converted(table[f"c{i}"], dtype) for i, (_, dtype) in enumerate(types)]
    return pa.Table.from_arrays(columns, names=[name for name, _ in types])


def _types(cursor: psycopg.Cursor[Any], query: sql.Composable) -> list[tuple[str, pa.DataType]]:
    described = cursor.execute(sql.SQL("SELECT * FROM ({}) AS described LIMIT 0").format(query)).description or []
    return [(column.name, _arrow_type(cursor.connection.adapters.types, column.type_code)) for column in described]


def _arrow_type(registry: Any, oid: int) -> pa.DataType:
    info = registry.get(oid)
    if info is None:
        return pa.string()
    scalar = _SCALARS.get(info.name, pa.string())
    return pa.list_(scalar) if oid == info.array_oid else scalar


def _read_as(dtype: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_list(dtype) else dtype


def _converted(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    if not pa.types.is_list(dtype):
        return column
    return pa.chunked_array([_lists(chunk, dtype) for chunk in column.chunks], dtype)


def _lists(text: pa.Array, dtype: pa.ListType) -> pa.Array:
    """Read PostgreSQL's text form of one-dimensional arrays: {1,2}, {a,"b c"}, {}."""
    if pc.any(pc.match_substring_regex(text, r'["\\]')).as_py():
        return pa.array([None if value is None else _items(value) for value in text.to_pylist()], dtype)
    inner = pc.utf8_slice_codeunits(text, 1, -1)
    filled = pc.fill_null(inner, "")
    split = pc.split_pattern(filled, ",")
    empty = pc.equal(filled, "").to_numpy(zero_copy_only=False)
    lengths = split.value_lengths().to_numpy() * ~empty
    items = split.flatten()
    if empty.any():
        items = items.filter(pc.not_equal(items, ""))
    if dtype.value_type == pa.bool_():
        items = pc.equal(items, "t")
    offsets = pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, items.cast(dtype.value_type))
    return pc.if_else(text.is_valid(), lists, pa.scalar(None, dtype)) if text.null_count else lists


def _items(value: str) -> list[str]:
    """Items of an array whose text form quotes some of them; backslashes escape within quotes."""
    reader = csv.reader(io.StringIO(value[1:-1]), escapechar="\\", doublequote=False)
    return next(iter(reader), [])
