"""Validation: what is accepted becomes the contract's tables, what is not is named by row and field."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_features.clock import DAY_MS
from graph_features.contracts import LABEL_SCHEMA, STATUS_SCHEMA, TRANSACTION_SCHEMA
from graph_features.ingest.mapping import parse_mapping
from graph_features.ingest.validate import Validated, Validator
from graph_features.settings import IngestSettings

GOOD = {
    "transaction_id": "t",
    "event_timestamp": "2026-03-01T12:00:00Z",
    "sender_id": "a",
    "receiver_id": "b",
    "amount": "12.30",
    "currency": "EUR",
}
AT = 1_772_366_400_000


def check(
    columns: dict[str, list], *, mapping: dict | None = None, kind: str = "transactions", **settings: object
) -> Validated:
    """Validate columns; those of GOOD that are not given hold good values."""
    n = max((len(values) for values in columns.values()), default=1)
    defaults = {"transaction_id": [f"t{row}" for row in range(n)]}
    if kind == "transactions":
        defaults = {name: [value] * n for name, value in GOOD.items()} | defaults
    table = pa.table(
        {
            name: values if isinstance(values, pa.Array) else pa.array(values)
            for name, values in (defaults | columns).items()
        }
    )
    sources = parse_mapping({"columns": mapping or {}}).resolve(kind, table.column_names)
    return Validator(kind, sources, IngestSettings(**settings)).validate(table, np.arange(1, n + 1))  # type: ignore[arg-type]


def faults(validated: Validated) -> list[tuple[int, str]]:
    return [(fault.row, fault.field) for fault in validated.faults]


def test_good_rows_become_contract_tables() -> None:
    """Tables have exactly the contract's schemas and hold minor units, instants and nulls for what is absent."""
    valid = check({"amount": ["12.30", "5"], "currency": ["EUR", "JPY"]}, rates={"JPY": "0.006"})
    assert valid.transactions.schema == TRANSACTION_SCHEMA
    assert valid.statuses.schema == STATUS_SCHEMA
    assert valid.labels.schema == LABEL_SCHEMA
    assert valid.transactions["amount"].to_pylist() == [1230, 5]
    assert valid.transactions["amount_base"].to_pylist() == [1230, 3]
    assert valid.transactions["event_timestamp"].cast(pa.int64()).to_pylist() == [AT, AT]
    assert valid.transactions["ip"].null_count == 2
    assert valid.faults == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("transaction_id", None),
        ("transaction_id", ""),
        ("sender_id", "x" * 129),
        ("sender_id", "a\tb"),
        ("receiver_id", "a\x00b"),
        ("receiver_id", "a\u2028b"),
        ("receiver_id", "a\x85b"),
        ("event_timestamp", "yesterday"),
        ("event_timestamp", None),
        ("amount", None),
        ("amount", "-1"),
        ("amount", "1.005"),
        ("currency", "usd"),
        ("currency", "USD"),
        ("currency", None),
        ("channel", "x" * 129),
        ("device_id", "\x1b[0m"),
        ("sender_country", "de"),
        ("sender_country", "DEU"),
        ("receiver_country", "D1"),
        ("sender_lat", "90.1"),
        ("sender_lat", "north"),
        ("receiver_lon", "-180.5"),
        ("receiver_lon", "nan"),
    ],
)
def test_a_bad_value_refuses_its_row_alone(field: str, value: str | None) -> None:
    """Each rule of each column: the row is named with its field, the rows around it are accepted."""
    good = {"channel": "web", "device_id": "d", "sender_country": "DE", "receiver_country": "FR"}
    normal = GOOD.get(field, good.get(field, "1.5"))
    valid = check({"transaction_id": ["t0", "t1", "t2"], field: [normal, value, normal]})
    assert faults(valid) == [(1, field)]
    assert valid.transaction_rows.tolist() == [0, 2]


def test_limits_are_inclusive() -> None:
    """128 characters, the poles and the date line, the ends of time and the largest amount are accepted."""
    valid = check(
        {
            "sender_id": ["ü" * 128],
            "sender_lat": [-90.0],
            "receiver_lon": [180.0],
            "event_timestamp": ["2099-12-31T23:59:59.999Z"],
            "amount": ["10000000000000"],
        }
    )
    assert valid.faults == []
    assert check({"event_timestamp": ["1970-01-01T00:00:00Z"]}).faults == []


