"""Arrow rows into PostgreSQL tables by COPY, whatever the types of the columns there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from typing import Any

import pyarrow as pa
from psycopg import sql

from feature_repo.stores.pgread import Cursor, described
from graph_features.errors import SchemaMismatchError
from graph_features.stores.pgbinary import arrow_type, readable
from graph_features.stores.pgcopy import copy_chunks, postgres_type

_INCOMING = sql.Identifier("pg_temp", "incoming_rows")
_WIDER = {
    pa.int8(): pa.int16(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.int64(),
    pa.float16(): pa.float32(),
    pa.null(): pa.string(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.date64(): pa.date32(),
}
_STAGED = {199, 1003, 1014, 1015}
"""Arrays of text by another name, whose binary form says so."""
_READ_AS = {21: pa.int16(), 1005: pa.list_(pa.int16()), 1082: pa.date32(), 1182: pa.list_(pa.date32())}


def copy_rows(cursor: Cursor, into: sql.Composable, table: pa.Table) -> None:
    """COPY a table whose columns have exactly the types of the target's."""
    with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(into, _names(table))) as copy:
        for chunk in copy_chunks(table):
            copy.write(chunk)


def append_rows(cursor: Cursor, into: sql.Composable, table: pa.Table) -> None:
    """Append rows to a table, values cast to its columns' types; raise SchemaMismatchError where names do not fit."""
    targets = dict(described(cursor, sql.SQL("SELECT * FROM {}").format(into)))
    unknown = [name for name in table.column_names if name not in targets]
    if unknown:
        raise SchemaMismatchError(
            f"rows for table {into.as_string(cursor)}: no columns {', '.join(unknown)}; it has {', '.join(targets)}"
        )
    rows = storable(table)
    if all(_is_binary(targets[field.name], field.type) for field in rows.schema):
        fields = [pa.field(field.name, _copied_as(targets[field.name])) for field in rows.schema]
        copy_rows(cursor, into, rows.cast(pa.schema(fields)))
        return
    # JSON, numeric, uuid and the like go through a table of what came, and PostgreSQL's own casts.
    create_table(cursor, _INCOMING, rows.schema, temporary=True)
    copy_rows(cursor, _INCOMING, rows)
    columns = [
        sql.SQL("{}::{}").format(sql.Identifier(name), sql.SQL(_type_name(cursor, targets[name])))
        for name in rows.column_names
    ]
    insert = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}")
    cursor.execute(insert.format(into, _names(rows), sql.SQL(", ").join(columns), _INCOMING))
    cursor.execute(sql.SQL("DROP TABLE {}").format(_INCOMING))


def create_table(cursor: Cursor, name: sql.Composable, schema: pa.Schema, *, temporary: bool = False) -> None:
    """Create a table for rows of a schema as `storable` returns them."""
    definitions = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(postgres_type(field.type))) for field in schema
    )
    kind = sql.SQL("TEMPORARY " if temporary else "")
    end = sql.SQL(" ON COMMIT DROP" if temporary else "")
    cursor.execute(sql.SQL("CREATE {}TABLE {} ({}){}").format(kind, name, definitions, end))


def write_tables(cursor: Cursor, into: sql.Composable, tables: Iterable[pa.Table], *, create: bool) -> None:
    """Append tables of one schema, the target made for the first of them if so asked."""
    for table in tables:
        rows = storable(table)
        if create:
            create_table(cursor, into, rows.schema)
            create = False
        append_rows(cursor, into, rows)


def storable(table: pa.Table) -> pa.Table:
    """The same rows in types that PostgreSQL has: small numbers wider, decimals and times as text, nested as JSON."""
    columns = [_storable(column) for column in table.columns]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _storable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    dtype = column.type
    if pa.types.is_dictionary(dtype):
        return _storable(column.cast(dtype.value_type))
    if dtype in _WIDER:
        return column.cast(_WIDER[dtype])
    if pa.types.is_timestamp(dtype) and dtype.unit == "ns":
        return column.cast(pa.timestamp("us", dtype.tz), safe=False)
    if pa.types.is_decimal(dtype) or pa.types.is_time(dtype):
        return column.cast(pa.string())
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        items = _stored_item(dtype.value_type)
        return _as_json(column) if items is None else column.cast(pa.list_(items))
    return _as_json(column) if pa.types.is_struct(dtype) or pa.types.is_map(dtype) else column


def _stored_item(dtype: pa.DataType) -> pa.DataType | None:
    """The type of a list's items in PostgreSQL, None where the list has to be JSON."""
    if pa.types.is_nested(dtype):
        return None
    if pa.types.is_timestamp(dtype) and dtype.unit == "ns":
        return pa.timestamp("us", dtype.tz)
    return _WIDER.get(dtype, dtype)


def _as_json(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """JSON text; there is nothing columnar to make it from."""
    maps = pa.types.is_map(column.type)
    text = partial(json.dumps, default=str)
    values = (None if value is None else text(dict(value) if maps else value) for value in column.to_pylist())
    return pa.chunked_array([pa.array(values, pa.string())])


def _is_binary(target: int, dtype: pa.DataType) -> bool:
    """Whether COPY can take a column as it is once Arrow has cast it."""
    if target in _STAGED or not readable(target):
        return False
    wanted = _copied_as(target)
    return bool(wanted == dtype or (_kind(wanted) == _kind(dtype) and _kind(wanted)))


def _copied_as(target: int) -> pa.DataType:
    return _READ_AS.get(target) or arrow_type(target)


def _kind(dtype: pa.DataType) -> str:
    """Types of one kind are cast by Arrow, which refuses what does not fit."""
    if pa.types.is_list(dtype):
        item = _kind(dtype.value_type)
        return f"{item}s" if item else ""
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return "number"
    if pa.types.is_timestamp(dtype):
        return "instant" if dtype.tz else "time"
    return "text" if pa.types.is_string(dtype) else ""


def _type_name(cursor: Cursor, oid: int) -> str:
    row: Any = cursor.execute("SELECT format_type(%s::oid, NULL)", [oid]).fetchone()
    return str(row[0])


def _names(table: pa.Table) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, table.column_names))
