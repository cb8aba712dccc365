"""PostgreSQL COPY to and from Arrow: columns at both ends, no Python object per value."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as csv

from graph_features.sources.connections import Connection

_WRITE: Final = csv.WriteOptions(include_header=False)
_PIECE_ROWS: Final = 262_144  # some 20 MB of text at a time


def copy_in(connection: Connection, statement: bytes, table: pa.Table) -> None:
    """Send `table` to a COPY … FROM STDIN (FORMAT csv) statement, columns in the statement's order."""
    text = io.BytesIO()
    csv.write_csv(table, text, _WRITE)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(text.getbuffer())


def copy_out(
    connection: Connection, statement: bytes, parameters: Mapping[str, Any], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yield the rows of a COPY … TO STDOUT (FORMAT csv) statement in pieces; timestamps come as epoch milliseconds."""
    lines: list[bytes] = []
    with connection.cursor() as cursor, cursor.copy(statement, parameters) as copy:
        for line in copy:
            lines.append(bytes(line))
            if len(lines) == _PIECE_ROWS:
                yield _parse(lines, schema)
                lines = []
    if lines:
        yield _parse(lines, schema)


def _parse(lines: list[bytes], schema: pa.Schema) -> pa.Table:
    wire_types = {field.name: pa.int64() if pa.types.is_timestamp(field.type) else field.type for field in schema}
    table = csv.read_csv(
        io.BytesIO(b"".join(lines)),
        csv.ReadOptions(column_names=schema.names),
        csv.ParseOptions(newlines_in_values=True),
        csv.ConvertOptions(
            column_types=wire_types,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["t"],
            false_values=["f"],
        ),
    )
    return table.cast(schema)
