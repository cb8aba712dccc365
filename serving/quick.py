"""Ordinary payments to a table without Arrow's per-column checks, which cost more than scoring one payment does.

What is not plainly in order is left to `graph_features.ingest.requests`, which says what is wrong: the two must never
differ on what both take.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa

from graph_features.clock import MAX_EVENT_MS
from graph_features.contracts import MAX_AMOUNT_MINOR, MAX_ID_LENGTH, TRANSACTION_SCHEMA
from graph_features.ingest.hashing import HASHED_FIELDS, Hasher
from graph_features.ingest.money import Rates, exponent_of
from graph_features.settings import IngestSettings
from serving.api import Transaction

_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", re.ASCII)
_COUNTRY = re.compile(r"[A-Z]{2}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_WHOLE_DIGITS = 11

_IDS = ("transaction_id", "sender_id", "receiver_id")
_WORDS = ("channel", *HASHED_FIELDS)
_COUNTRIES = ("sender_country", "receiver_country")
_PLACES = {"sender_lat": 90.0, "receiver_lat": 90.0, "sender_lon": 180.0, "receiver_lon": 180.0}


class _Unusual(Exception):  # noqa: N818 - no error: it ends in the other way of doing the same
    """A value that this module leaves to the validator."""


class QuickTable:
    """Makes TRANSACTION_SCHEMA tables of payments that are plainly in order, under one set of rates and one key."""

    def __init__(self, settings: IngestSettings) -> None:
        self._rates = Rates.of(settings)
        self._hasher = Hasher(settings.hash_key)

    def of(self, rows: Sequence[Transaction]) -> pa.Table | None:
        """The table of `rows`; None where one of them takes a closer look."""
        try:
            return self._table(rows)
        except _Unusual:
            return None

    def _table(self, rows: Sequence[Transaction]) -> pa.Table:
        columns: dict[str, pa.Array] = {name: _strings([_word(getattr(row, name)) for row in rows]) for name in _IDS}
        columns["event_timestamp"] = pa.array([_moment(row.event_timestamp) for row in rows], pa.int64())
        columns |= self._money(rows)
        for name in _WORDS:
            columns[name] = self._hashed(name, _optional(rows, name, _word))
        for name in _COUNTRIES:
            columns[name] = _optional(rows, name, _country)
        for name, limit in _PLACES.items():
            columns[name] = _degrees([getattr(row, name) for row in rows], limit)
        arrays = [
            columns[field.name] if columns[field.name].type == field.type else columns[field.name].cast(field.type)
            for field in TRANSACTION_SCHEMA
        ]
        return pa.Table.from_arrays(arrays, schema=TRANSACTION_SCHEMA)

    def _hashed(self, name: str, values: pa.Array) -> pa.Array:
        return self._hasher.column(name, values) if name in HASHED_FIELDS and self._hasher.active else values

    def _money(self, rows: Sequence[Transaction]) -> dict[str, pa.Array]:
        currencies = [row.currency for row in rows]
        exponents = {code: self._exponent(code) for code in set(currencies)}
        minor = np.array(
            [_minor(row.amount, exponents[code]) for row, code in zip(rows, currencies, strict=True)], np.int64
        )
        if len(exponents) == 1:
            base = self._rates.to_base(minor, currencies[0])
        else:
            base, codes = np.zeros(len(minor), np.int64), np.array(currencies)
            for code in exponents:
                base[codes == code] = self._rates.to_base(minor[codes == code], code)
        if int(base.max()) > MAX_AMOUNT_MINOR:
            raise _Unusual
        return {"amount": pa.array(minor), "currency": _strings(currencies), "amount_base": pa.array(base)}

    def _exponent(self, code: str) -> int:
        if code not in self._rates.by_currency:
            raise _Unusual
        return exponent_of(code)


def _strings(values: list[str]) -> pa.Array:
    return pa.array(values, pa.string())


def _word(value: str) -> str:
    if not (0 < len(value) <= MAX_ID_LENGTH and value.isascii() and value.isprintable()):
        raise _Unusual
    return value


def _country(value: str) -> str:
    if not _COUNTRY.fullmatch(value):
        raise _Unusual
    return value


def _optional(rows: Sequence[Transaction], name: str, check: Callable[[str], str]) -> pa.Array:
    values = [getattr(row, name) for row in rows]
    if not any(values) and all(value is None for value in values):
        return pa.nulls(len(values), pa.string())
    return pa.array([None if value is None else check(value) for value in values], pa.string())


def _degrees(values: list[float | None], limit: float) -> pa.Array:
    if any(value is not None and not abs(value) <= limit for value in values):
        raise _Unusual
    return pa.array(values, pa.float64())


def _moment(text: str) -> int:
    if not _MOMENT.fullmatch(text):
        raise _Unusual
    try:
        at_ms: int = (datetime.fromisoformat(text) - _EPOCH) // _MS
    except ValueError:
        raise _Unusual from None
    if not 0 <= at_ms < MAX_EVENT_MS:
        raise _Unusual
    return at_ms


def _minor(amount: Decimal, exponent: int) -> int:
    whole, _, part = str(amount).partition(".")
    if not (whole.isdecimal() and len(whole) <= _WHOLE_DIGITS and len(part) <= exponent and (part + "0").isdecimal()):
        raise _Unusual
    return int(whole + part + "0" * (exponent - len(part)))
