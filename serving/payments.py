"""Decoded payments, statuses and labels to the tables of graph_features.contracts, by the rules of ingest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from graph_features.clock import from_ms
from graph_features.errors import InvalidInputError
from graph_features.ingest.requests import label_table, status_table, transaction_table
from graph_features.settings import IngestSettings
from serving.api import Label, Status, Transaction
from serving.quick import QuickTable

_FINER = re.compile(r"\.\d{3}\d*[1-9]")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows as ingest would have them, and what the sender should know."""

    table: pa.Table
    notices: list[str]


class Payments:
    """Makes tables of request rows. A request may not speak of a time later than the clock and a little skew."""

    def __init__(self, settings: IngestSettings, *, future_skew_ms: int) -> None:
        self._settings = settings
        self._quick = QuickTable(settings)
        self._future_skew_ms = future_skew_ms

    def transactions(self, rows: Sequence[Transaction], *, now_ms: int) -> Rows:
        """TRANSACTION_SCHEMA rows; raise InvalidInputError for the first that is wrong."""
        table = self._quick.of(rows)
        if table is not None and _latest_ms(table["event_timestamp"]) <= now_ms + self._future_skew_ms:
            return Rows(table=table, notices=[])
        return self._rows(rows, transaction_table, "transactions", "event_timestamp", now_ms)

    def statuses(self, rows: Sequence[Status], *, now_ms: int) -> Rows:
        """STATUS_SCHEMA rows; raise InvalidInputError for the first that is wrong."""
        return self._rows(rows, status_table, "statuses", "status_timestamp", now_ms)

    def labels(self, rows: Sequence[Label], *, now_ms: int) -> Rows:
        """LABEL_SCHEMA rows; raise InvalidInputError for the first that is wrong."""
        return self._rows(rows, label_table, "labels", "label_timestamp", now_ms)

    def _rows(
        self,
        rows: Sequence[Transaction] | Sequence[Status] | Sequence[Label],
        make: Callable[[Sequence[Mapping[str, Any]], IngestSettings], pa.Table],
        name: str,
        field: str,
        now_ms: int,
    ) -> Rows:
        plain = [msgspec.structs.asdict(row) for row in rows]
        table = make(plain, self._settings)
        latest_ms = now_ms + self._future_skew_ms
        late = np.flatnonzero(table[field].cast(pa.int64()).to_numpy() > latest_ms)
        if len(late):
            raise InvalidInputError(
                field=f"{name}[{late[0]}].{field}",
                expected=f"a time that has come (until {from_ms(latest_ms).isoformat(timespec='seconds')})",
                got=plain[late[0]][field],
            )
        finer = any(_FINER.search(row[field]) for row in plain)
        notices = [f"{field}: times finer than a millisecond were truncated"] if finer else []
        return Rows(table=table, notices=notices)


def _latest_ms(moments: pa.ChunkedArray) -> int:
    return int(moments.cast(pa.int64()).to_numpy().max())
