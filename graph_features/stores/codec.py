"""One packed, versioned value per (view, entity): what the online stores keep and scoring workers read.

A value is a run of little-endian 8-byte words, so that every part is aligned and thousands of values are read at once
with `numpy.frombuffer`::

    word 0         format and the view's fingerprint: names, order and types of its features
    word 1         event_timestamp, epoch milliseconds (the row's as_of)
    word 2         created_timestamp, epoch microseconds
    1 bit each     which features are not null, in schema order, padded to a word
    1 word each    features in schema order: an int64, a float64, epoch milliseconds, or for a list its number of items
                   (of strings: the items in the low, their bytes in the high half)
    rest           the lists in schema order: 8 bytes an item; strings as 4-byte lengths, then UTF-8, padded to a word

A value whose first word is not that of the view belongs to another feature set or format; it is never decoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graph_features.errors import SchemaMismatchError
from graph_features.schema import DType, ViewSchema
from graph_features.stores.heads import (
    HEADER_WORDS,
    WORD,
    Bool,
    Heads,
    Int64,
    bitmap_words,
    build_heads,
    first_word,
    over_all,
    read_heads,
)

if TYPE_CHECKING:
    import pyarrow as pa

MAGIC = b"RF-own-2"
NO_CREATED = np.iinfo(np.int64).min
"""created_timestamp of rows that have none: older than every other."""


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """n lists: list i holds values[offsets[i]:offsets[i + 1]]; strings are an object array."""

    offsets: Int64
    values: npt.NDArray[Any]

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Ragged:
        """Return the lists of these rows, in this order."""
        offsets = _offsets(np.diff(self.offsets)[rows])
        return Ragged(offsets=offsets, values=self.values[_spread(self.offsets[:-1][rows], offsets)])

    def equals(self, places: Int64, others: npt.NDArray[np.object_], which: Int64) -> Bool:
        """Return where the items at `places` are the same as `others[which]`, one by one."""
        return np.asarray(self.values[places] == others[which], np.bool_)


@dataclass(frozen=True, kw_only=True)
class PackedTexts(Ragged):
    """n lists of texts still packed: text i is UTF-8 in bytes `first[i]` to `last[i]` of `buffer`; decoded when asked.

    Serving compares thousands of ids with a few others and needs none of them itself.
    """

    values: npt.NDArray[Any] = field(init=False, repr=False)
    buffer: Int64
    first: Int64
    last: Int64

    def __getattr__(self, name: str) -> npt.NDArray[Any]:
        # Only called while `values` has not been made.
        if name != "values":
            raise AttributeError(name)
        decoded = _strings(self.buffer, self.first, self.last)
        object.__setattr__(self, "values", decoded)
        return decoded

    def equals(self, places: Int64, others: npt.NDArray[np.object_], which: Int64) -> Bool:
        texts = [None if one is None else one.encode("utf-8", "surrogatepass") for one in others.tolist()]
        sizes = np.array([-1 if text is None else len(text) for text in texts], np.int64)
        first, size = self.first[places], self.last[places] - self.first[places]
        same = size == sizes[which]
        # Ids differ in their last letter more often than in their first.
        octets_of, tails = self.buffer.view(np.uint8), np.array([text[-1] if text else 0 for text in texts], np.uint8)
        rows = np.flatnonzero(same & (size > 0))
        same[rows] = octets_of[self.last[places[rows]] - 1] == tails[which[rows]]
        rows = rows[same[rows]]
        if len(rows):
            wanted = np.array([text or b"" for text in texts], np.bytes_)
            octets = np.arange(wanted.dtype.itemsize)
            beyond = octets >= size[rows, None]
            given = octets_of[np.where(beyond, 0, first[rows, None] + octets)]
            letters = wanted.view(np.uint8).reshape(len(texts), -1)[which[rows]]
            same[rows] = ((given == letters) | beyond).all(axis=1)
        return np.asarray(same, np.bool_)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """n rows of a view of F features as arrays.

    `slots` is int64[n, F]: the 8 bytes of each scalar (floats by their bits), anything for lists and nulls. `valid` is
    bool[n, F]. `lists` has every list feature by name, empty where null.
    """

    as_of_ms: Int64
    created_us: Int64
    slots: Int64
    valid: Bool
    lists: dict[str, Ragged]


def header_word(view: ViewSchema) -> int:
    """The first word of every value of `view`, as a signed integer."""
    return first_word(MAGIC, view.fingerprint)


def fixed_words(view: ViewSchema) -> int:
    """Words of a value before its lists."""
    return HEADER_WORDS + bitmap_words(len(view.features)) + len(view.features)


# ---------------------------------------------------------------- Arrow to columns


def from_table(view: ViewSchema, table: pa.Table) -> Columns:
    """Return the rows of `table` as columns; raise SchemaMismatchError.

    Columns are found by name and cast to the view's types; timestamps may be null (0, and NO_CREATED).
    """
    import pyarrow as pa

    n = table.num_rows
    slots = np.zeros((n, len(view.features)), np.int64)
    valid = np.zeros((n, len(view.features)), np.bool_)
    lists = {}
    for position, feature in enumerate(view.features):
        array = _column(view, table, feature.name, feature.dtype.arrow)
        valid[:, position] = array.is_valid().to_numpy(zero_copy_only=False)
        if feature.dtype.is_list:
            lists[feature.name] = _ragged(view, feature.name, array)
        else:
            slots[:, position] = _words(array)
    created = _column(view, table, "created_timestamp", pa.timestamp("us", tz="UTC"))
    created_known = created.is_valid().to_numpy(zero_copy_only=False)
    return Columns(
        as_of_ms=_words(_column(view, table, "event_timestamp", pa.timestamp("ms", tz="UTC"))),
        created_us=np.where(created_known, _words(created), NO_CREATED),
        slots=slots,
        valid=valid,
        lists=lists,
    )


def _column(view: ViewSchema, table: pa.Table, name: str, expected: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if name not in table.column_names:
        raise SchemaMismatchError(
            f"rows for view {view.name}: no column {name}; there are {', '.join(table.column_names)}"
        )
    column = table[name]
    try:
        column = column if column.type == expected else column.cast(expected, safe=not pa.types.is_timestamp(expected))
    except pa.ArrowInvalid as error:
        raise SchemaMismatchError(f"rows for view {view.name}: {name} cannot be read as {expected}: {error}") from None
    chunk = column.combine_chunks()
    if isinstance(chunk, pa.ChunkedArray):
        chunk = pa.concat_arrays(chunk.chunks) if chunk.num_chunks else pa.array([], expected)
    return chunk


def _words(array: pa.Array) -> Int64:
    """The 8 bytes of each value of a 64-bit array as int64, 0 for null."""
    # Arrow's own conversion would turn integers with nulls into floats, so read its buffer.
    data = array.buffers()[1]
    if data is None or len(array) == 0:
        return np.zeros(len(array), np.int64)
    words: Int64 = np.frombuffer(data, np.int64, count=array.offset + len(array))[array.offset :]
    known: Bool = array.is_valid().to_numpy(zero_copy_only=False)
    return np.where(known, words, np.int64(0))


def _ragged(view: ViewSchema, name: str, array: pa.Array) -> Ragged:
    import pyarrow.compute as pc

    offsets = _offsets(pc.fill_null(pc.list_value_length(array), 0).to_numpy())
    items = array.flatten()
    if items.null_count:
        raise SchemaMismatchError(f"rows for view {view.name}: list {name} holds null items, which no list may")
    return Ragged(offsets=offsets, values=items.to_numpy(zero_copy_only=False))


# ---------------------------------------------------------------- columns to values


def pack(view: ViewSchema, columns: Columns) -> list[bytes]:
    """Return one value per row, in order."""
    head = _heads(view, columns)
    payloads = [_payload(dtype, columns.lists[name]) for _, name, dtype in view.lists]
    if not payloads:
        return _split(head.tobytes(), np.arange(len(head) + 1) * head.shape[1] * WORD)
    lengths = head.shape[1] + sum((np.diff(offsets) for offsets, _ in payloads), np.zeros(len(head), np.int64))
    starts = _offsets(lengths)
    out = np.empty(starts[-1], np.int64)
    at = starts[:-1]
    out[at[:, None] + np.arange(head.shape[1])] = head
    at = at + head.shape[1]
    for offsets, words in payloads:
        out[_spread(at, offsets)] = words
        at = at + np.diff(offsets)
    return _split(out.tobytes(), starts * WORD)


def encode(view: ViewSchema, table: pa.Table) -> list[bytes]:
    """Return one packed value per row of `table` (view.arrow_schema); raise SchemaMismatchError."""
    return pack(view, from_table(view, view.check(table)))


def _heads(view: ViewSchema, columns: Columns) -> Int64:
    slots = np.where(columns.valid, columns.slots, 0)
    for position, name, dtype in view.lists:
        slots[:, position] = _list_slot(dtype, columns.lists[name])
    return build_heads(header_word(view), columns.as_of_ms, columns.created_us, columns.valid, slots)


def _list_slot(dtype: DType, ragged: Ragged) -> Int64:
    counts: Int64 = np.diff(ragged.offsets)
    if dtype is not DType.STRING_LIST:
        return counts
    ends = _offsets(np.array([len(item.encode()) for item in ragged.values], np.int64))
    return counts | (np.diff(ends[ragged.offsets]) << 32)


def _payload(dtype: DType, ragged: Ragged) -> tuple[Int64, Int64]:
    """Word offsets per row and the words themselves."""
    if dtype is not DType.STRING_LIST:
        return ragged.offsets, np.ascontiguousarray(ragged.values).view(np.int64)
    items = [item.encode() for item in ragged.values]
    sizes = np.array([len(item) for item in items], np.uint32)
    rows = []
    for start, end in itertools.pairwise(ragged.offsets.tolist()):
        row = sizes[start:end].tobytes() + b"".join(items[start:end])
        rows.append(row + bytes(-len(row) % WORD))
    offsets = _offsets(np.array([len(row) // WORD for row in rows], np.int64))
    return offsets, np.frombuffer(b"".join(rows), np.int64)


def _offsets(lengths: npt.NDArray[np.integer[Any]]) -> Int64:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _spread(starts: Int64, offsets: Int64) -> Int64:
    """Indexes start[i], start[i] + 1, ... for each of the offsets[i + 1] - offsets[i] items of row i."""
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))


def _split(data: bytes, cuts: npt.NDArray[np.int64]) -> list[bytes]:
    bounds = cuts.tolist()
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


# ---------------------------------------------------------------- values to columns


def unpack(view: ViewSchema, values: Sequence[bytes | None]) -> tuple[Columns, Bool, Bool]:
    """Return columns over all of `values`, which rows are there, and which are of another feature set or format.

    Rows of the last kind, and None, have zeros, no valid feature and empty lists.
    """
    heads = read_heads(header_word(view), len(view.features), values)
    whole = _expected_words(view, heads.slots) == heads.words
    present = np.zeros(len(values), np.bool_)
    present[heads.rows[whole]] = True
    return _columns(view, heads, whole, len(values)), present, heads.given & ~present


def _expected_words(view: ViewSchema, slots: Int64) -> Int64:
    """How long each value must be, judged by its list lengths."""
    total = np.full(len(slots), fixed_words(view), np.int64)
    for position, _, dtype in view.lists:
        total += _list_words(dtype, slots[:, position])
    return total


def _list_words(dtype: DType, slot: Int64) -> Int64:
    if dtype is not DType.STRING_LIST:
        # A corrupt count must not wrap around to a plausible length.
        return np.clip(slot, -1, 2**32)
    return -(-(4 * (slot & 0xFFFFFFFF) + ((slot >> 32) & 0xFFFFFFFF)) // WORD)


def _columns(view: ViewSchema, heads: Heads, whole: Bool, n: int) -> Columns:
    rows = heads.rows[whole]
    slots = over_all(n, rows, heads.slots[whole])
    lists, at = {}, heads.starts[whole] + fixed_words(view)
    for position, name, dtype in view.lists:
        slot = slots[:, position].copy()
        lists[name] = _unpack_list(dtype, slot, heads.buffer, at, rows)
        at = at + _list_words(dtype, slot[rows])
        slots[:, position] = 0
    return Columns(
        as_of_ms=over_all(n, rows, heads.event[whole]),
        created_us=over_all(n, rows, heads.created[whole], NO_CREATED),
        slots=slots,
        valid=over_all(n, rows, heads.valid[whole]),
        lists=lists,
    )


def _unpack_list(dtype: DType, slot: Int64, buffer: Int64, at: Int64, rows: Int64) -> Ragged:
    """`slot` has one word per row of the block, `at` the place in the buffer of each row in `rows`."""
    counts = slot & 0xFFFFFFFF
    offsets, present = _offsets(counts), _offsets(counts[rows])
    if dtype is DType.INT64_LIST:
        return Ragged(offsets=offsets, values=buffer[_spread(at, present)])
    if dtype is DType.FLOAT64_LIST:
        return Ragged(offsets=offsets, values=buffer[_spread(at, present)].view(np.float64))
    sizes = buffer.view(np.uint32)[_spread(at * 2, present)].astype(np.int64)
    start = np.concatenate([_offsets(sizes)[:-1], [0]])
    within = start[:-1] - np.repeat(start[present[:-1]], counts[rows])
    # Clipped to the row's own text, so that a damaged length reaches no other row.
    limit = np.repeat(slot[rows] >> 32, counts[rows])
    text = np.repeat(at * WORD + 4 * counts[rows], counts[rows])
    first, last = text + np.minimum(within, limit), text + np.minimum(within + sizes, limit)
    return PackedTexts(offsets=offsets, buffer=buffer, first=first, last=last)


def _strings(buffer: Int64, first: Int64, last: Int64) -> npt.NDArray[np.object_]:
    data = buffer.tobytes() if len(first) else b""
    bounds = zip(first.tolist(), last.tolist(), strict=True)
    out = np.empty(len(first), np.object_)
    out[:] = [data[begin:end].decode("utf-8", "replace") for begin, end in bounds]
    return out
