"""Time as Ringfence keeps it: UTC, one millisecond, `int64` epoch milliseconds inside and aware datetimes outside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from graph_features.errors import InvalidInputError

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MIN_EVENT_MS = 0  # 1970-01-01
MAX_EVENT_MS = 4_102_444_800_000  # 2100-01-01: later instants are mistakes, and int64 nanoseconds end in 2262

NEVER_MS = 2**63 - 1
"""Marks what has not happened; larger than every instant."""

# Row versions are ordered by the ingest sequence they were computed from, never by a worker's clock. Feast wants a
# timestamp for that (`created_timestamp`), so the sequence is written as microseconds after this instant.
CREATED_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
CREATED_EPOCH_US = (CREATED_EPOCH - EPOCH) // timedelta(microseconds=1)


def to_ms(moment: datetime) -> int:
    """Return epoch milliseconds of an aware `moment`, finer parts truncated towards the past."""
    if moment.tzinfo is None:
        raise InvalidInputError(field="timestamp", expected="a time zone (for instance a trailing Z)", got=moment)
    return (moment - EPOCH) // timedelta(milliseconds=1)


def from_ms(ms: int) -> datetime:
    """Return the aware UTC datetime of epoch milliseconds `ms`."""
    return EPOCH + timedelta(milliseconds=int(ms))


def created_timestamp(seq: int) -> datetime:
    """Return the `created_timestamp` of rows computed from everything up to ingest sequence `seq`."""
    return CREATED_EPOCH + timedelta(microseconds=int(seq))


def seq_of(created: datetime) -> int:
    """Return the ingest sequence that `created` (see `created_timestamp`) stands for."""
    return (created - CREATED_EPOCH) // timedelta(microseconds=1)
