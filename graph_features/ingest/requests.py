"""Rows of a request body to tables, by the same rules as files: the first mistake is an error that names its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pyarrow as pa

from graph_features.contracts import LABEL_SCHEMA, STATUS_SCHEMA
from graph_features.errors import InvalidInputError
from graph_features.ingest.faults import raise_first
from graph_features.ingest.mapping import REQUIRED, TARGETS, FromColumn
from graph_features.ingest.validate import Validated, Validator
from graph_features.settings import IngestSettings

_PAYMENT: Final = tuple(
    name
    for name in TARGETS["transactions"]
    if name not in {*STATUS_SCHEMA.names, *LABEL_SCHEMA.names} - {"transaction_id"}
)
_MAX_DIGITS: Final = 40


def transaction_table(
    rows: Sequence[Mapping[str, Any]], settings: IngestSettings, *, name: str = "transactions"
) -> pa.Table:
    """Rows to a TRANSACTION_SCHEMA table, devices, cards and ips hashed when a key is set.

    A row has transaction_id, event_timestamp, sender_id, receiver_id, amount and currency, and may have the optional
    columns; None counts as absent. Times are aware datetimes or ISO 8601 text with a zone, finer than 1 ms truncated.
    `amount` is in major units: an integer, a Decimal, decimal text, or a float that reads as such a decimal.
    Raises InvalidInputError whose field is written `transactions[3].amount` with `name` in front.
    """
    return _validated("transactions", rows, _PAYMENT, settings, name).transactions


def status_table(rows: Sequence[Mapping[str, Any]], settings: IngestSettings, *, name: str = "statuses") -> pa.Table:
    """Rows of transaction_id, status and status_timestamp to a STATUS_SCHEMA table; errors as transaction_table."""
    return _validated("statuses", rows, TARGETS["statuses"], settings, name).statuses


def label_table(rows: Sequence[Mapping[str, Any]], settings: IngestSettings, *, name: str = "labels") -> pa.Table:
    """Rows of transaction_id, is_fraud, label_timestamp and fraud_party ("both" by default) to a LABEL_SCHEMA table."""
    return _validated("labels", rows, TARGETS["labels"], settings, name).labels


def _validated(
    kind: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], settings: IngestSettings, label: str
) -> Validated:
    known = frozenset(names)
    for index, row in enumerate(rows):
        if not known.issuperset(row):
            unknown = next(key for key in row if key not in known)
            raise InvalidInputError(field=f"{label}[{index}].{unknown}", expected="no such field", got=unknown)
    columns = {}
    for name in names:
        convert, kind_of_value, type_ = _READERS.get(name, (_text, "text", pa.string()))
        given = [row.get(name) for row in rows]
        if name in REQUIRED[kind] or any(value is not None for value in given):
            columns[name] = pa.array(_read(given, convert, f"{label}[%d].{name}", kind_of_value), type_)
    sources = {name: FromColumn(column=name) for name in columns}
    numbers = np.arange(1, len(rows) + 1)
    validated = Validator(kind, sources, settings).validate(pa.table(columns), numbers)
    raise_first(validated.faults, label)
    return validated


def _read(given: list[Any], convert: Callable[[Any], Any], place: str, expected: str) -> list[Any]:
    read: list[Any] = []
    for index, value in enumerate(given):
        if value is None:
            read.append(None)
            continue
        try:
            read.append(convert(value))
        except (TypeError, UnicodeEncodeError):
            raise InvalidInputError(field=place % index, expected=expected, got=value) from None
    return read


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # half a surrogate pair is no text
    return value


def _amount(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise TypeError
    if isinstance(value, int) and value.bit_length() > 4 * _MAX_DIGITS:
        value = 10**_MAX_DIGITS if value > 0 else -(10**_MAX_DIGITS)
    return _text(value) if isinstance(value, str) else str(value)


def _moment(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else _text(value)


def _degrees(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


_READERS: Final[dict[str, tuple[Callable[[Any], Any], str, pa.DataType]]] = {
    "amount": (_amount, "a decimal number", pa.string()),
    "is_fraud": (_truth, "true or false", pa.bool_()),
    **dict.fromkeys(
        ("event_timestamp", "status_timestamp", "label_timestamp"), (_moment, "an ISO 8601 time", pa.string())
    ),
    **dict.fromkeys(
        ("sender_lat", "sender_lon", "receiver_lat", "receiver_lon"), (_degrees, "a number of degrees", pa.float64())
    ),
}
