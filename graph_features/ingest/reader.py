"""CSV and Parquet files in chunks. CSV values stay bytes, so that a bad one is a rejected row and not a failed file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from graph_features.errors import InvalidInputError
from graph_features.ingest.mapping import ColumnMapping

BLOCK_BYTES: Final = 8 << 20
"""CSV is read in blocks of this size; no row may be longer."""
_MAX_HEADER_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class UnreadableRow:
    """A CSV line with too few or too many values."""

    row_number: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows. Row numbers count from 1 after the header, blank lines left out, unreadable rows included."""

    table: pa.Table
    row_numbers: npt.NDArray[np.int64]
    unreadable: list[UnreadableRow]


class SourceFile:
    """A CSV (plain or compressed) or Parquet file; which of them it is, its first bytes say.

    `total_rows` of a CSV file is an estimate: its line breaks less one.
    """

    def __init__(self, path: Path, mapping: ColumnMapping) -> None:
        """Read the header; raise InvalidInputError when the file cannot be read as either."""
        self._path = path
        self._mapping = mapping
        with self._readable():
            with path.open("rb") as file:
                self._is_parquet = file.read(4) == b"PAR1"
            if self._is_parquet:
                with pq.ParquetFile(path) as parquet:
                    self.columns: list[str] = list(parquet.schema_arrow.names)
                    self.total_rows = int(parquet.metadata.num_rows)
            else:
                self.columns = self._header()
                self.total_rows = self._survey()
        repeated = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if repeated:
            raise InvalidInputError(field=str(path), expected="column names that come once each", got=repeated)

    def chunks(self, columns: Sequence[str], chunk_rows: int) -> Iterator[Chunk]:
        """Yield `columns` of all rows, `chunk_rows` readable ones at a time; at least one chunk of a CSV file."""
        with self._readable():
            yield from self._parquet(columns, chunk_rows) if self._is_parquet else self._csv(columns, chunk_rows)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidInputError(field=str(self._path), expected="a CSV or Parquet file", got=reason) from error

    def _parquet(self, columns: Sequence[str], chunk_rows: int) -> Iterator[Chunk]:
        first = 1
        with pq.ParquetFile(self._path) as parquet:
            # A column must be asked for, or a batch would not say how many rows it has.
            wanted = list(columns) or self.columns[:1]
            for batch in parquet.iter_batches(batch_size=chunk_rows, columns=wanted, use_threads=False):
                numbers = np.arange(first, first + batch.num_rows)
                first += batch.num_rows
                yield Chunk(table=pa.Table.from_batches([batch]), row_numbers=numbers, unreadable=[])

    def _header(self) -> list[str]:
        with pa.input_stream(str(self._path), compression="detect") as stream:
            head = stream.read(_MAX_HEADER_BYTES)
        text = head.decode(self._mapping.encoding, errors="replace").removeprefix("\ufeff")
        for names in csv.reader(io.StringIO(text, newline=""), delimiter=self._mapping.delimiter):
            if names:
                return names
        raise InvalidInputError(field=str(self._path), expected="a line of column names", got="an empty file")

    def _survey(self) -> int:
        """Count line breaks, and refuse a file with a quote that is never closed: it would swallow what follows it."""
        breaks = quotes = 0
        with pa.input_stream(str(self._path), compression="detect") as stream:
            while block := stream.read(BLOCK_BYTES):
                breaks += block.count(b"\n")
                quotes += block.count(b'"')
        if quotes % 2:
            self._check_quotes()
        return max(0, breaks - 1)

    def _check_quotes(self) -> None:
        encoding = self._mapping.encoding
        with pa.input_stream(str(self._path), compression="detect") as stream:
            lines = io.TextIOWrapper(stream, encoding, errors="replace", newline="")
            rows = csv.reader(lines, delimiter=self._mapping.delimiter, strict=True)
            try:
                for _ in rows:
                    pass
            except csv.Error as error:
                got = f"{error} at line {rows.line_num}"
                raise InvalidInputError(field=str(self._path), expected="quotes that are closed", got=got) from None

    def _csv(self, columns: Sequence[str], chunk_rows: int) -> Iterator[Chunk]:
        bad: list[Any] = []

        def note(row: Any) -> str:
            bad.append(row)
            return "skip"

        with pa.input_stream(str(self._path), compression="detect") as stream:
            reader = pa_csv.open_csv(
                stream,
                pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, encoding=self._mapping.encoding),
                pa_csv.ParseOptions(
                    delimiter=self._mapping.delimiter, newlines_in_values=True, invalid_row_handler=note
                ),
                pa_csv.ConvertOptions(
                    include_columns=list(columns) or self.columns[:1],
                    column_types=dict.fromkeys(self.columns, pa.binary()),
                    check_utf8=False,
                    strings_can_be_null=False,
                ),
            )
            yield from _numbered(_regrouped(reader, chunk_rows), bad)


def _regrouped(reader: Any, chunk_rows: int) -> Iterator[pa.Table]:
    """Blocks of any size as tables of `chunk_rows` rows, the last one shorter, and an empty one after no rows."""
    pending: list[pa.RecordBatch] = []
    n_pending = 0
    for batch in reader:
        pending.append(batch)
        n_pending += batch.num_rows
        while n_pending >= chunk_rows:
            table = pa.Table.from_batches(pending)
            yield table.slice(0, chunk_rows)
            pending = table.slice(chunk_rows).to_batches()
            n_pending -= chunk_rows
    yield pa.Table.from_batches(pending, schema=reader.schema)


def _numbered(tables: Iterator[pa.Table], bad: list[Any]) -> Iterator[Chunk]:
    """Give rows their numbers. `bad` holds what the parser has skipped so far, which may be ahead of the rows given."""
    next_number, seen = 1, 0
    for table in tables:
        numbers: list[npt.NDArray[np.int64]] = []
        unreadable: list[UnreadableRow] = []
        missing = table.num_rows
        # The parser counts the header as row 1. A skipped row belongs to the chunk whose rows stand around it.
        while seen < len(bad) and bad[seen].number - 1 <= next_number + missing:
            row = bad[seen]
            before = row.number - 1 - next_number
            numbers.append(np.arange(next_number, next_number + before))
            # Not the line's text: which of it is a card number, nobody can say any more.
            reason = f"expected {row.expected_columns} values, got {row.actual_columns}"
            unreadable.append(UnreadableRow(row_number=row.number - 1, reason=reason))
            missing -= before
            next_number = row.number
            seen += 1
        numbers.append(np.arange(next_number, next_number + missing))
        next_number += missing
        yield Chunk(table=table, row_numbers=np.concatenate(numbers).astype(np.int64), unreadable=unreadable)
