"""Checksums: independent of order and of how rows are cut into parts, dependent on every value."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_features.sources.checksum import BUCKET_ROWS, CHECKSUM_COLUMNS, bucket_checksums, merge_checksums

ROW = st.tuples(
    st.integers(0, 5 * BUCKET_ROWS),
    st.text(max_size=8),
    st.integers(0, 2**42),
    st.text(max_size=4),
    st.text(max_size=4),
    st.integers(0, 10**15),
)
FIXED = 15_859_803_373_466_726_447
ROWS = st.lists(ROW, max_size=20, unique_by=lambda row: row[0])


def table(rows: list[tuple]) -> pa.Table:
    types = [pa.int64(), pa.string(), pa.int64(), pa.string(), pa.string(), pa.int64()]
    columns = list(zip(*rows, strict=True)) or [[]] * 6
    arrays = [pa.array(column, type_) for column, type_ in zip(columns, types, strict=True)]
    return pa.table(dict(zip(CHECKSUM_COLUMNS, arrays, strict=True)))


@given(ROWS, st.randoms(use_true_random=False), st.integers(0, 20))
def test_order_and_parts_do_not_matter(rows: list[tuple], random: object, cut: int) -> None:
    """Any order, any cut into parts and any chunking of columns give the same checksums."""
    whole = bucket_checksums(table(rows))
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = [table(shuffled[:cut]), table(shuffled[cut:])]
    assert merge_checksums(bucket_checksums(part) for part in parts) == whole
    assert bucket_checksums(pa.concat_tables(parts)) == whole
    assert sum(count for count, _ in whole.values()) == len(rows)


@given(ROWS.filter(bool), st.data())
def test_a_bucket_is_the_sum_of_its_rows(rows: list[tuple], data: st.DataObject) -> None:
    """The checksums of the numbers in a bucket add up to the bucket's."""
    whole = bucket_checksums(table(rows))
    bucket = data.draw(st.sampled_from(sorted(whole)))
    single = bucket_checksums(table(rows), bucket)
    assert set(single) == {row[0] for row in rows if row[0] // BUCKET_ROWS == bucket}
    assert whole[bucket] == (len(single), sum(value for _, value in single.values()) % 2**64)


@given(ROW, st.sampled_from(range(1, 6)), st.data())
def test_every_value_matters(row: tuple, column: int, data: st.DataObject) -> None:
    """Another value in any column is another checksum."""
    kind = st.text(max_size=8) if isinstance(row[column], str) else st.integers(0, 2**42)
    other = data.draw(kind.filter(lambda value: value != row[column]))
    changed = (*row[:column], other, *row[column + 1 :])
    assert bucket_checksums(table([row]), row[0] // BUCKET_ROWS) != bucket_checksums(
        table([changed]), row[0] // BUCKET_ROWS
    )


def test_neighbouring_columns_are_kept_apart() -> None:
    """Characters that move from one id to the next, or swapped parties, change the checksum."""
    rows = [(1, "t", 0, "ab", "c", 1), (1, "t", 0, "a", "bc", 1), (1, "t", 0, "c", "ab", 1), (1, "ta", 0, "b", "c", 1)]
    assert len({bucket_checksums(table([row]))[0] for row in rows}) == 4


@pytest.mark.parametrize("type_", [pa.timestamp("ms", "UTC"), pa.timestamp("us"), pa.timestamp("ns", "UTC")])
def test_times_of_any_type_are_milliseconds(type_: pa.DataType) -> None:
    """Timestamps of any unit give the checksum of the epoch millisecond."""
    plain = table([(1, "t", 1_600_000_000_123, "a", "b", 1)])
    typed = plain.set_column(2, "event_timestamp", plain["event_timestamp"].cast(pa.timestamp("ms")).cast(type_))
    assert bucket_checksums(typed) == bucket_checksums(plain)


def test_the_checksum_stays_what_it_is() -> None:
    """A fixed row has a fixed checksum, so that two installations can be compared."""
    assert bucket_checksums(table([(70_000, "t1", 1_600_000_000_123, "ä", "b", 1230)])) == {1: (1, FIXED)}
