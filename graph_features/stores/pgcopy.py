"""Arrow tables as PostgreSQL's binary COPY format, made in columns.

Format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"; arrays as `array_send` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.errors import SchemaMismatchError

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.uint64]
Sizes = npt.NDArray[np.int64]

_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_CHUNK_BYTES = 4 << 20
_CHUNK_ROWS = 65_536
_POSTGRES_EPOCH_US = 946_684_800_000_000
_POSTGRES_EPOCH_DAYS = 10_957

_TYPES: dict[pa.DataType, tuple[str, int]] = {
    pa.bool_(): ("boolean", 16),
    pa.int16(): ("smallint", 21),
    pa.int32(): ("integer", 23),
    pa.int64(): ("bigint", 20),
    pa.float32(): ("real", 700),
    pa.float64(): ("double precision", 701),
    pa.string(): ("text", 25),
    pa.large_string(): ("text", 25),
    pa.binary(): ("bytea", 17),
    pa.date32(): ("date", 1082),
}


def postgres_type(dtype: pa.DataType) -> str:
    """Return the PostgreSQL type that holds values of an Arrow type; raise SchemaMismatchError."""
    if pa.types.is_timestamp(dtype):
        name = "timestamptz" if dtype.tz else "timestamp"
        return f"{name}({ {'s': 0, 'ms': 3}.get(dtype.unit, 6) })"
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return f"{postgres_type(dtype.value_type)}[]"
    if dtype not in _TYPES:
        raise SchemaMismatchError(f"no PostgreSQL type for Arrow type {dtype}")
    return _TYPES[dtype][0]


def copy_chunks(table: pa.Table) -> Iterator[Any]:
    """Yield a whole binary COPY stream of the table's rows, columns in the table's order, as buffers of a few MB."""
    yield _SIGNATURE
    per_row = max(table.nbytes // max(table.num_rows, 1), 1)
    rows = min(max(_CHUNK_BYTES // per_row, 1), _CHUNK_ROWS)
    for start in range(0, table.num_rows, rows):
        yield _rows(table.slice(start, rows)).data
    yield _TRAILER


@dataclass(frozen=True, kw_only=True)
class _Values:
    """n byte strings: value i is data[starts[i]:][:sizes[i]], null where the size is -1."""

    data: Bytes
    starts: Places
    sizes: Sizes

    @property
    def written(self) -> Sizes:
        """Bytes of each value with its length."""
        written: Sizes = 4 + np.maximum(self.sizes, 0)
        return written


@dataclass(frozen=True, kw_only=True)
class _Field:
    """One column: a value per row or, where there are `counts`, so many items per row, -1 for null."""

    values: _Values
    counts: Sizes | None = None
    item_type: int = 0

    @property
    def written(self) -> Sizes:
        """Bytes of each row's field with its length."""
        if self.counts is None:
            return self.values.written
        ends = _ends(self.values.written)[_ends(np.maximum(self.counts, 0))]
        heads = np.where(self.counts > 0, 24, np.where(self.counts == 0, 16, 4))
        written: Sizes = heads + np.diff(ends)
        return written

    def put(self, out: Bytes, at: Places) -> None:
        from graph_features.kernels.pgrows import put_arrays, put_fields

        items = self.values
        if self.counts is None:
            put_fields(out, at, items.data, items.starts, items.sizes)
        else:
            put_arrays(out, at, self.counts, self.item_type, items.data, items.starts, items.sizes)


def _rows(table: pa.Table) -> Bytes:
    fields = [_field(_one_chunk(column)) for column in table.columns]
    sizes = np.full(table.num_rows, 2, np.int64)
    for field in fields:
        sizes += field.written
    ends = _ends(sizes)
    out, at = np.empty(ends[-1], np.uint8), ends[:-1].astype(np.uint64)
    for byte in len(fields).to_bytes(2, "big"):
        out[at] = byte
        at += np.uint64(1)
    for field in fields:
        field.put(out, at)
    return out


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    chunk = column.combine_chunks()
    return pa.concat_arrays(chunk.chunks) if isinstance(chunk, pa.ChunkedArray) else chunk


def _field(array: pa.Array) -> _Field:
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return _Field(values=_values(array))
    # Of null lists `flatten` leaves out the items that may stand behind them.
    counts = pc.fill_null(pc.list_value_length(array), -1).to_numpy().astype(np.int64)
    return _Field(values=_values(array.flatten()), counts=counts, item_type=_oid(array.type.value_type))


def _values(array: pa.Array) -> _Values:
    if array.type in (pa.string(), pa.large_string(), pa.binary()):
        return _text(array)
    numbers = _numbers(array)
    width = numbers.itemsize
    starts = np.arange(len(numbers), dtype=np.uint64) * np.uint64(width)
    sizes = _or_null(array, np.full(len(numbers), width, np.int64))
    return _Values(data=_big_endian(numbers), starts=starts, sizes=sizes)


def _text(array: pa.Array) -> _Values:
    long = array.cast(pa.large_binary())
    _, offsets, data = long.buffers()
    ends = np.zeros(1, np.int64)
    if len(long):
        ends = np.frombuffer(offsets, np.int64)[long.offset : long.offset + len(long) + 1]
    held = np.frombuffer(data or b"", np.uint8)
    return _Values(data=held, starts=ends[:-1].astype(np.uint64), sizes=_or_null(array, np.diff(ends)))


def _or_null(array: pa.Array, sizes: Sizes) -> Sizes:
    if array.null_count:
        sizes[array.is_null().to_numpy(zero_copy_only=False)] = -1
    return sizes


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    """The values as PostgreSQL counts them; of nulls, anything."""
    dtype = array.type
    if pa.types.is_timestamp(dtype):
        micros = array.cast(pa.timestamp("us", dtype.tz), safe=False).cast(pa.int64())
        return _held(micros) - _POSTGRES_EPOCH_US
    if dtype not in _TYPES:
        raise SchemaMismatchError(f"no PostgreSQL type for Arrow type {dtype}")
    if pa.types.is_boolean(dtype):
        flags: npt.NDArray[Any] = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
        return flags.astype(np.uint8)
    if pa.types.is_date32(dtype):
        return _held(array.cast(pa.int32())) - np.int32(_POSTGRES_EPOCH_DAYS)
    return _held(array)


def _held(array: pa.Array) -> npt.NDArray[Any]:
    """The buffer of fixed-width values, nulls and all."""
    numbers: npt.NDArray[Any] = np.frombuffer(array.buffers()[1] or b"", array.type.to_pandas_dtype())
    return numbers[array.offset : array.offset + len(array)]


def _big_endian(numbers: npt.NDArray[Any]) -> Bytes:
    swapped = numbers.astype(numbers.dtype.newbyteorder(">"))
    return np.ascontiguousarray(swapped).view(np.uint8)


def _oid(item: pa.DataType) -> int:
    if pa.types.is_timestamp(item):
        return 1184 if item.tz else 1114
    if item not in _TYPES:
        raise SchemaMismatchError(f"no PostgreSQL type for a list of {item}")
    return _TYPES[item][1]


def _ends(sizes: Sizes) -> Sizes:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
