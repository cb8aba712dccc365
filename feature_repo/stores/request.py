"""What the on-demand view delegates to: one row per request, inputs as clients send them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from graph_features.settings import FeatureSettings, load
from graph_features.transaction import TransactionColumns, request_features


def payment_features(inputs: pd.DataFrame) -> pd.DataFrame:
    """Return the features of payments alone; null where the time or the amount is missing.

    `payment_timestamp` is a time in UTC or epoch seconds, as Feast hands UnixTimestamp on; the other columns are those
    of TRANSACTION_SCHEMA.
    """
    moments = _moments(inputs["payment_timestamp"])
    amount = pd.to_numeric(inputs["amount_base"])
    known = (moments.notna() & amount.notna()).to_numpy()
    places = ("sender_lat", "sender_lon", "receiver_lat", "receiver_lon")
    columns = TransactionColumns.from_mapping(
        {
            "event_timestamp": moments.dt.tz_localize(None).fillna(pd.Timestamp(0)).to_numpy(),
            "amount_base": amount.fillna(0).to_numpy(),
            "channel": inputs["channel"].to_numpy(dtype=object),
            **{name: pd.to_numeric(inputs[name]).to_numpy(np.float64, na_value=np.nan) for name in places},
        }
    )
    features = request_features(columns, base_exponent=load(FeatureSettings).base_exponent)
    return pd.DataFrame({name: np.where(known, values, np.nan) for name, values in features.items()})


def _moments(column: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(column):
        return pd.to_datetime(column, unit="s", utc=True)
    return pd.to_datetime(column, utc=True)
