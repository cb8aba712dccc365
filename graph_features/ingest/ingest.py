"""A file into the record store, chunk by chunk: each row is accepted or named in the rejects; twice equals once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np
import numpy.typing as npt

from graph_features.errors import InvalidInputError
from graph_features.ingest.mapping import ColumnMapping, columns_of
from graph_features.ingest.reader import Chunk, SourceFile
from graph_features.ingest.rejects import Reject, RejectsFile
from graph_features.ingest.validate import Validated, Validator
from graph_features.settings import IngestSettings
from graph_features.sources.base import MarkPending, RecordStore, WriteResult

CHUNK_ROWS: Final = 50_000
_KEY_FIELDS: Final = {"transactions": "transaction_id", "statuses": "status", "labels": "is_fraud"}


@dataclass(frozen=True, kw_only=True)
class IngestProgress:
    """Rows of the file dealt with so far; `total` is how many it has, for CSV an estimate from its line breaks.

    `inserted`, `known` and `rejected` count rows of the file and add up to `rows`: new ones, those stored before with
    the same content, and those in the rejects file. `statuses` and `labels` count what was new of each, from a file of
    their own or as columns. `truncated` and `rounded` count rows with an instant finer than a millisecond, and with an
    amount that carried the residue of float arithmetic.
    """

    rows: int = 0
    total: int = 0
    inserted: int = 0
    known: int = 0
    rejected: int = 0
    statuses: int = 0
    labels: int = 0
    truncated: int = 0
    rounded: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class IngestReport(IngestProgress):
    """What became of a file. All that is counted here is committed; `interrupted` says that the file goes on."""

    interrupted: bool = False
    unused_columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{self.rows:,} rows: {self.inserted:,} new, {self.known:,} known, {self.rejected:,} rejected",
            f"{self.statuses:,} statuses and {self.labels:,} labels new",
            f"{self.seconds:.1f} s, {self.rows / max(self.seconds, 1e-9):,.0f} rows/s",
        ]
        if self.truncated:
            parts.append(f"{self.truncated:,} times cut to milliseconds")
        if self.rounded:
            parts.append(f"{self.rounded:,} amounts rid of float residue")
        if self.unused_columns:
            parts.append(f"columns not used: {', '.join(self.unused_columns)}")
        if self.interrupted:
            parts.append("interrupted: run it again to complete it")
        return "; ".join(parts)


def ingest_file(
    path: Path,
    *,
    kind: str,
    mapping: ColumnMapping,
    records: RecordStore,
    settings: IngestSettings,
    mark_pending: MarkPending | None,
    rejects_path: Path,
    chunk_rows: int = CHUNK_ROWS,
    progress: Callable[[IngestProgress], None] = lambda _: None,
) -> IngestReport:
    """Validate and write the rows of a transactions, statuses or labels file; the store's tables are made if missing.

    Each chunk is written in one database transaction per kind of record, so a run that died is completed by the next,
    with the same ingest sequence numbers. Ctrl-C ends after the chunk under way (a second one at once) and returns a
    report that says so. `mark_pending` runs inside the write, see RecordStore.

    Raises InvalidInputError for a mapping that does not fit or a file that cannot be read (what was committed before
    stays), SettingsError for bad rates, StoreUnavailableError.
    """
    if path.resolve() == rejects_path.resolve():
        raise InvalidInputError(field="rejects", expected="another file than the input", got=str(path))
    file = SourceFile(path, mapping)
    sources = mapping.resolve(kind, file.columns)
    used = tuple(dict.fromkeys(column for source in sources.values() for column in columns_of(source)))
    run = _Run(kind, Validator(kind, sources, settings), records, mark_pending, file.total_rows)
    records.create_schema()
    with RejectsFile(rejects_path) as rejects, _interruptible() as stop:
        try:
            for chunk in file.chunks(used, chunk_rows):
                rejects.write(run.take(chunk))
                progress(run.so_far())
                if stop.is_set():
                    break
        except KeyboardInterrupt:
            stop.set()
    unused = tuple(column for column in file.columns if column not in used)
    return IngestReport(**vars(run.so_far()), interrupted=stop.is_set(), unused_columns=unused)


class _Run:
    """Counts and writes chunk after chunk."""

    def __init__(
        self,
        kind: str,
        validator: Validator,
        records: RecordStore,
        mark_pending: MarkPending | None,
        total_rows: int,
    ) -> None:
        self._kind = kind
        self._validator = validator
        self._records = records
        self._mark_pending = mark_pending
        self._total_rows = total_rows
        self._began = time.monotonic()
        self._rows = self._rejected = self._truncated = self._rounded = 0
        self._new = {"transactions": 0, "statuses": 0, "labels": 0}

    def so_far(self) -> IngestProgress:
        inserted = self._new[self._kind]
        return IngestProgress(
            rows=self._rows,
            total=self._total_rows,
            inserted=inserted,
            known=self._rows - inserted - self._rejected,
            rejected=self._rejected,
            statuses=self._new["statuses"],
            labels=self._new["labels"],
            truncated=self._truncated,
            rounded=self._rounded,
            seconds=time.monotonic() - self._began,
        )

    def take(self, chunk: Chunk) -> list[Reject]:
        """Validate and write a chunk; return its rejects."""
        valid = self._validator.validate(chunk.table, chunk.row_numbers)
        bad = [
            Reject(row=row.row_number, transaction_id="", field="row", reason=row.reason) for row in chunk.unreadable
        ]
        faults = [(fault.row, fault.field, fault.reason) for fault in valid.faults]
        results, refused = self._write(valid)
        for row, field, reason in (*faults, *refused):
            transaction_id = valid.ids[row].as_py() or ""
            number = int(chunk.row_numbers[row])
            bad.append(Reject(row=number, transaction_id=transaction_id, field=field, reason=reason))
        self._rows += chunk.table.num_rows + len(chunk.unreadable)
        self._rejected += len(bad)
        self._truncated += valid.truncated
        self._rounded += valid.rounded
        for kind, result in results.items():
            self._new[kind] += int(result.inserted.sum())
        return bad

    def _write(self, valid: Validated) -> tuple[dict[str, WriteResult], list[tuple[int, str, str]]]:
        """Write transactions, then the statuses and labels of those that were not refused."""
        results: dict[str, WriteResult] = {}
        refused: dict[int, tuple[int, str, str]] = {}
        parts = (
            ("transactions", valid.transactions, valid.transaction_rows, self._records.write_transactions),
            ("statuses", valid.statuses, valid.status_rows, self._records.write_statuses),
            ("labels", valid.labels, valid.label_rows, self._records.write_labels),
        )
        for kind, table, rows, write in parts:
            keep = ~np.isin(rows, list(refused))
            if not keep.all():
                table, rows = table.filter(keep), rows[keep]
            if len(rows):
                results[kind] = write(table, self._mark_pending)
                refused |= _refused(kind, rows, results[kind])
        return results, list(refused.values())


def _refused(kind: str, rows: npt.NDArray[np.int64], result: WriteResult) -> dict[int, tuple[int, str, str]]:
    field = _KEY_FIELDS[kind]
    return {int(rows[position]): (int(rows[position]), field, reason) for position, reason in result.rejected.items()}


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """While open, the first Ctrl-C sets the event that is yielded and the next one raises KeyboardInterrupt."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def note(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
