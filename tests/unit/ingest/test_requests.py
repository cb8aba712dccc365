"""Rows of a request follow the rules of files, and the first mistake is named with its place."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from graph_features.contracts import LABEL_SCHEMA, STATUS_SCHEMA, TRANSACTION_SCHEMA
from graph_features.errors import InvalidInputError
from graph_features.ingest.requests import label_table, status_table, transaction_table
from graph_features.settings import IngestSettings

SETTINGS = IngestSettings(rates={"JPY": "0.006"})
GOOD = {
    "transaction_id": "t",
    "event_timestamp": "2026-03-01T12:00:00Z",
    "sender_id": "a",
    "receiver_id": "b",
    "amount": 12.3,
    "currency": "EUR",
}


def test_rows_keep_their_order_and_types() -> None:
    """The table has one row per given row, whatever of the optional fields each has."""
    moment = datetime(2026, 3, 1, 14, 0, 0, 1999, tzinfo=timezone(timedelta(hours=2)))
    rows = [
        GOOD,
        {**GOOD, "transaction_id": "u", "amount": Decimal("7"), "currency": "JPY", "event_timestamp": moment},
        {**GOOD, "transaction_id": "v", "amount": "0.30", "sender_lat": 3, "ip": None, "channel": "web"},
    ]
    table = transaction_table(rows, SETTINGS)
    assert table.schema == TRANSACTION_SCHEMA
    assert table["transaction_id"].to_pylist() == ["t", "u", "v"]
    assert table["amount"].to_pylist() == [1230, 7, 30]
    assert table["amount_base"].to_pylist() == [1230, 4, 30]
    assert table["event_timestamp"].to_pylist()[1] == datetime(2026, 3, 1, 12, 0, 0, 1000, tzinfo=UTC)
    assert table["channel"].to_pylist() == [None, None, "web"]
    assert table["sender_lat"].to_pylist() == [None, None, 3.0]


def test_no_rows_are_an_empty_table() -> None:
    """An empty batch is the caller's to refuse."""
    assert transaction_table([], SETTINGS).equals(TRANSACTION_SCHEMA.empty_table())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount": float("nan")}, "amount"),
        ({"amount": float("inf")}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": 1.005}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": [1]}, "amount"),
        ({"amount": "much"}, "amount"),
        ({"amount": 10**5000}, "amount"),
        ({"amount": Decimal("1e999999")}, "amount"),
        ({"amount": Decimal("NaN")}, "amount"),
        ({"amount": None}, "amount"),
        ({"event_timestamp": "2026-03-01T12:00:00"}, "event_timestamp"),
        ({"event_timestamp": datetime(2026, 3, 1)}, "event_timestamp"),  # noqa: DTZ001
        ({"event_timestamp": "9999-01-01T00:00:00Z"}, "event_timestamp"),
        ({"event_timestamp": 1772366400}, "event_timestamp"),
        ({"sender_id": ""}, "sender_id"),
        ({"sender_id": 5}, "sender_id"),
        ({"sender_id": "x" * 10_000}, "sender_id"),
        ({"receiver_id": "a\x00b"}, "receiver_id"),
        ({"receiver_id": "\ud800"}, "receiver_id"),
        ({"currency": "XXX"}, "currency"),
        ({"sender_country": "germany"}, "sender_country"),
        ({"sender_lat": 91}, "sender_lat"),
        ({"sender_lat": "3"}, "sender_lat"),
        ({"receiver_lon": 10**400}, "receiver_lon"),
        ({"is_fraud": True}, "is_fraud"),
        ({"amount_base": 5}, "amount_base"),
        ({"spam": 1}, "spam"),
    ],
)
def test_a_mistake_is_named_with_its_place(change: dict[str, Any], field: str) -> None:
    """The error's field is transactions[1].<field>, with what was expected and what came."""
    with pytest.raises(InvalidInputError) as caught:
        transaction_table([GOOD, {**GOOD, **change}], SETTINGS)
    assert caught.value.field == f"transactions[1].{field}"
    assert caught.value.expected
    assert len(str(caught.value)) < 400


def test_a_missing_field_is_named() -> None:
    """A row without a required field is refused, under the name that the caller gives the list."""
    row = {name: value for name, value in GOOD.items() if name != "sender_id"}
    with pytest.raises(InvalidInputError, match=r"rows\[0\]\.sender_id: expected a value"):
        transaction_table([row], SETTINGS, name="rows")


def test_statuses_and_labels() -> None:
    """Statuses and labels have their own tables; a label names both parties unless it says otherwise."""
    status = {"transaction_id": "t", "status": "failed", "status_timestamp": "2026-03-01T12:00:00Z"}
    label = {"transaction_id": "t", "is_fraud": True, "label_timestamp": datetime(2026, 3, 1, tzinfo=UTC)}
    assert status_table([status], SETTINGS).schema == STATUS_SCHEMA
    table = label_table([label, {**label, "fraud_party": "sender"}], SETTINGS)
    assert table.schema == LABEL_SCHEMA
    assert table["fraud_party"].to_pylist() == ["both", "sender"]
    with pytest.raises(InvalidInputError, match=r"statuses\[0\]\.status: expected one of completed, failed, reversed"):
        status_table([{**status, "status": "lost"}], SETTINGS)
    with pytest.raises(InvalidInputError, match=r"labels\[0\]\.is_fraud: expected true or false"):
        label_table([{**label, "is_fraud": 1}], SETTINGS)
    with pytest.raises(InvalidInputError, match=r"labels\[0\]\.fraud_party"):
        label_table([{**label, "fraud_party": "judge"}], SETTINGS)


def test_hashing_is_that_of_files() -> None:
    """A device that came by request and by file is the same device."""
    keyed = IngestSettings(hash_key="k")  # type: ignore[arg-type]
    table = transaction_table([{**GOOD, "device_id": "d"}], keyed)
    assert (
        table["device_id"].to_pylist()
        == transaction_table([{**GOOD, "device_id": "d"}], keyed)["device_id"].to_pylist()
    )
    assert table["device_id"].to_pylist() != ["d"]
    assert pa.compute.utf8_length(table["device_id"]).to_pylist() == [32]
