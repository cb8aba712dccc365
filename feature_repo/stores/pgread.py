"""The answer of a PostgreSQL query in Arrow columns, by binary COPY."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from graph_features.stores.pgbinary import BinaryColumns, readable

Cursor = psycopg.Cursor[Any]

_CAST: dict[int, tuple[str, int]] = {1700: ("float8", 701), 1231: ("float8[]", 1022)}
_BLOCK_BYTES = 8 << 20
_AS_TEXT, _AS_TEXTS = ("text", 25), ("text[]", 1009)


def fetch(cursor: Cursor, query: sql.Composable) -> pa.Table:
    """Run a query and return its rows in their order; numbers without a fixed width come as float64, what Arrow has no
    column for as text."""
    columns, readable_query = prepared(cursor, query)
    return pa.Table.from_batches(list(stream(cursor, columns, readable_query)), columns.schema)


def prepared(cursor: Cursor, query: sql.Composable) -> tuple[BinaryColumns, sql.Composable]:
    """Return the columns of a query's answer, and the query with casts of those that cannot be read as they are."""
    found = described(cursor, query)
    casts = casts_of(cursor, [oid for _, oid in found])
    names, oids = tuple(name for name, _ in found), tuple(casts[oid][1] if oid in casts else oid for _, oid in found)
    columns = BinaryColumns(names=names, oids=oids)
    if not casts:
        return columns, query
    # By place, so that two columns of one name are no matter.
    places = [sql.Identifier(f"c{i}") for i in range(len(found))]
    shown = [cast_column(place, casts.get(oid)) for place, (_, oid) in zip(places, found, strict=True)]
    template = sql.SQL("SELECT {} FROM ({}) AS answer ({})")
    return columns, template.format(sql.SQL(", ").join(shown), query, sql.SQL(", ").join(places))


def stream(cursor: Cursor, columns: BinaryColumns, query: sql.Composable) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a prepared query as they come."""
    with cursor.copy(sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(query)) as copy:
        yield from columns.read(_blocks(copy))


def described(cursor: Cursor, query: sql.Composable) -> list[tuple[str, int]]:
    """Names and type numbers of a query's columns, without running it."""
    answer = cursor.execute(sql.SQL("SELECT * FROM ({}) AS described LIMIT 0").format(query)).description or []
    return [(column.name, column.type_code) for column in answer]


def casts_of(cursor: Cursor, oids: list[int]) -> Mapping[int, tuple[str, int]]:
    """For types that cannot be read as they are: the name of the type to cast to, and its number."""
    unknown = [oid for oid in set(oids) if not readable(oid) and oid not in _CAST]
    arrays: set[int] = set()
    if unknown:
        rows = cursor.execute(
            "SELECT oid::int8 FROM pg_type WHERE oid = ANY(%s::oid[]) AND typcategory = 'A'", [unknown]
        )
        arrays = {oid for (oid,) in rows.fetchall()}
    others = {oid: _AS_TEXTS if oid in arrays else _AS_TEXT for oid in unknown}
    return {**{oid: cast for oid, cast in _CAST.items() if oid in oids}, **others}


def cast_column(column: sql.Composable, cast: tuple[str, int] | None) -> sql.Composable:
    """The column, cast if need be."""
    return column if cast is None else sql.SQL("{}::{}").format(column, sql.SQL(cast[0]))


def _blocks(messages: Iterable[Any]) -> Iterator[list[Any]]:
    """The messages in lists of some megabytes."""
    block: list[Any] = []
    size = 0
    for message in messages:
        block.append(message)
        size += len(message)
        if size >= _BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block
