"""Compares the graph with the record store: counts, checksums, and the first difference by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from graph_features.clock import NEVER_MS
from graph_features.sources.base import GraphStore, RecordStore
from graph_features.sources.checksum import BUCKET_ROWS
from graph_features.sources.payments import EDGE_SCHEMA, edges_of

Checksums = Mapping[int, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The payment with the lowest sequence number on which the two stores disagree.

    `field` is the first column that differs, with both values; None when the payment is missing from one side, whose
    value is then None.
    """

    seq: int
    transaction_id: str
    field: str | None
    in_records: object
    in_graph: object

    def __str__(self) -> str:
        name = f"transaction {self.transaction_id} (ingest sequence {self.seq})"
        if self.field is not None:
            return f"{name}: {self.field} is {self.in_records!r} in the record store, {self.in_graph!r} in the graph"
        where = "the graph" if self.in_graph is None else "the record store"
        return f"{name} is missing from {where}"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Payments on both sides up to the graph's watermark, what the graph lacks beyond it, and the first difference."""

    watermark: int
    in_records: int
    in_graph: int
    lag_payments: int
    difference: Difference | None

    @property
    def equal(self) -> bool:
        """Whether the graph holds every payment of the record store and nothing else."""
        return self.difference is None and self.lag_payments == 0

    def __str__(self) -> str:
        counts = (
            f"up to ingest sequence {self.watermark:,}: {self.in_records:,} payments in the record store, "
            f"{self.in_graph:,} in the graph"
        )
        lag = f"; {self.lag_payments:,} newer payments are not in the graph yet" if self.lag_payments else ""
        verdict = f"first difference: {self.difference}" if self.difference else "no difference"
        return f"{counts}{lag}; {verdict}"


def verify(records: RecordStore, graph: GraphStore) -> VerifyReport:
    """Compare all payments up to the graph's watermark without shipping rows; it may run beside ingest and sync."""
    # The graph's watermark first: the records up to it are complete and never change again.
    watermark = graph.watermark()
    stored, drawn = records.checksum(), graph.checksum()
    total = sum(count for count, _ in stored.values())
    last = watermark // BUCKET_ROWS
    stored = {bucket: part for bucket, part in stored.items() if bucket < last}
    drawn = {bucket: part for bucket, part in drawn.items() if bucket < last}
    # The bucket in which the watermark lies is half-full on one side: it is compared row by row.
    stored_tail = _up_to(watermark, records.checksum(bucket=last))
    drawn_tail = _up_to(watermark, graph.checksum(bucket=last))
    seq = _first_difference(stored, drawn)
    if seq is not None:
        seq = _first_difference(records.checksum(bucket=seq), graph.checksum(bucket=seq))
    else:
        seq = _first_difference(stored_tail, drawn_tail)
    in_records = _count(stored) + _count(stored_tail)
    return VerifyReport(
        watermark=watermark,
        in_records=in_records,
        in_graph=_count(drawn) + _count(drawn_tail),
        lag_payments=max(0, total - in_records),
        difference=None if seq is None else _difference(records, graph, seq),
    )


def _up_to(watermark: int, rows: Checksums) -> dict[int, tuple[int, int]]:
    return {seq: part for seq, part in rows.items() if seq <= watermark}


def _count(parts: Checksums) -> int:
    return sum(count for count, _ in parts.values())


def _first_difference(left: Checksums, right: Checksums) -> int | None:
    return min((key for key in left.keys() | right.keys() if left.get(key) != right.get(key)), default=None)


def _difference(records: RecordStore, graph: GraphStore, seq: int) -> Difference:
    """Both sides' rows at `seq`, side by side."""
    batches = list(records.read_transactions(after_seq=seq - 1, up_to_seq=seq))
    stored = edges_of(pa.Table.from_batches(batches)).to_pylist() if batches else []
    drawn = graph.read_edges(before_ms=NEVER_MS, after_seq=seq - 1, up_to_seq=seq).to_pylist()
    if not stored or not drawn:
        known: dict[str, Any] = (stored or drawn)[0]
        name = known["transaction_id"]
        return Difference(
            seq=seq,
            transaction_id=name,
            field=None,
            in_records=name if stored else None,
            in_graph=name if drawn else None,
        )
    for field in EDGE_SCHEMA.names:
        if stored[0][field] != drawn[0][field]:
            return _differing(seq, stored[0], drawn[0], field)
    return Difference(
        seq=seq, transaction_id=stored[0]["transaction_id"], field="count", in_records=len(stored), in_graph=len(drawn)
    )


def _differing(seq: int, stored: dict[str, Any], drawn: dict[str, Any], field: str) -> Difference:
    return Difference(
        seq=seq,
        transaction_id=stored["transaction_id"],
        field=field,
        in_records=stored[field],
        in_graph=drawn[field],
    )
