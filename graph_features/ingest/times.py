"""Instants from text, timestamps and counted units, to epoch milliseconds in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.clock import DAY_MS, HOUR_MS, MAX_EVENT_MS, MIN_EVENT_MS, MINUTE_MS, SECOND_MS
from graph_features.contracts import TIMESTAMP
from graph_features.ingest.faults import Faults, Mask
from graph_features.ingest.values import NUMBER, as_text, matches, truth

UNITS_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": SECOND_MS * 1_000_000,
    "minute": MINUTE_MS * 1_000_000,
    "hour": HOUR_MS * 1_000_000,
    "day": DAY_MS * 1_000_000,
}
"""Nanoseconds per unit of counted time."""

_CLOCK: Final = r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,9})?)?"
_ISO: Final = rf"^\d{{4}}-\d{{2}}-\d{{2}}([Tt ]{_CLOCK} ?([Zz]|[+-]([01]\d|2[0-3]):?[0-5]\d|[+-]([01]\d|2[0-3]))?)?$"
_NAIVE: Final = "a time zone (a trailing Z or an offset, or `timezone:` in the mapping)"
_MOST_DIGITS: Final = 30
NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TimeFormat:
    """How a column's times are meant: counted `unit`s since `epoch_ms`, or the zone of local times; both None: ISO."""

    unit: str | None = None
    epoch_ms: int = 0
    timezone: str | None = None


def instants(field: str, raw: pa.Array, faults: Faults, form: TimeFormat) -> pa.Array:
    """`raw` as TIMESTAMP from 1970 to 2099, null where it is null or at fault; finer parts are truncated and noted."""
    if form.unit is not None:
        moments = _counted(field, raw, faults, form.unit, form.epoch_ms)
    elif pa.types.is_timestamp(raw.type) or pa.types.is_date(raw.type):
        moments = _from_timestamps(field, raw, faults, form.timezone)
    elif pa.types.is_integer(raw.type) or pa.types.is_floating(raw.type):
        faults.add(field, truth(pc.is_valid(raw)), "an ISO 8601 time, or `unit:` in the mapping for counted time", raw)
        moments = pa.nulls(len(raw), TIMESTAMP)
    else:
        moments = _from_text(field, as_text(field, raw, faults), faults, form.timezone)
    ms = moments.cast(pa.int64())
    outside = truth(pc.or_(pc.less(ms, MIN_EVENT_MS), pc.greater_equal(ms, MAX_EVENT_MS)))
    faults.add(field, outside, "an instant from 1970 to 2099", raw)
    return pc.if_else(pa.array(outside), None, moments)


def later(moments: pa.Array, delay_ms: int, field: str, faults: Faults) -> pa.Array:
    """`moments` plus a delay; results after 2099 are noted."""
    ms = pc.add(moments.cast(pa.int64()), delay_ms)
    outside = truth(pc.greater_equal(ms, MAX_EVENT_MS))
    faults.add(field, outside, "an instant from 1970 to 2099", moments)
    return pc.if_else(pa.array(outside), None, ms).cast(TIMESTAMP)


def _counted(field: str, raw: pa.Array, faults: Faults, unit: str, epoch_ms: int) -> pa.Array:
    if pa.types.is_integer(raw.type):
        return _whole_units(raw, unit, epoch_ms, faults)
    if pa.types.is_floating(raw.type):
        # The shortest decimal that reads as this float: 1522540831.123 means just that.
        floats = raw.cast(pa.float64()).to_pylist()
        text = pa.array([None if value is None else repr(value) for value in floats], pa.string())
    else:
        text = as_text(field, raw, faults)
    strange = truth(pc.is_valid(text)) & ~matches(text, NUMBER)
    faults.add(field, strange, f"a number (counted time, unit {unit})", raw)
    return _decimal_units(pc.if_else(pa.array(strange), None, text), unit, epoch_ms, faults)


def _whole_units(raw: pa.Array, unit: str, epoch_ms: int, faults: Faults) -> pa.Array:
    counts = pc.fill_null(raw, 0).cast(pa.int64(), safe=False).to_numpy()
    if UNITS_NS[unit] < NS_PER_MS:
        per_ms = NS_PER_MS // UNITS_NS[unit]
        ms, rest = np.divmod(counts, per_ms)
        faults.truncated |= rest != 0
    else:
        per_unit = UNITS_NS[unit] // NS_PER_MS
        farthest = 2 * MAX_EVENT_MS // per_unit + 1  # beyond every epoch, short of overflow
        ms = np.clip(counts, -farthest, farthest) * per_unit
    return pa.array(ms + epoch_ms, mask=truth(pc.is_null(raw))).cast(TIMESTAMP)


