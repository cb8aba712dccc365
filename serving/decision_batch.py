"""Decisions of requests scored together, as columns: quick to make and write, taken apart by whoever stores them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

Found = dict[str, str | None]

ABSENT = -1


class DecisionBatch(Struct, frozen=True, kw_only=True):
    """Decisions on B payments from V views.

    `request_ids` [B] are those of the requests that the payments came in. `payments` is an Arrow stream of their
    TRANSACTION_SCHEMA rows, `score` float32 [B]. `as_of_ms` and `sequence` are int64 [V, 2B]: of each row that was used
    its instant (ABSENT where there was none) and the ingest sequence it was computed from; `roles` are (first B rows,
    last B rows) by view. `unseen` and `degraded` are by payment, where there is anything to say.
    """

    request_ids: list[str]
    scored_at_ms: int
    model_name: str
    model_version: str
    model_alias: str
    feature_hash: str
    threshold: float
    payments: bytes
    score: bytes
    views: list[str]
    roles: list[tuple[str, str]]
    as_of_ms: bytes
    sequence: bytes
    unseen: dict[int, list[str]]
    degraded: dict[int, list[Found]]

    def to_bytes(self) -> bytes:
        """As it is kept in a journal."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> DecisionBatch:
        """What `to_bytes` made."""
        return msgspec.msgpack.decode(data, type=cls)

    def given(self) -> tuple[list[dict[str, Any]], list[int]]:
        """The payments as they were scored, without what is null in them, and the times in ms that they speak of."""
        table = pa.ipc.open_stream(self.payments).read_all()
        events_ms: list[int] = table["event_timestamp"].cast(pa.int64()).to_pylist()
        return _inputs(table.drop_columns(["event_timestamp"])), events_ms

    def scores(self) -> list[float]:
        """By payment."""
        values: list[float] = np.frombuffer(self.score, np.float32).astype(np.float64).tolist()
        return values

    def versions(self, n: int) -> npt.NDArray[np.int64]:
        """[as_of in ms, ingest sequence] of the rows that were used for n payments, int64 [V, 2n, 2]; see ABSENT."""
        shape = (len(self.views), 2 * n)
        as_of_ms = np.frombuffer(self.as_of_ms, np.int64).reshape(shape)
        sequence = np.frombuffer(self.sequence, np.int64).reshape(shape)
        return np.stack([as_of_ms, sequence], axis=-1)

    def rows(self) -> list[dict[str, Any]]:
        """One record per payment: enough to compute the score again from the offline store."""
        given, events_ms = self.given()
        used = self._rows_used(len(events_ms))
        shared = {
            "scored_at_ms": self.scored_at_ms,
            "model_name": self.model_name,
            "model_version": self.model_version,
            "model_alias": self.model_alias,
            "feature_hash": self.feature_hash,
            "threshold": self.threshold,
        }
        return [
            {
                **shared,
                "request_id": request_id,
                "transaction_id": inputs["transaction_id"],
                "event_timestamp_ms": event_ms,
                "fraud_score": score,
                "decision": "flag" if score >= self.threshold else "pass",
                "inputs": inputs,
                "rows": rows,
                "unseen": self.unseen.get(at, []),
                "degraded": self.degraded.get(at, []),
            }
            for at, (request_id, inputs, event_ms, score, rows) in enumerate(
                zip(self.request_ids, given, events_ms, self.scores(), used, strict=True)
            )
        ]

    def _rows_used(self, n: int) -> list[dict[str, dict[str, list[int] | None]]]:
        """Per payment, role and view [as_of in ms, ingest sequence] of the row that was used, None where none was."""
        versions = self.versions(n)
        names: dict[str, list[str]] = {}
        columns: dict[str, list[list[list[int] | None]]] = {}
        for at, (view, roles) in enumerate(zip(self.views, self.roles, strict=True)):
            found: list[list[int] | None] = versions[at].tolist()
            for row in np.flatnonzero(versions[at, :, 0] == ABSENT).tolist():
                found[row] = None
            for role, part in zip(roles, (found[:n], found[n:]), strict=True):
                names.setdefault(role, []).append(view)
                columns.setdefault(role, []).append(part)
        by_role = {
            role: [dict(zip(names[role], versions, strict=True)) for versions in zip(*parts, strict=True)]
            for role, parts in columns.items()
        }
        return [dict(zip(by_role, parts, strict=True)) for parts in zip(*by_role.values(), strict=True)]


def stream_of(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _inputs(table: pa.Table) -> list[dict[str, Any]]:
    """Rows without the columns that are null in them."""
    whole = [name for name in table.column_names if not table[name].null_count]
    gaps = [name for name in table.column_names if 0 < table[name].null_count < table.num_rows]
    rows = [dict(zip(whole, row, strict=True)) for row in _zipped(table, whole)]
    for name in gaps:
        for row, value in zip(rows, table[name].to_pylist(), strict=True):
            if value is not None:
                row[name] = value
    return rows


def _zipped(table: pa.Table, names: Sequence[str]) -> Any:
    return zip(*(_values(table[name]) for name in names), strict=True)


def _values(column: pa.ChunkedArray) -> list[Any]:
    # Through NumPy, which makes a list ten times as fast as Arrow does.
    values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
    return values
