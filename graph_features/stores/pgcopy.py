"""Arrow tables as PostgreSQL's binary COPY format, made in columns.

Format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"; arrays as `array_send` writes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.errors import SchemaMismatchError

Bytes = npt.NDArray[np.uint8]

_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_CHUNK_ROWS = 8_192
_POSTGRES_EPOCH_US = 946_684_800_000_000
_NULL_LENGTH = 0xFFFFFFFF

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


@dataclass(frozen=True, kw_only=True)
class _Pieces:
    """n byte strings: piece i is data[offsets[i]:offsets[i + 1]]."""

    data: Bytes
    offsets: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)

    def split(self) -> list[bytes]:
        whole = self.data.tobytes()
        return [whole[begin:end] for begin, end in itertools.pairwise(self.offsets.tolist())]


def copy_order(schema: pa.Schema) -> list[str]:
    """Return the column names in the order that `copy_chunks` is fast on: fixed-width columns last."""
    return sorted(schema.names, key=lambda name: _is_words(schema.field(name).type))


def copy_chunks(table: pa.Table) -> Iterator[bytes]:
    """Yield a whole binary COPY stream of the table's rows, columns in the table's order."""
    yield _SIGNATURE
    for start in range(0, table.num_rows, _CHUNK_ROWS):
        yield _rows(table.slice(start, _CHUNK_ROWS))
    yield _TRAILER


def _rows(table: pa.Table) -> bytes:
    columns = [_one_chunk(column) for column in table.columns]
    ragged = len(columns)
    while ragged and _is_words(columns[ragged - 1].type):
        ragged -= 1
    count = [len(columns).to_bytes(2, "big")] * table.num_rows
    fields = [_field(column).split() for column in columns[:ragged]]
    parts = zip(count, *fields, _word_part(columns[ragged:], table.num_rows).split(), strict=True)
    return b"".join(itertools.chain.from_iterable(parts))


def _word_part(columns: list[pa.Array], n: int) -> _Pieces:
    """Per row the fields of columns whose values are whole 4-byte words: some four times faster than `_field`."""
    blocks = [_fixed(column).view(np.uint32) for column in columns]
    width = sum(1 + block.shape[1] for block in blocks)
    out = np.empty((n, width), np.uint32)
    keep = np.ones((n, width), np.bool_)
    at, sizes = 0, np.full(n, 4 * width, np.int64)
    for column, block in zip(columns, blocks, strict=True):
        wide = block.shape[1]
        out[:, at] = np.array([4 * wide], ">u4").view(np.uint32)
        out[:, at + 1 : at + 1 + wide] = block
        if column.null_count:
            null = column.is_null().to_numpy(zero_copy_only=False)
            out[null, at] = _NULL_LENGTH
            keep[null, at + 1 : at + 1 + wide] = False
            sizes -= 4 * wide * null
        at += 1 + wide
    data = out.ravel() if keep.all() else out[keep]
    return _Pieces(data=data.view(np.uint8), offsets=_cumulative(sizes))


def _is_words(dtype: pa.DataType) -> bool:
    return pa.types.is_timestamp(dtype) or dtype in (pa.int32(), pa.int64(), pa.float32(), pa.float64())


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    chunk = column.combine_chunks()
    return pa.concat_arrays(chunk.chunks) if isinstance(chunk, pa.ChunkedArray) else chunk


def _field(array: pa.Array) -> _Pieces:
    """Per row the field: its length and its bytes, only the length -1 for null."""
    null = array.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _array_field(array, null)
    if _is_text(array.type):
        body = _text(array)
    else:
        fixed = _fixed(array)
        body = _Pieces(data=fixed[~null].ravel(), offsets=_cumulative(np.where(null, 0, fixed.shape[1])))
    lengths = _big_endian(np.where(null, _NULL_LENGTH, body.lengths), ">u4")
    return _behind(lengths, np.full(len(null), 4), body)


def _array_field(array: pa.Array, null: npt.NDArray[np.bool_]) -> _Pieces:
    """A one-dimensional array: a head of 20 bytes (12 when empty), then every item as a field."""
    counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype(np.int64)
    items = array.flatten()
    if items.null_count:
        raise SchemaMismatchError("a list holds null items, which no list may")
    fields = _field(items)
    body = _Pieces(data=fields.data, offsets=fields.offsets[_cumulative(counts)])
    size = np.where(null, _NULL_LENGTH, np.where(counts > 0, 20 + body.lengths, 12))
    full = np.full_like(counts, _oid(items.type))
    columns = [size, (counts > 0).astype(np.int64), np.zeros_like(counts), full, counts, np.ones_like(counts)]
    heads = np.concatenate([_big_endian(column, ">u4") for column in columns], axis=1)
    return _behind(heads, np.where(null, 4, np.where(counts > 0, 24, 16)), body)


def _behind(heads: Bytes, sizes: npt.NDArray[np.int64], body: _Pieces) -> _Pieces:
    """Put each piece of `body` behind the first `sizes[i]` bytes of heads[i]."""
    offsets = _cumulative(sizes + body.lengths)
    place = np.repeat(offsets[:-1] - _cumulative(sizes)[:-1], sizes) + np.arange(int(sizes.sum()))
    is_head = np.zeros(int(offsets[-1]), np.bool_)
    is_head[place] = True
    data = np.empty(len(is_head), np.uint8)
    data[is_head] = heads[np.arange(heads.shape[1]) < sizes[:, None]]
    data[~is_head] = body.data
    return _Pieces(data=data, offsets=offsets)


def _oid(item: pa.DataType) -> int:
    if pa.types.is_timestamp(item):
        return 1184 if item.tz else 1114
    return _TYPES[item][1]


def _is_text(dtype: pa.DataType) -> bool:
    return dtype in (pa.string(), pa.large_string(), pa.binary())


def _fixed(array: pa.Array) -> Bytes:
    """Big-endian bytes of fixed-width values, uint8[n, width]."""
    dtype = array.type
    if pa.types.is_timestamp(dtype):
        micros = array.cast(pa.timestamp("us", dtype.tz), safe=False).cast(pa.int64())
        return _big_endian(pc.fill_null(micros, 0).to_numpy() - _POSTGRES_EPOCH_US, ">i8")
    if dtype not in _TYPES:
        raise SchemaMismatchError(f"no PostgreSQL type for Arrow type {dtype}")
    if pa.types.is_boolean(dtype):
        flags: npt.NDArray[np.bool_] = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
        return flags.astype(np.uint8)[:, None]
    values = pc.fill_null(array, 0).to_numpy()
    return _big_endian(values, f">{values.dtype.kind}{values.dtype.itemsize}")


def _big_endian(values: npt.NDArray[Any], dtype: str) -> Bytes:
    swapped = np.ascontiguousarray(values.astype(dtype))
    return swapped.view(np.uint8).reshape(len(values), swapped.itemsize)


def _text(array: pa.Array) -> _Pieces:
    if not len(array):
        return _Pieces(data=np.zeros(0, np.uint8), offsets=np.zeros(1, np.int64))
    array = pc.fill_null(array.cast(pa.large_binary()), b"")
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return _Pieces(data=np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]], offsets=ends - ends[0])


def _cumulative(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
