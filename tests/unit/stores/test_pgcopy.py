"""PostgreSQL's binary COPY format: what is written is what the server would write, and comes back as it was."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_features.errors import SchemaMismatchError
from graph_features.stores.pgbinary import BinaryColumns
from graph_features.stores.pgcopy import copy_chunks, postgres_type

HEAD = 19
TYPES: dict[str, tuple[pa.DataType, int, int, st.SearchStrategy[Any]]] = {
    "bool": (pa.bool_(), 16, 1000, st.booleans()),
    "int4": (pa.int32(), 23, 1007, st.integers(-(2**31), 2**31 - 1)),
    "int8": (pa.int64(), 20, 1016, st.integers(-(2**63), 2**63 - 1)),
    "float4": (pa.float32(), 700, 1021, st.floats(width=32, allow_nan=False)),
    "float8": (pa.float64(), 701, 1022, st.floats(allow_nan=False)),
    "text": (pa.string(), 25, 1009, st.text(max_size=9)),
    "bytea": (pa.binary(), 17, 1001, st.binary(max_size=9)),
    "timestamp": (pa.timestamp("us"), 1114, 1115, st.integers(-(10**15), 10**16)),
    "timestamptz": (pa.timestamp("us", "UTC"), 1184, 1185, st.integers(-(10**15), 10**16)),
}
"""Arrow type, PostgreSQL's number of it and of its arrays, values."""


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.Table, tuple[int, ...]]:
    """A table of some types and lists of them, nulls everywhere, and the types' numbers; perhaps a slice."""
    names = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=5))
    n = draw(st.integers(0, 12))
    arrays, oids = [], []
    for name in names:
        dtype, oid, array_oid, values = TYPES[name]
        values = st.none() | values
        if draw(st.booleans()):
            dtype, oid, values = pa.list_(dtype), array_oid, st.none() | st.lists(values, max_size=4)
        arrays.append(pa.array(draw(st.lists(values, min_size=n, max_size=n)), dtype))
        oids.append(oid)
    table = pa.table(arrays, names=[f"c{i}" for i in range(len(names))])
    return table.slice(draw(st.integers(0, n))), tuple(oids)


def messages(stream: bytes, n_columns: int) -> list[bytes]:
    """The stream cut as the server cuts it: a row a message, the head with the first, the end by itself."""
    cuts, at = [0], HEAD
    while struct.unpack_from(">h", stream, at)[0] != -1:
        at += 2
        for _ in range(n_columns):
            (size,) = struct.unpack_from(">i", stream, at)
            at += 4 + max(size, 0)
        cuts.append(at)
    return [stream[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(stream)], strict=True)]


@settings(max_examples=150, deadline=None)
@given(made=columns(), per_block=st.integers(1, 5))
def test_there_and_back(made: tuple[pa.Table, tuple[int, ...]], per_block: int) -> None:
    """Every type, null, list and null item comes back, in whichever blocks it comes."""
    table, oids = made
    parts = messages(b"".join(bytes(chunk) for chunk in copy_chunks(table)), table.num_columns)
    blocks = [parts[at : at + per_block] for at in range(0, len(parts), per_block)]
    reader = BinaryColumns(names=tuple(table.column_names), oids=oids)
    found = pa.Table.from_batches(list(reader.read(blocks)), reader.schema)
    assert found.equals(table)


def test_bytes_of_a_row() -> None:
    """The format to the byte, from its definition."""
    row = {"a": ["é"], "b": [[1, None]], "c": [None], "d": [datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC)], "e": [[]]}
    types = [pa.string(), pa.list_(pa.int32()), pa.float64(), pa.timestamp("ms", "UTC"), pa.list_(pa.string())]
    table = pa.Table.from_pydict(row, pa.schema(list(zip(row, types, strict=True))))
    body = struct.pack(">h", 5) + struct.pack(">i", 2) + "é".encode()
    array = struct.pack(">iiiii", 1, 1, 23, 2, 1) + struct.pack(">iii", 4, 1, -1)
    body += struct.pack(">i", len(array)) + array + struct.pack(">i", -1) + struct.pack(">iq", 8, 1_000_000)
    body += struct.pack(">iiii", 12, 0, 0, 25)
    signature = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    assert b"".join(bytes(chunk) for chunk in copy_chunks(table)) == signature + body + b"\xff\xff"


def test_what_cannot_be_written_or_read_is_refused() -> None:
    """Types without a counterpart; rows of other columns or cut off; times without end; several dimensions."""
    with pytest.raises(SchemaMismatchError, match="no PostgreSQL type for Arrow type"):
        postgres_type(pa.struct([]))
    with pytest.raises(SchemaMismatchError, match="no PostgreSQL type"):
        list(copy_chunks(pa.table({"a": pa.array([[[1]]])})))
    stream = b"".join(bytes(chunk) for chunk in copy_chunks(pa.table({"a": [1, 2], "b": [3, 4]})))
    for oids, cut in (((20,), 0), ((20, 20, 20), 0), ((20, 20), 9), ((20, 20), 3)):
        reader = BinaryColumns(names=tuple("abc"[: len(oids)]), oids=oids)
        with pytest.raises(SchemaMismatchError, match="rows of"):
            list(reader.read([[stream[: len(stream) - cut], b""]]))
    forever = bytes(HEAD) + struct.pack(">hiq", 1, 8, 2**63 - 1)
    with pytest.raises(SchemaMismatchError, match="infinite"):
        list(BinaryColumns(names=("a",), oids=(1184,)).read([[forever]]))
    grid = struct.pack(">iiiiiii", 2, 0, 23, 1, 1, 1, 1) + struct.pack(">ii", 4, 7)
    message = bytes(HEAD) + struct.pack(">hi", 1, len(grid)) + grid
    with pytest.raises(SchemaMismatchError, match="several dimensions"):
        list(BinaryColumns(names=("a",), oids=(1007,)).read([[message]]))
