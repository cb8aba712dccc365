"""A checksum of payments that every store can feed, so that two stores are compared without shipping rows.

Each row of (seq, transaction_id, event_timestamp, sender_id, receiver_id, amount_base) has a 64-bit hash; a bucket's
checksum is the sum of its rows' hashes modulo 2^64, which does not depend on the order of rows. It finds mistakes and
lost rows; it is no defence against somebody who forges rows on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

UInt64 = npt.NDArray[np.uint64]

BUCKET_ROWS: Final = 65_536
"""Ingest sequence numbers per bucket: bucket = seq // BUCKET_ROWS."""

CHECKSUM_COLUMNS: Final = ("seq", "transaction_id", "event_timestamp", "sender_id", "receiver_id", "amount_base")

_BYTE_BASE: Final = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no byte position is multiplied away modulo 2^64
_ROWS_AT_ONCE: Final = 131_072  # keeps the byte-wide temporaries at a few MB


def bucket_checksums(table: pa.Table, bucket: int | None = None) -> dict[int, tuple[int, int]]:
    """Return {bucket: (rows, checksum)}, or {seq: (rows, checksum)} of one `bucket`.

    `table` has CHECKSUM_COLUMNS, event_timestamp as timestamp or int64 epoch milliseconds; rows in any order. Checksums
    are unsigned 64-bit. Parts of one store may be computed apart and joined with `merge_checksums`.
    """
    parts = []
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        part = table.slice(start, _ROWS_AT_ONCE)
        seq = part["seq"].to_numpy().astype(np.int64)
        hashes = _row_hashes(part, seq)
        if bucket is not None:
            inside = seq // BUCKET_ROWS == bucket
            parts.append(_sum_by(seq[inside], hashes[inside]))
        else:
            parts.append(_sum_by(seq // BUCKET_ROWS, hashes))
    return merge_checksums(parts)


def merge_checksums(parts: Iterable[dict[int, tuple[int, int]]]) -> dict[int, tuple[int, int]]:
    """Return the checksums of all rows of several parts together, in ascending order of key."""
    merged: dict[int, tuple[int, int]] = {}
    for part in parts:
        for key, (count, checksum) in part.items():
            count_before, checksum_before = merged.get(key, (0, 0))
            merged[key] = (count_before + count, (checksum_before + checksum) % 2**64)
    return dict(sorted(merged.items()))


def _sum_by(keys: npt.NDArray[np.int64], hashes: UInt64) -> dict[int, tuple[int, int]]:
    order = np.argsort(keys, kind="stable")
    distinct, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    if not len(distinct):
        return {}
    sums = np.add.reduceat(hashes[order], starts)
    return {int(key): (int(n), int(total)) for key, n, total in zip(distinct, counts, sums, strict=True)}


def _row_hashes(table: pa.Table, seq: npt.NDArray[np.int64]) -> UInt64:
    columns = [
        seq.view(np.uint64),
        _string_hashes(table["transaction_id"]),
        _milliseconds(table["event_timestamp"]).view(np.uint64),
        _repeated_string_hashes(table["sender_id"]),
        _repeated_string_hashes(table["receiver_id"]),
        table["amount_base"].to_numpy().astype(np.int64).view(np.uint64),
    ]
    total = np.zeros(table.num_rows, np.uint64)
    for column in columns:
        total = _mix(total ^ column)
    return total


def _mix(values: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _milliseconds(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", tz=column.type.tz)).cast(pa.int64())
    return column.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _repeated_string_hashes(column: pa.ChunkedArray) -> UInt64:
    """Hash each distinct string once: accounts repeat, transactions do not."""
    distinct = pc.unique(column)
    codes = pc.index_in(column, value_set=distinct).to_numpy()
    hashes: UInt64 = _string_hashes(pa.chunked_array([distinct]))[codes]
    return hashes


def _string_hashes(column: pa.ChunkedArray) -> UInt64:
    """Polynomial over the UTF-8 bytes modulo 2^64, mixed with the length."""
    # A fresh array has offset 0 and owns exactly its bytes, so that its buffers can be read as they are.
    strings = pa.concat_arrays([pa.array([], pa.large_string()), *column.cast(pa.large_string()).chunks])
    n = len(strings)
    if n == 0:
        return np.empty(0, np.uint64)
    _, offset_buffer, data_buffer = strings.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64, n + 1, strings.offset * 8)
    lengths = np.diff(offsets)
    text = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]] if offsets[-1] else np.empty(0, np.uint8)
    place = np.arange(len(text)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    powers = np.full(int(lengths.max()) + 1, _BYTE_BASE)
    powers[0] = 1
    terms = (text.astype(np.uint64) + np.uint64(1)) * np.multiply.accumulate(powers)[place]
    sums = np.zeros(n, np.uint64)
    filled = lengths > 0
    if filled.any():
        sums[filled] = np.add.reduceat(terms, (offsets[:-1] - offsets[0])[filled])
    return _mix(sums ^ lengths.astype(np.uint64))
