"""The quick way from ordinary payments to a table: the same table as the validator's, or none at all."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_features.errors import InvalidInputError
from graph_features.ingest.requests import transaction_table
from graph_features.settings import IngestSettings
from serving.api import Transaction
from serving.quick import QuickTable

SETTINGS = IngestSettings(rates={"USD": "0.92", "JPY": "0.0061", "KWD": "3.1"}, hash_key="key")
QUICK = QuickTable(SETTINGS)

ids = st.one_of(st.text("abc019_-:", min_size=1, max_size=8), st.text(max_size=3), st.just("x" * 129))
words = st.none() | ids
moments = st.one_of(
    st.datetimes().map(lambda at: at.isoformat(timespec="seconds") + "Z"),
    st.datetimes().map(lambda at: at.isoformat(timespec="milliseconds") + "Z"),
    st.datetimes().map(lambda at: at.isoformat() + "+02:00"),
    st.sampled_from(["2026-02-30T00:00:00Z", "2026-03-01T24:00:00Z", "2026-03-01", "2026-03-01T12:00:00.5Z"]),
)
amounts = st.one_of(
    st.decimals(min_value=0, max_value=10**13, places=2),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.sampled_from([Decimal("1E+2"), Decimal("0"), Decimal("1.10"), Decimal("0.001"), Decimal("-0")]),
)
degrees = st.none() | st.floats(-200, 200)
payments = st.builds(
    Transaction,
    transaction_id=ids,
    event_timestamp=moments,
    sender_id=ids,
    receiver_id=ids,
    amount=amounts,
    currency=st.sampled_from(["EUR", "USD", "JPY", "KWD", "CHF"]),
    channel=words,
    device_id=words,
    card_id=words,
    ip=words,
    sender_country=st.none() | st.sampled_from(["DE", "de", "FR\n"]),
    receiver_country=st.none() | st.just("US"),
    sender_lat=degrees,
    sender_lon=degrees,
    receiver_lat=degrees,
    receiver_lon=degrees,
)


def slow(rows: list[Transaction]) -> Any:
    return transaction_table([msgspec.structs.asdict(row) for row in rows], SETTINGS)


@settings(max_examples=300, deadline=None)
@given(st.lists(payments, min_size=1, max_size=3))
def test_what_it_takes_the_validator_takes_alike(rows: list[Transaction]) -> None:
    """A table that the quick way makes must be the validator's, schema and hashes included; the rest is None."""
    table = QUICK.of(rows)
    if table is not None:
        expected = slow(rows)
        assert table.schema == expected.schema
        assert table.equals(expected)


def ordinary(**changes: Any) -> Transaction:
    given = {
        "transaction_id": "t1",
        "event_timestamp": "2026-03-01T12:00:00.123Z",
        "sender_id": "a",
        "receiver_id": "b",
        "amount": Decimal("129.90"),
        "currency": "EUR",
    }
    return Transaction(**{**given, **changes})


def test_ordinary_payments_are_taken() -> None:
    """Plain payments of several currencies, with devices, countries and places, must not need the validator."""
    rows = [
        ordinary(),
        ordinary(currency="USD", device_id="d", sender_country="DE", sender_lat=1.5, sender_lon=-3.0),
        ordinary(currency="JPY", amount=Decimal(1200), channel="online"),
    ]
    table = QUICK.of(rows)
    assert table is not None
    assert table.equals(slow(rows))


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": Decimal("0.001")},
        {"amount": Decimal(10**14)},
        {"currency": "CHF"},
        {"event_timestamp": "2026-03-01T12:00:00"},
        {"event_timestamp": "2100-01-01T00:00:00Z"},
        {"sender_id": "a\x00b"},
        {"sender_country": "d"},
        {"receiver_lat": 91.0},
    ],
)
def test_what_is_wrong_is_left_to_the_validator(changes: dict[str, Any]) -> None:
    """Mistakes must still be found where their message is made."""
    assert QUICK.of([ordinary(), ordinary(**changes)]) is None
    with pytest.raises(InvalidInputError):
        slow([ordinary(), ordinary(**changes)])
