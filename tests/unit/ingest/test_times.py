"""Instants: text, timestamps and counted units all become UTC milliseconds or a named fault."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_features.clock import DAY_MS, MAX_EVENT_MS, to_ms
from graph_features.ingest.faults import Faults
from graph_features.ingest.times import TimeFormat, instants, later

MOMENT = st.datetimes(datetime(1970, 1, 2), datetime(2099, 12, 30))  # noqa: DTZ001
OFFSET = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def read(
    values: list, form: TimeFormat | None = None, type_: pa.DataType | None = None
) -> tuple[list[int | None], Faults]:
    faults = Faults(len(values))
    column = instants("at", pa.array(values, type_), faults, form or TimeFormat())
    return column.cast(pa.int64()).to_pylist(), faults


@given(st.lists(st.builds(lambda moment, zone: moment.replace(tzinfo=zone), MOMENT, OFFSET), min_size=1, max_size=4))
def test_iso_text_is_the_instant_it_names(moments: list[datetime]) -> None:
    """Any ISO 8601 text with an offset becomes its UTC millisecond, finer parts cut off and noted."""
    got, faults = read([moment.isoformat() for moment in moments])
    assert got == [to_ms(moment) for moment in moments]
    assert faults.truncated.tolist() == [moment.microsecond % 1000 != 0 for moment in moments]
    assert faults.found == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2018-04-01T00:00:31Z", 1522540831000),
        ("2018-04-01 00:00:31.5z", 1522540831500),
        ("2018-04-01T02:00:31+0200", 1522540831000),
        ("2018-04-01T02:00+02", 1522540800000),
        ("2018-04-01t00:00:31 Z", 1522540831000),
        ("2018-04-01T00:00:31.123456789Z", 1522540831123),
    ],
)
def test_forms_of_iso_text(text: str, expected: int) -> None:
    """Separators, offsets and fractions may be written in the usual ways."""
    assert read([text])[0] == [expected]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2018-04-01T00:00:31", "time zone"),
        ("2018-04-01", "time zone"),
        ("01.04.2018 00:00", "ISO 8601"),
        ("1522540831", "ISO 8601"),
        ("2018-04-01T24:00:00Z", "ISO 8601"),
        ("2018-04-01T23:59:60Z", "ISO 8601"),
        ("2018-02-30T00:00:00Z", "calendar"),
        ("2018-13-01T00:00:00Z", "calendar"),
        ("9999-01-01T00:00:00Z", "1970 to 2099"),
        ("1969-12-31T23:59:59.999Z", "1970 to 2099"),
        ("2100-01-01T00:00:00Z", "1970 to 2099"),
    ],
)
def test_what_is_no_instant_is_named(text: str, reason: str) -> None:
    """Each kind of bad time is refused with what was expected; good neighbours in the column are read."""
    good = "2018-04-01T00:00:31Z"
    got, faults = read([good, text, good])
    assert got == [1522540831000, None, 1522540831000]
    assert [(fault.row, reason in fault.reason) for fault in faults.found] == [(1, True)]


def test_local_times_need_a_zone_that_has_them_once() -> None:
    """Times without a zone are of the zone that the mapping names; an hour that comes twice or never is refused."""
    texts = ["2018-07-01 02:30:00", "2018-12-01T02:30:00", "2018-10-28 02:30:00", "2018-03-25 02:30:00"]
    for values in (texts, [datetime.fromisoformat(text) for text in texts]):
        got, faults = read(values, TimeFormat(timezone="Europe/Paris"))
        assert got[:2] == [
            to_ms(datetime(2018, 7, 1, 0, 30, tzinfo=UTC)),
            to_ms(datetime(2018, 12, 1, 1, 30, tzinfo=UTC)),
        ]
        assert [fault.row for fault in faults.found] == [2, 3]
    zoned = read(["2018-07-01T02:30:00Z"], TimeFormat(timezone="Europe/Paris"))[0]
    assert zoned == [to_ms(datetime(2018, 7, 1, 2, 30, tzinfo=UTC))]


def test_timestamps_and_dates() -> None:
    """Arrow timestamps of any unit and dates are read; naive ones need a zone; what is finer than 1 ms is noted."""
    utc = TimeFormat(timezone="UTC")
    moment = datetime(2018, 4, 1, 0, 0, 31, 123456)  # noqa: DTZ001
    for unit in ("us", "ns"):
        got, faults = read([moment, None], utc, pa.timestamp(unit))
        assert got == [1522540831123, None]
        assert faults.truncated.tolist() == [True, False]
    assert read([moment], None, pa.timestamp("us", "Asia/Tokyo"))[0] == [1522540831123]
    assert read([date(2018, 4, 1)], utc)[0] == [1522540800000]
    assert "time zone" in read([moment], None, pa.timestamp("us"))[1].found[0].reason


@given(st.integers(0, MAX_EVENT_MS - 1), st.sampled_from(["ns", "us", "ms"]))
def test_counted_time_is_exact(ms: int, unit: str) -> None:
    """Counts since 1970 in any unit become the millisecond they lie in, as integers and as text."""
    per_ms = {"ns": 10**6, "us": 10**3, "ms": 1}[unit]
    count = ms * per_ms + per_ms // 2
    form = TimeFormat(unit=unit)
    for values in ([count], [str(count)]):
        got, faults = read(values, form)
        assert got == [ms]
        assert faults.truncated[0] == (per_ms > 1)


def test_day_numbers_count_from_the_epoch_that_was_named() -> None:
    """AMLSim's day numbers: day 1 of 2020-01-01 is the second of January; nonsense is out of range, not an overflow."""
    epoch = to_ms(datetime(2020, 1, 1, tzinfo=UTC))
    form = TimeFormat(unit="day", epoch_ms=epoch)
    got, faults = read([1, 149, None, 2**62, -(2**63)], form)
    assert got == [epoch + DAY_MS, epoch + 149 * DAY_MS, None, None, None]
    assert [fault.row for fault in faults.found] == [3, 4]
    assert read(["0.5", "1e400", "x"], form)[0] == [epoch + DAY_MS // 2, None, None]


def test_float_seconds_mean_what_they_print() -> None:
    """A float of seconds is read as its shortest decimal, so that .123 is 123 ms."""
    got, faults = read([1522540831.123, 1522540831.1239, float("nan"), -0.5], TimeFormat(unit="s"))
    assert got == [1522540831123, 1522540831123, None, None]
    assert faults.truncated.tolist()[:2] == [False, True]


def test_plain_numbers_without_a_unit_are_refused() -> None:
    """A number might count seconds or days: the mapping has to say."""
    assert "unit:" in read([1522540831])[1].found[0].reason


def test_delays_stay_in_range() -> None:
    """A delay is added to the payment's time; past the end of time it is a fault."""
    faults = Faults(2)
    moments = pa.array([0, MAX_EVENT_MS - 1]).cast(pa.timestamp("ms", "UTC"))
    assert later(moments, 7 * DAY_MS, "label_timestamp", faults).cast(pa.int64()).to_pylist() == [7 * DAY_MS, None]
    assert [fault.row for fault in faults.found] == [1]
