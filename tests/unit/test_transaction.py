"""Features of a payment alone."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_features.clock import MAX_EVENT_MS, from_ms
from graph_features.contracts import TRANSACTION_SCHEMA
from graph_features.transaction import REQUEST_FEATURES, TransactionColumns, great_circle_km, request_features


def _columns(**given_columns: object) -> TransactionColumns:
    rows = len(given_columns["event_timestamp"])  # type: ignore[arg-type]
    return TransactionColumns.from_mapping({"amount_base": [1] * rows, **given_columns})


@given(st.integers(0, MAX_EVENT_MS))
def test_hour_and_weekday_are_the_calendars(event_ms: int) -> None:
    """Hour and weekday in UTC equal those of datetime, weekends are Saturday and Sunday."""
    moment = from_ms(event_ms)
    features = request_features(_columns(event_timestamp=[event_ms]))
    assert features["hour_of_day"][0] == moment.hour
    assert features["day_of_week"][0] == moment.weekday()
    assert features["is_weekend"][0] == (moment.weekday() >= 5)


def test_amount_in_units_of_the_currency() -> None:
    """Minor units become units by the exponent, and the logarithm is of one more."""
    features = request_features(_columns(event_timestamp=[0], amount_base=[12_345]), base_exponent=3)
    assert features["amount"][0] == pytest.approx(12.345)
    assert features["amount_log"][0] == pytest.approx(math.log(13.345))


def test_channels_are_one_hot() -> None:
    """A known channel sets its column in any case, an unknown one 'other', none sets nothing."""
    features = request_features(_columns(event_timestamp=[0, 1, 2, 3], channel=["CARD", "smoke", None, math.nan]))
    channels = {name: values for name, values in features.items() if name.startswith("channel_")}
    assert channels["channel_card"].tolist() == [1, 0, 0, 0]
    assert channels["channel_other"].tolist() == [0, 1, 0, 0]
    assert sum(values.sum() for values in channels.values()) == 2


def test_distance_of_known_places() -> None:
    """Paris to New York is 5,837 km; a place to itself 0; antipodes half round; an unknown place null."""
    km = great_circle_km(
        np.array([48.8566, 10.0, 0.0, np.nan]),
        np.array([2.3522, 20.0, 0.0, 1.0]),
        np.array([40.7128, 10.0, 0.0, 1.0]),
        np.array([-74.006, 20.0, 180.0, 1.0]),
    )
    np.testing.assert_allclose(km, [5_837.2, 0.0, math.pi * 6_371.0088, np.nan], atol=0.5)


def test_order_is_that_of_the_schema() -> None:
    """The features come in the order in which REQUEST_FEATURES describes them."""
    assert list(request_features(_columns(event_timestamp=[0]))) == [feature.name for feature in REQUEST_FEATURES]


def test_every_way_in_gives_the_same_columns() -> None:
    """Arrow rows, lists of milliseconds and pandas columns with missing values mean the same payments."""
    rows = [
        {
            "transaction_id": f"p{row}",
            "event_timestamp": 1_700_000_000_123 + row,
            "sender_id": "a",
            "receiver_id": "b",
            "amount": 5,
            "currency": "EUR",
            "amount_base": 5 + row,
            "channel": channel,
            "sender_lat": latitude,
        }
        for row, (channel, latitude) in enumerate([("card", 1.0), (None, None)])
    ]
    table = pa.Table.from_pylist(rows, TRANSACTION_SCHEMA)
    frame = table.to_pandas()
    listed = {
        name: [row.get(name) for row in rows] for name in ("event_timestamp", "amount_base", "channel", "sender_lat")
    }
    for columns in (TransactionColumns.from_mapping(dict(frame.items())), TransactionColumns.from_mapping(listed)):
        expected, got = request_features(TransactionColumns.from_arrow(table)), request_features(columns)
        for name, values in expected.items():
            np.testing.assert_array_equal(got[name], values, err_msg=name)
    aware = frame["event_timestamp"].astype(object)
    assert _columns(event_timestamp=aware).event_ms.tolist() == [row["event_timestamp"] for row in rows]
