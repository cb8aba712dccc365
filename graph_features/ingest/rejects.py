"""The rejects file: one CSV line per refused row, so that it can be mended and ingested again."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from graph_features.errors import InvalidInputError

HEADER: Final = ("row", "transaction_id", "field", "reason")


@dataclass(frozen=True, kw_only=True, order=True)
class Reject:
    """Why a row was refused. `row` counts from 1 after the header."""

    row: int
    transaction_id: str
    field: str
    reason: str


class RejectsFile:
    """Written as the ingest goes, complete up to the last committed chunk; no file remains when nothing was refused."""

    def __init__(self, path: Path) -> None:
        """Replace what an earlier run left; raise InvalidInputError when the file cannot be written."""
        self.path = path
        self.count = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise InvalidInputError(
                field=str(path), expected="a file that can be written", got=error.strerror
            ) from None
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(HEADER)

    def write(self, rejects: Iterable[Reject]) -> int:
        """Append and flush, in the order of rows; return how many rows there were."""
        rows = sorted(rejects)
        for reject in rows:
            self._writer.writerow((reject.row, reject.transaction_id, reject.field, reject.reason))
        self._file.flush()
        self.count += len(rows)
        return len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self.count == 0:
            self.path.unlink(missing_ok=True)