def test_an_amount_that_is_too_large_in_the_base_currency_is_refused() -> None:
    """The limit holds for amount_base too, since that is what features add up."""
    valid = check({"amount": ["9000000000000"], "currency": ["USD"]}, rates={"USD": "2"})
    assert faults(valid) == [(0, "amount")]


def test_one_fault_per_row() -> None:
    """A row with several mistakes is refused once, so that rejects count rows."""
    valid = check({"amount": ["x", "1"], "sender_id": ["", "s"], "currency": ["", "EUR"]})
    assert len(valid.faults) == 1


def test_bytes_that_are_no_text_are_faults() -> None:
    """Values of a CSV file come as bytes; those that are not UTF-8 are named and do not spoil the others."""
    valid = check({"sender_id": [b"a", b"\xff\xfe", "zwölf".encode()]})
    assert faults(valid) == [(1, "sender_id")]
    assert valid.transactions["sender_id"].to_pylist() == ["a", "zwölf"]


def test_whole_numbers_are_ids() -> None:
    """Integer ids, and floats of data frames with gaps, lose no digit and gain no point; fractions are refused."""
    assert check({"sender_id": [5, 2**53]}).transactions["sender_id"].to_pylist() == ["5", str(2**53)]
    valid = check({"sender_id": [5.0, 5.5, math.nan]})
    assert valid.transactions["sender_id"].to_pylist() == ["5"]
    assert faults(valid) == [(1, "sender_id"), (2, "sender_id")]


def test_dictionaries_and_null_columns_are_read() -> None:
    """Encoded columns are decoded; a column that holds nothing is absent."""
    valid = check({"sender_id": pa.array(["a", "b"]).dictionary_encode(), "ip": pa.nulls(2), "sender_lat": pa.nulls(2)})
    assert valid.transactions["sender_id"].to_pylist() == ["a", "b"]
    assert valid.transactions["ip"].null_count == 2


def test_prefixes_constants_row_numbers_and_templates() -> None:
    """Ids can be made: with a prefix, from a constant, from the row's number, from several columns."""
    mapping = {
        "transaction_id": {"row_number": True, "prefix": "r"},
        "sender_id": {"column": "x", "prefix": "c"},
        "receiver_id": {"template": "{x}/{y}"},
        "channel": {"value": "web"},
    }
    rows = check({"x": [1, 2, None], "y": ["p", "q", "r"]}, mapping=mapping)
    assert rows.transactions.select(["transaction_id", "sender_id", "receiver_id", "channel"]).to_pylist() == [
        {"transaction_id": "r1", "sender_id": "c1", "receiver_id": "1/p", "channel": "web"},
        {"transaction_id": "r2", "sender_id": "c2", "receiver_id": "2/q", "channel": "web"},
    ]
    assert faults(rows) == [(2, "sender_id")]


def test_words_are_translated() -> None:
    """`values:` turns the file's words into ours and leaves others as they are."""
    mapping = {"status": {"column": "state", "values": {"OK": "completed", "KO": "failed"}}}
    valid = check({"state": ["OK", "KO", None, "failed", "spam"]}, mapping=mapping)
    assert valid.statuses["status"].to_pylist() == ["completed", "failed", "failed"]
    assert valid.status_rows.tolist() == [0, 1, 3]
    assert faults(valid) == [(4, "status")]


def test_amounts_may_come_in_minor_units() -> None:
    """`unit: minor` takes integers as they are, whatever the currency's decimals."""
    mapping = {"amount": {"column": "cents", "unit": "minor"}}
    valid = check({"cents": [1230, 7], "currency": ["EUR", "JPY"]}, mapping=mapping, rates={"JPY": "1"})
    assert valid.transactions["amount"].to_pylist() == [1230, 7]
    assert faults(check({"cents": ["12.5"]}, mapping=mapping)) == [(0, "amount")]


def test_labels_as_a_column() -> None:
    """A label column gives labels where it says something, known after the delay, for both parties by default."""
    mapping = {"label_timestamp": {"delay": "7d"}}
    valid = check({"is_fraud": ["1", "false", None, "2"]}, mapping=mapping)
    assert valid.labels["is_fraud"].to_pylist() == [True, False]
    assert valid.labels["label_timestamp"].cast(pa.int64()).to_pylist() == [AT + 7 * DAY_MS] * 2
    assert valid.labels["fraud_party"].to_pylist() == ["both", "both"]
    assert valid.transaction_rows.tolist() == [0, 1, 2]
    assert faults(valid) == [(3, "is_fraud")]