def _decimal_units(text: pa.Array, unit: str, epoch_ms: int, faults: Faults) -> pa.Array:
    """Row by row in decimal arithmetic, for text and for fractions."""
    moments: list[int | None] = []
    for row, value in enumerate(text.to_pylist()):
        count = Decimal(value or 0)
        if value is None:
            moments.append(None)
        elif count.adjusted() > _MOST_DIGITS:
            moments.append(MAX_EVENT_MS)
        elif count.adjusted() < -_MOST_DIGITS:
            moments.append(epoch_ms)
        else:
            ms = count * UNITS_NS[unit] / NS_PER_MS
            whole = int(ms.to_integral_value(ROUND_FLOOR))
            faults.truncated[row] |= ms != whole
            moments.append(min(max(whole, -MAX_EVENT_MS), MAX_EVENT_MS) + epoch_ms)
    return pa.array(moments, pa.int64()).cast(TIMESTAMP)


def _from_timestamps(field: str, raw: pa.Array, faults: Faults, timezone: str | None) -> pa.Array:
    if pa.types.is_date(raw.type):
        raw = raw.cast(pa.timestamp("ms"))
    ms = pc.floor_temporal(raw, unit="millisecond") if raw.type.unit in ("us", "ns") else raw
    faults.truncated |= truth(pc.not_equal(ms, raw))
    return _with_zone(field, ms.cast(pa.timestamp("ms", raw.type.tz)), faults, timezone, raw)


def _from_text(field: str, text: pa.Array, faults: Faults, timezone: str | None) -> pa.Array:
    strange = truth(pc.is_valid(text)) & ~matches(text, _ISO)
    faults.add(field, strange, "an ISO 8601 time such as 2026-03-01T12:00:00Z", text)
    plain = pc.if_else(pa.array(strange), None, text)
    faults.truncated |= matches(plain, r"\.\d{3}\d*[1-9]")
    plain = pc.replace_substring_regex(plain, r"(\.\d{3})\d+", r"\1")
    plain = (
        pc.replace_substring_regex(pc.ascii_upper(plain), r" ?(Z|[+-]\d\d(:?\d\d)?)$", r"\1") if len(plain) else plain
    )
    zoned = matches(plain, r"Z$|:\d\d(\.\d+)?[+-]\d\d(:?\d\d)?$")
    aware = _parsed(field, pc.if_else(pa.array(zoned), plain, None), faults, "UTC")
    naive = _parsed(field, pc.if_else(pa.array(zoned), None, plain), faults, None)
    return pc.coalesce(aware, _with_zone(field, naive, faults, timezone, text))


def _parsed(field: str, text: pa.Array, faults: Faults, zone: str | None) -> pa.Array:
    """Well-formed text to timestamps; a thirtieth of February makes Arrow refuse all, so then each is tried alone."""
    kind = pa.timestamp("ms", zone)
    try:
        return text.cast(kind)
    except pa.ArrowInvalid:
        single = [_parsed_alone(value, kind) for value in text]
        parsed = pa.array([None if moment is None else moment.value for moment in single], pa.int64()).cast(kind)
        impossible = truth(pc.and_(pc.is_null(parsed), pc.is_valid(text)))
        faults.add(field, impossible, "a day that is in the calendar", text)
        return parsed


def _parsed_alone(value: pa.Scalar, kind: pa.DataType) -> pa.Scalar | None:
    try:
        moment = value.cast(kind)
    except pa.ArrowInvalid:
        return None
    return moment if moment.is_valid else None


def _with_zone(field: str, moments: pa.Array, faults: Faults, timezone: str | None, raw: pa.Array) -> pa.Array:
    """Naive timestamps as instants: those of `timezone`; local times that come twice or never are faults."""
    if moments.type.tz is not None:
        return moments.cast(TIMESTAMP)
    if timezone is None:
        faults.add(field, truth(pc.is_valid(moments)), _NAIVE, raw)
        return pa.nulls(len(moments), TIMESTAMP)
    if timezone == "UTC":
        return moments.cast(pa.int64()).cast(TIMESTAMP)
    first = pc.assume_timezone(moments, timezone, ambiguous="earliest", nonexistent="earliest")
    last = pc.assume_timezone(moments, timezone, ambiguous="latest", nonexistent="latest")
    unclear: Mask = truth(pc.not_equal(first, last))
    faults.add(field, unclear, f"a local time that {timezone} has exactly once", raw)
    return first.cast(TIMESTAMP)
