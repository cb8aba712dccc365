"""The tables that cross room boundaries: their column names, order and Arrow types."""

from __future__ import annotations

from typing import Final, Literal

import pyarrow as pa

TIMESTAMP: Final = pa.timestamp("ms", tz="UTC")
CREATED: Final = pa.timestamp("us", tz="UTC")

Status = Literal["completed", "failed", "reversed"]
STATUSES: Final[tuple[Status, ...]] = ("completed", "failed", "reversed")
"""A status's position here is its code in `EdgeTable`."""

FraudParty = Literal["sender", "receiver", "both"]
FRAUD_PARTIES: Final[tuple[FraudParty, ...]] = ("sender", "receiver", "both")
"""Which account a fraud label names as fraudulent. Code = 1 + position, a bit mask: sender 1, receiver 2, both 3."""

# One payment. Optional columns may be null. `amount` is in minor units of `currency`, `amount_base` in minor units of
# the configured base currency; device, card and ip are keyed hashes when hashing is configured.
TRANSACTION_SCHEMA: Final = pa.schema(
    [
        pa.field("transaction_id", pa.string(), nullable=False),
        pa.field("event_timestamp", TIMESTAMP, nullable=False),
        pa.field("sender_id", pa.string(), nullable=False),
        pa.field("receiver_id", pa.string(), nullable=False),
        pa.field("amount", pa.int64(), nullable=False),
        pa.field("currency", pa.string(), nullable=False),
        pa.field("amount_base", pa.int64(), nullable=False),
        pa.field("channel", pa.string()),
        pa.field("device_id", pa.string()),
        pa.field("card_id", pa.string()),
        pa.field("ip", pa.string()),
        pa.field("sender_country", pa.string()),
        pa.field("receiver_country", pa.string()),
        pa.field("sender_lat", pa.float64()),
        pa.field("sender_lon", pa.float64()),
        pa.field("receiver_lat", pa.float64()),
        pa.field("receiver_lon", pa.float64()),
    ]
)

STATUS_SCHEMA: Final = pa.schema(
    [
        pa.field("transaction_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("status_timestamp", TIMESTAMP, nullable=False),
    ]
)

LABEL_SCHEMA: Final = pa.schema(
    [
        pa.field("transaction_id", pa.string(), nullable=False),
        pa.field("is_fraud", pa.bool_(), nullable=False),
        pa.field("label_timestamp", TIMESTAMP, nullable=False),
        pa.field("fraud_party", pa.string(), nullable=False),
    ]
)

SEQ: Final = pa.field("seq", pa.int64(), nullable=False)
"""The ingest sequence: one counter over transactions, statuses and labels, in commit order, without reuse."""

STORED_TRANSACTION_SCHEMA: Final = TRANSACTION_SCHEMA.insert(0, SEQ)
STORED_STATUS_SCHEMA: Final = STATUS_SCHEMA.insert(0, SEQ)
STORED_LABEL_SCHEMA: Final = LABEL_SCHEMA.insert(0, SEQ)
"""What record stores return."""

MAX_ID_LENGTH: Final = 128
MAX_AMOUNT_MINOR: Final = 10**15
"""Ten trillion units at two decimals: nine thousand payments of this size still add up within 64 bits."""