@pytest.mark.parametrize(
    "values", [pa.array([1, 0], pa.int8()), pa.array([1.0, 0.0]), pa.array([True, False]), pa.array(["Yes", "n"])]
)
def test_truth_comes_in_many_forms(values: pa.Array) -> None:
    """Booleans, 0 and 1 of any type, and words are understood."""
    valid = check({"is_fraud": values}, mapping={"label_timestamp": {"delay": "1d"}})
    assert valid.labels["is_fraud"].to_pylist() == [True, False]


def test_a_label_without_its_time_is_refused() -> None:
    """A row that has a label but not when it became known is refused; a row without a label needs no time."""
    columns = {"is_fraud": ["1", None, "0"], "label_timestamp": [None, None, "2026-03-09T00:00:00Z"]}
    valid = check(columns)
    assert faults(valid) == [(0, "label_timestamp")]
    assert valid.label_rows.tolist() == [2]


def test_a_status_is_known_with_its_payment_unless_told() -> None:
    """Without a status_timestamp a status column speaks of the payment's own time."""
    valid = check({"status": ["failed"]})
    assert valid.statuses["status_timestamp"].cast(pa.int64()).to_pylist() == [AT]


def test_files_of_statuses_and_labels() -> None:
    """Files of their own have their columns required."""
    columns = {"status": ["failed", None, "lost"], "status_timestamp": ["2026-03-01T12:00:00Z"] * 3}
    valid = check(columns, kind="statuses")
    assert (valid.statuses.num_rows, valid.transactions.num_rows, faults(valid)) == (
        1,
        0,
        [(1, "status"), (2, "status")],
    )
    columns = {
        "is_fraud": ["true", "", "1"],
        "label_timestamp": ["2026-03-01T12:00:00Z"] * 3,
        "fraud_party": ["sender", "both", "judge"],
    }
    valid = check(columns, kind="labels")
    assert valid.labels["fraud_party"].to_pylist() == ["sender"]
    assert faults(valid) == [(1, "is_fraud"), (2, "fraud_party")]


def test_notices_count_good_rows() -> None:
    """Truncated times and float residue are counted for rows that are accepted, not for refused ones."""
    valid = check(
        {
            "event_timestamp": ["2026-03-01T12:00:00.0001Z", "2026-03-01T12:00:00.0001Z", "2026-03-01T12:00:00.001Z"],
            "amount": ["1", "x", "85.64999999999999"],
        }
    )
    assert (valid.truncated, valid.rounded) == (1, 1)


def test_devices_cards_and_ips_are_hashed_with_the_key() -> None:
    """With a key the three columns hold hashes: equal for equal values, apart by field and by key, null for null."""
    columns = {"device_id": ["x", "x", None], "card_id": ["x", "y", None], "ip": ["x", "::1", "x"]}
    hashed = check(columns, hash_key="k" * 200).transactions
    device, card, ip = (hashed[name].to_pylist() for name in ("device_id", "card_id", "ip"))
    assert device[0] == device[1]
    assert device[2] is None
    assert ip[0] == ip[2]
    assert len({device[0], card[0], card[1], ip[0], ip[1]}) == 5
    assert all(len(value) == 32 and int(value, 16) >= 0 for value in (device[0], card[0], ip[0]))
    assert check(columns, hash_key="other").transactions["ip"].to_pylist()[0] != ip[0]
    assert check(columns, hash_key="k" * 200).transactions.equals(hashed)
    assert check(columns).transactions["ip"].to_pylist() == ["x", "::1", "x"]


def test_hashed_fields_are_not_shown_when_refused() -> None:
    """With a key, a bad card number does not reach the rejects file."""
    (fault,) = check({"card_id": ["4111\n1111"]}, hash_key="k").faults
    assert "4111" not in fault.reason


@given(st.lists(st.text(max_size=140), min_size=1, max_size=6))
def test_any_text_is_an_id_or_a_fault(texts: list[str]) -> None:
    """Ids come through unchanged, or their row is refused for a reason that holds."""
    valid = check({"sender_id": pa.array(texts, pa.string())})
    refused = {row for row, field in faults(valid) if field == "sender_id"}
    kept = dict(zip(valid.transaction_rows.tolist(), valid.transactions["sender_id"].to_pylist(), strict=True))
    for row, text in enumerate(texts):
        control = any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029" for c in text)
        assert (row in refused) == (not 1 <= len(text) <= 128 or control)
        assert row in refused or kept[row] == text
