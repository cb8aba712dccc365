"""PostgreSQL's binary COPY output as Arrow columns, without a Python object per value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.errors import SchemaMismatchError

_HEAD = 19  # the signature, flags and an empty extension
_POSTGRES_EPOCH_US = 946_684_800_000_000
_POSTGRES_EPOCH_DAYS = 10_957
_US_PER_DAY = 86_400_000_000
_INFINITE = (2**63 - 1, -(2**63))

_TEXT, _BYTES, _BOOL, _DATE = pa.string(), pa.binary(), pa.bool_(), pa.timestamp("us")
_SCALARS: dict[int, tuple[pa.DataType, str]] = {
    16: (_BOOL, "u1"),
    17: (_BYTES, ""),
    19: (_TEXT, ""),
    20: (pa.int64(), "i8"),
    21: (pa.int32(), "i2"),
    23: (pa.int32(), "i4"),
    25: (_TEXT, ""),
    114: (_TEXT, ""),
    700: (pa.float32(), "f4"),
    701: (pa.float64(), "f8"),
    1042: (_TEXT, ""),
    1043: (_TEXT, ""),
    1082: (_DATE, "i4"),
    1114: (pa.timestamp("us"), "i8"),
    1184: (pa.timestamp("us", "UTC"), "i8"),
}
"""By PostgreSQL's type number: the Arrow type, and the NumPy type of a value's bytes where their number is fixed."""
_ITEMS = {
    1000: 16, 1001: 17, 1003: 19, 1016: 20, 1005: 21, 1007: 23, 1009: 25, 199: 114, 1021: 700, 1022: 701,
    1014: 1042, 1015: 1043, 1182: 1082, 1115: 1114, 1185: 1184,
}  # fmt: skip
"""By the number of an array type: that of its items."""

Places = npt.NDArray[np.uint64]
Sizes = npt.NDArray[np.int64]
Data = npt.NDArray[np.uint8]


def readable(oid: int) -> bool:
    """Whether values of a PostgreSQL type can be read; others are to be cast in the query."""
    return oid in _SCALARS or oid in _ITEMS


def arrow_type(oid: int) -> pa.DataType:
    """The Arrow type of a readable PostgreSQL type: times in microseconds, dates as times, smallint as int32."""
    return pa.list_(_SCALARS[_ITEMS[oid]][0]) if oid in _ITEMS else _SCALARS[oid][0]


@dataclass(frozen=True, kw_only=True)
class BinaryColumns:
    """Reads COPY streams of one query: names and PostgreSQL type numbers of its columns, in order."""

    names: tuple[str, ...]
    oids: tuple[int, ...]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(name, arrow_type(oid)) for name, oid in zip(self.names, self.oids, strict=True)])

    def read(self, blocks: Iterable[list[Any]]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a whole stream, which comes as lists of messages, each of one row, a batch per list."""
        first = True
        for block in blocks:
            parts = [bytes(block[0])[_HEAD:], *block[1:]] if first else block
            first = False
            batch = self._batch(b"".join(parts), len(parts))
            if batch.num_rows:
                yield batch

    def _batch(self, raw: bytes, most_rows: int) -> pa.RecordBatch:
        from graph_features.kernels.pgrows import find_fields

        data = np.frombuffer(raw, np.uint8)
        shape = (len(self.oids), most_rows)
        starts, sizes = np.empty(shape, np.uint64), np.empty(shape, np.int64)
        rows = find_fields(data, starts, sizes)
        if rows < 0:
            raise SchemaMismatchError(f"a COPY stream whose messages are not rows of {len(self.oids)} fields each")
        columns = [
            _column(name, oid, data, starts[i, :rows], sizes[i, :rows])
            for i, (name, oid) in enumerate(zip(self.names, self.oids, strict=True))
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _column(name: str, oid: int, data: Data, starts: Places, sizes: Sizes) -> pa.Array:
    validity = _validity(sizes)
    if oid in _ITEMS:
        return _lists(name, _ITEMS[oid], data, starts, sizes, validity)
    dtype, fixed = _SCALARS[oid]
    if fixed:
        return _fixed(name, oid, data, starts, sizes, validity)
    from graph_features.kernels.pgrows import copied_bytes

    ends = _ends(np.maximum(sizes, 0))
    text = copied_bytes(data, starts, sizes, int(ends[-1]))
    buffers = [validity, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(text)]
    return pa.Array.from_buffers(dtype, len(sizes), buffers)


def _fixed(name: str, oid: int, data: Data, starts: Places, sizes: Sizes, validity: pa.Buffer | None) -> pa.Array:
    from graph_features.kernels.pgrows import fixed_values

    dtype, fixed = _SCALARS[oid]
    width = np.dtype(fixed).itemsize
    values: npt.NDArray[Any] = fixed_values(data, starts, sizes, width).view(f">{fixed}").astype(f"<{fixed}")
    if oid == 16:
        bits = pa.py_buffer(np.packbits(values, bitorder="little"))
        return pa.Array.from_buffers(dtype, len(sizes), [validity, bits])
    if oid == 21:
        values = values.astype(np.int32)
    elif oid == 1082:
        values = (values.astype(np.int64) + _POSTGRES_EPOCH_DAYS) * _US_PER_DAY
    elif oid in (1114, 1184):
        if np.isin(values, _INFINITE).any():
            raise SchemaMismatchError(f"column {name} holds an infinite timestamp, which Arrow has no value for")
        values = values + _POSTGRES_EPOCH_US
    return pa.Array.from_buffers(dtype, len(sizes), [validity, pa.py_buffer(values)])


def _lists(name: str, item: int, data: Data, starts: Places, sizes: Sizes, validity: pa.Buffer | None) -> pa.Array:
    from graph_features.kernels.pgrows import count_items, find_items

    counts = count_items(data, starts, sizes)
    if (counts < 0).any():
        raise SchemaMismatchError(f"column {name} holds arrays of several dimensions; cast it to text in the source")
    ends = _ends(counts)
    item_starts, item_sizes = find_items(data, starts, counts, int(ends[-1]))
    items = _column(name, item, data, item_starts, item_sizes)
    buffers = [validity, pa.py_buffer(ends.astype(np.int32))]
    return pa.Array.from_buffers(pa.list_(items.type), len(sizes), buffers, children=[items])


def _validity(sizes: Sizes) -> pa.Buffer | None:
    valid = sizes >= 0
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _ends(sizes: Sizes) -> Sizes:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
