"""Features of one payment at request time, from the payment itself and from what was known about its two ends.

Functions of the request alone (`request_features`) are also what Feast's on-demand view delegates to. NumPy only: the
inference workers import this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.clock import DAY_MS, HOUR_MS, to_ms
from graph_features.schema import DType, FeatureSchema

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Objects = npt.NDArray[np.object_]

EARTH_RADIUS_KM = 6_371.0088
"""Mean radius (IUGG); the haversine on a sphere is within 0.6 % of the ellipsoid."""

EPOCH_WEEKDAY = 3
"""1 January 1970 was a Thursday; Monday is 0."""

CHANNELS = ("card", "online", "transfer", "atm", "mobile", "pos", "branch")
"""Known channels, lower case. The vocabulary is fixed, so that a model's inputs never move; any other is 'other'."""


@dataclass(frozen=True, kw_only=True)
class TransactionColumns:
    """B payments as columns: what a score may know of the payment itself.

    `event_ms` is int64 epoch milliseconds; `amount` int64 minor units of the base currency; ids and channel are object
    arrays (None where there is no channel); places are float64 degrees, NaN where unknown.
    """

    event_ms: Int64
    sender_id: Objects
    receiver_id: Objects
    amount: Int64
    channel: Objects
    sender_lat: Float64
    sender_lon: Float64
    receiver_lat: Float64
    receiver_lon: Float64

    def __len__(self) -> int:
        return len(self.event_ms)

    @classmethod
    def from_arrow(cls, table: pa.Table | pa.RecordBatch) -> TransactionColumns:
        """Build from rows of contracts.TRANSACTION_SCHEMA (more columns do not matter)."""
        return cls(
            event_ms=table["event_timestamp"].cast(pa.int64()).to_numpy(),
            sender_id=_objects(table["sender_id"].to_numpy(zero_copy_only=False)),
            receiver_id=_objects(table["receiver_id"].to_numpy(zero_copy_only=False)),
            amount=table["amount_base"].to_numpy(),
            channel=_objects(table["channel"].to_numpy(zero_copy_only=False)),
            **{name: _floats(table[name].to_numpy(zero_copy_only=False)) for name in PLACES},
        )

    @classmethod
    def from_mapping(cls, columns: Mapping[str, Any]) -> TransactionColumns:
        """Build from any sequences under TRANSACTION_SCHEMA's names; optional ones may be missing, items None.

        `event_timestamp` holds epoch milliseconds, or NumPy or pandas datetimes in UTC.
        """
        event_ms = _milliseconds(columns["event_timestamp"])
        rows = len(event_ms)
        none = np.full(rows, None, dtype=object)
        nan = np.full(rows, np.nan)
        return cls(
            event_ms=event_ms,
            sender_id=_objects(columns.get("sender_id", none)),
            receiver_id=_objects(columns.get("receiver_id", none)),
            amount=np.asarray(columns["amount_base"]).astype(np.int64),
            channel=_objects(columns.get("channel", none)),
            **{name: _floats(columns.get(name, nan)) for name in PLACES},
        )

    def take(self, rows: Int64) -> TransactionColumns:
        """Return the payments at positions `rows`."""
        return TransactionColumns(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


PLACES = ("sender_lat", "sender_lon", "receiver_lat", "receiver_lon")


def _request_schema() -> tuple[FeatureSchema, ...]:
    rows = [
        ("amount", "Amount in the base currency.", "currency", "above 0"),
        ("amount_log", "Natural logarithm of 1 + amount.", "log currency", "0 or more"),
        ("hour_of_day", "Hour of the payment, UTC.", "hours", "0 to 23"),
        ("day_of_week", "Day of the payment, UTC; Monday is 0.", "days", "0 to 6"),
        ("is_weekend", "Saturday or Sunday, UTC.", "flag", "0 or 1"),
        *((f"channel_{name}", f"Paid through {name}.", "flag", "0 or 1") for name in CHANNELS),
        ("channel_other", "Paid through a channel that is not among the known ones.", "flag", "0 or 1"),
        (
            "geographic_distance_km",
            "Great-circle distance of the two places, null without both.",
            "km",
            "0 or more",
        ),
    ]
    return tuple(
        FeatureSchema(name=name, dtype=DType.FLOAT64, description=text, unit=unit, range=range_)
        for name, text, unit, range_ in rows
    )


REQUEST_FEATURES = _request_schema()
"""Features of the request alone, in the order of `request_features`."""


def request_features(transactions: TransactionColumns, *, base_exponent: int = 2) -> dict[str, Float64]:
    """Return the features of the request alone, one float64 [B] per name, in the order of REQUEST_FEATURES.

    A null channel has zeros in every channel column. `base_exponent` is the number of decimals of the base currency.
    """
    amount = amount_in_units(transactions, base_exponent)
    day = transactions.event_ms // DAY_MS
    weekday = (day + EPOCH_WEEKDAY) % 7
    return {
        "amount": amount,
        "amount_log": np.log1p(np.abs(amount)),
        "hour_of_day": (transactions.event_ms % DAY_MS // HOUR_MS).astype(np.float64),
        "day_of_week": weekday.astype(np.float64),
        "is_weekend": (weekday >= 5).astype(np.float64),
        **_channels(transactions.channel),
        "geographic_distance_km": great_circle_km(
            transactions.sender_lat, transactions.sender_lon, transactions.receiver_lat, transactions.receiver_lon
        ),
    }


def amount_in_units(transactions: TransactionColumns, base_exponent: int) -> Float64:
    """Amounts in whole units of the base currency, float64 [B]."""
    return transactions.amount / 10.0**base_exponent


def great_circle_km(lat_a: Float64, lon_a: Float64, lat_b: Float64, lon_b: Float64) -> Float64:
    """Distance in kilometres between points in degrees (haversine); NaN where any coordinate is."""
    phi_a, phi_b = np.radians(lat_a), np.radians(lat_b)
    half_lat, half_lon = (phi_b - phi_a) / 2, np.radians(np.asarray(lon_b) - np.asarray(lon_a)) / 2
    square = np.sin(half_lat) ** 2 + np.cos(phi_a) * np.cos(phi_b) * np.sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(square, 0.0, 1.0)))  # type: ignore[no-any-return]


def _channels(channel: Objects) -> dict[str, Float64]:
    codes = {name: code for code, name in enumerate(CHANNELS)}
    code = np.array([-1 if value is None else codes.get(value.lower(), len(CHANNELS)) for value in channel], np.int64)
    return {
        f"channel_{name}": (code == position).astype(np.float64) for position, name in enumerate((*CHANNELS, "other"))
    }


def _objects(values: Any) -> Objects:
    out = np.asarray(values, dtype=object)
    # A missing string comes as None from Arrow and JSON, as NaN from pandas.
    missing = np.array([value is None or value != value for value in out], bool)
    if missing.any():
        out = out.copy()
        out[missing] = None
    return out


def _floats(values: Any) -> Float64:
    return np.asarray(values, dtype=np.float64)


def _milliseconds(values: Any) -> Int64:
    array = np.asarray(values)
    if array.dtype == object and len(array) and hasattr(array[0], "tzinfo"):
        # pandas hands aware timestamps out as objects.
        return np.array([to_ms(value) for value in array], np.int64)
    if array.dtype.kind == "M":
        array = array.astype("datetime64[ms]")
    return array.astype(np.int64)
