"""Which label a payment has at a cut."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from graph_features.clock import DAY_MS
from graph_features.contracts import LABEL_SCHEMA, TRANSACTION_SCHEMA
from graph_features.sources.sqlite import SqliteRecords
from training.dataset import labelled_payments


@pytest.fixture
def records(tmp_path: Path) -> SqliteRecords:
    """Payments p0 to p4 on days 0 to 4 (p3 and p4 beyond the others); p0 called fraud, later genuine; p1 fraud."""
    store = SqliteRecords(tmp_path / "records.sqlite")
    store.create_schema()
    rows = [
        {
            "transaction_id": f"p{day}",
            "event_timestamp": day * DAY_MS,
            "sender_id": "a",
            "receiver_id": "b",
            "amount": 100,
            "currency": "EUR",
            "amount_base": 100,
        }
        for day in range(5)
    ]
    store.write_transactions(pa.Table.from_pylist(rows, TRANSACTION_SCHEMA))
    labels = [("p0", True, 2), ("p0", False, 6), ("p1", True, 3), ("p4", True, 9)]
    store.write_labels(
        pa.Table.from_pylist(
            [
                {"transaction_id": name, "is_fraud": fraud, "label_timestamp": day * DAY_MS, "fraud_party": "sender"}
                for name, fraud, day in labels
            ],
            LABEL_SCHEMA,
        )
    )
    return store


@pytest.mark.parametrize(
    ("cut_day", "expected", "left_out"),
    [
        # On day 5 with a maturity of 2 days: p0 and p1 are known frauds, p2 and p3 old enough, p4 too young.
        (5, {"p0": True, "p1": True, "p2": False, "p3": False}, 1),
        # A label that comes at the cut itself is not known before it.
        (6, {"p0": True, "p1": True, "p2": False, "p3": False, "p4": False}, 0),
        (6.5, {"p0": False, "p1": True, "p2": False, "p3": False, "p4": False}, 0),
        (10, {"p0": False, "p1": True, "p2": False, "p3": False, "p4": True}, 0),
    ],
)
def test_latest_known_label_wins(
    records: SqliteRecords, cut_day: float, expected: dict[str, bool], left_out: int
) -> None:
    """The latest label before the cut counts; without one, old payments are genuine and young ones left out."""
    payments = labelled_payments(
        records, start_ms=0, end_ms=5 * DAY_MS, label_cut_ms=int(cut_day * DAY_MS), maturity_s=2 * 86_400
    )
    got = dict(zip(payments.transactions["transaction_id"].to_pylist(), payments.is_fraud.tolist(), strict=True))
    assert (got, payments.left_out) == (expected, left_out)


def test_period_excludes_its_end(records: SqliteRecords) -> None:
    """Only payments from the start up to, and without, the end are taken."""
    payments = labelled_payments(records, start_ms=DAY_MS, end_ms=3 * DAY_MS, label_cut_ms=20 * DAY_MS, maturity_s=0)
    assert payments.transactions["transaction_id"].to_pylist() == ["p1", "p2"]
