"""Readers: every row of a file is given once, with its number, or named as unreadable."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.errors import InvalidInputError
from graph_features.ingest import reader
from graph_features.ingest.mapping import ColumnMapping
from graph_features.ingest.reader import Chunk, SourceFile


def read(path: Path, columns: list[str], chunk_rows: int = 3, mapping: ColumnMapping | None = None) -> list[Chunk]:
    return list(SourceFile(path, mapping or ColumnMapping()).chunks(columns, chunk_rows))


def rows_of(chunks: list[Chunk]) -> list[tuple[int, ...]]:
    return [
        (int(number), *values)
        for chunk in chunks
        for number, values in zip(chunk.row_numbers, zip(*chunk.table.to_pydict().values(), strict=True), strict=True)
    ]


VALUE = st.text(alphabet='ab ,"\n;ü', max_size=6)


@given(
    rows=st.lists(st.lists(VALUE, min_size=1, max_size=4), max_size=30),
    chunk_rows=st.integers(1, 7),
    block_bytes=st.sampled_from([96, 128, 1 << 20]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_csv_rows_are_numbered_like_the_csv_module_counts(
    rows: list[list[str]], chunk_rows: int, block_bytes: int, tmp_path: Path
) -> None:
    """Quotes, line breaks in values, blank lines and ragged lines anywhere: each row has its number, none is lost."""
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["x", "y"], *rows])
    path = tmp_path / "f.csv"
    path.write_text(text.getvalue(), newline="")
    before, reader.BLOCK_BYTES = reader.BLOCK_BYTES, block_bytes
    try:
        chunks = read(path, ["x", "y"], chunk_rows)
    finally:
        reader.BLOCK_BYTES = before
    good = [(number, *(v.encode() for v in row)) for number, row in enumerate(rows, 1) if len(row) == 2]
    bad = [number for number, row in enumerate(rows, 1) if len(row) != 2]
    assert rows_of(chunks) == good
    assert [row.row_number for chunk in chunks for row in chunk.unreadable] == bad
    assert all(chunk.table.num_rows == chunk_rows for chunk in chunks[:-1])


def test_csv_variants(tmp_path: Path) -> None:
    """Another delimiter or encoding, a byte order mark, CRLF, gzip, blank lines and no last line break are read."""
    plain = tmp_path / "a.csv"
    plain.write_bytes("\ufeffx;y\r\n1;ä\r\n\r\n2;b".encode())
    assert rows_of(read(plain, ["x", "y"], mapping=ColumnMapping(delimiter=";"))) == [
        (1, b"1", "ä".encode()),
        (2, b"2", b"b"),
    ]
    latin = tmp_path / "b.csv"
    latin.write_bytes("x,y\n1,ä\n".encode("latin-1"))
    assert rows_of(read(latin, ["y"], mapping=ColumnMapping(encoding="latin-1"))) == [(1, "ä".encode())]
    assert rows_of(read(latin, ["y"])) == [(1, b"\xe4")]
    packed = tmp_path / "c.csv.gz"
    packed.write_bytes(gzip.compress(b"x,y\n1,2\n"))
    assert rows_of(read(packed, ["x"])) == [(1, b"1")]


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    """A CSV or Parquet file without rows is read as such."""
    path = tmp_path / "f.csv"
    path.write_text("x,y\n")
    assert rows_of(read(path, ["x"])) == []
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "f.parquet")
    assert rows_of(read(tmp_path / "f.parquet", ["x"])) == []


def test_parquet_is_known_by_its_bytes(tmp_path: Path) -> None:
    """A Parquet file of any name is read with its types, in chunks, with its number of rows known at once."""
    path = tmp_path / "payments.dat"
    pq.write_table(pa.table({"x": range(8), "y": ["a"] * 8}), path, row_group_size=5)
    file = SourceFile(path, ColumnMapping())
    assert (file.columns, file.total_rows) == (["x", "y"], 8)
    chunks = list(file.chunks(["x"], 3))
    assert rows_of(chunks) == [(n + 1, n) for n in range(8)]
    assert chunks[0].table.column_names == ["x"]


def test_a_file_from_which_no_column_is_needed_still_has_rows(tmp_path: Path) -> None:
    """Constants and row numbers alone may fill every target."""
    path = tmp_path / "f.csv"
    path.write_text("x\n1\n2\n")
    assert [number for chunk in read(path, []) for number in chunk.row_numbers] == [1, 2]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"PAR1 and then nothing of the kind", b"x,x\n1,2\n", b'x,y\n1,"never closed\n2,3\n'],
)
def test_what_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    """Empty, broken and ambiguous files are refused by name."""
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"broken\.csv"):
        read(path, ["x"])


def test_an_odd_quote_inside_a_value_is_just_a_character(tmp_path: Path) -> None:
    """A quote that does not begin its value opens nothing."""
    path = tmp_path / "f.csv"
    path.write_text('x,y\n1,5" pipe\n2,b\n')
    assert rows_of(read(path, ["x", "y"])) == [(1, b"1", b'5" pipe'), (2, b"2", b"b")]
    assert SourceFile(path, ColumnMapping()).total_rows == 2


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A path that is no file is refused by name."""
    with pytest.raises(InvalidInputError, match="CSV or Parquet"):
        SourceFile(tmp_path, ColumnMapping())
