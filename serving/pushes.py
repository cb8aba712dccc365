"""Data frames that Feast's clients send, column by column, as tables of a view's rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from graph_features.contracts import MAX_ID_LENGTH
from graph_features.errors import InvalidInputError
from graph_features.schema import DType, ViewSchema
from serving.problems import TooLargeError


def example_of(view: ViewSchema) -> dict[str, list[Any]]:
    """A frame of one row that may be sent as it stands: so old that it hides no row of an account that has one."""
    keys = {name: [f"C{at}"] for at, name in enumerate(view.keys, start=1)}
    moment = {"event_timestamp": ["1970-01-02T00:00:00Z"], "created_timestamp": ["1970-01-02T00:00:00Z"]}
    return {**keys, **moment, **{one.name: [[] if one.dtype.is_list else one.empty] for one in view.features}}


CREATED_NAMES = ("created_timestamp", "created")
"""Ours, and what Feast's remote online store calls it whatever its name is."""

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_LAST_S = 4_102_444_800  # 2100-01-01


def table_of(view: ViewSchema, frame: Mapping[str, Any], *, limit: int) -> pa.Table:
    """Rows of `view` out of a frame {column: values}; raise InvalidInputError or TooLargeError.

    As in Feast every key, the event timestamp and every feature must be there. Without a created timestamp, which only
    the online side allows, a row is older than any of its event time that has one.
    """
    columns = {name: _listed(name, values) for name, values in frame.items()}
    created = next((name for name in CREATED_NAMES if name in columns), None)
    wanted = [*view.keys, "event_timestamp", *view.names]
    for name in wanted:
        if name not in columns:
            raise InvalidInputError(field=f"df.{name}", expected="a column", got=None)
    for name in columns:
        if name not in wanted and name not in CREATED_NAMES:
            raise InvalidInputError(field=f"df.{name}", expected=f"a column of {view.name}", got=name)
    count = len(columns[wanted[0]])
    for name, values in columns.items():
        if len(values) > limit:
            raise TooLargeError(field=f"df.{name}", expected=f"at most {limit} values", got=len(values))
        if len(values) != count or not count:
            expected = f"as many values as in the others ({count or 'at least one'})"
            raise InvalidInputError(field=f"df.{name}", expected=expected, got=len(values))
    arrays = [_column(name, columns[name], _id, pa.string()) for name in view.keys]
    arrays.append(_column("event_timestamp", columns["event_timestamp"], _moment, _type(view, "event_timestamp")))
    moments = [None] * count if created is None else columns[created]
    arrays.append(_column(created or "", moments, _optional(_moment), _type(view, "created_timestamp")))
    for feature in view.features:
        read = _optional(_READERS[feature.dtype])
        arrays.append(_column(feature.name, columns[feature.name], read, feature.dtype.arrow))
    return pa.Table.from_arrays(arrays, schema=view.arrow_schema)


def _type(view: ViewSchema, name: str) -> pa.DataType:
    return view.arrow_schema.field(name).type


def _listed(name: str, values: Any) -> list[Any]:
    """Values as a list, or by index as DataFrame.to_dict() has them."""
    if isinstance(values, dict):
        return list(values.values())
    if not isinstance(values, list):
        raise InvalidInputError(field=f"df.{name}", expected="a list of values", got=values)
    return values


def _column(name: str, values: Sequence[Any], read: Callable[[Any], Any], kind: pa.DataType) -> pa.Array:
    out = []
    for at, value in enumerate(values):
        try:
            out.append(read(value))
        except _NotReadableError as error:
            raise InvalidInputError(field=f"df.{name}[{at}]", expected=str(error), got=value) from None
    return pa.array(out, kind)


class _NotReadableError(Exception):
    """The message says what was expected."""


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _id(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_LENGTH or not value.isprintable():
        raise _NotReadableError(f"an id of 1 to {MAX_ID_LENGTH} characters")
    return value


def _moment(value: Any) -> datetime:
    """ISO 8601; without a zone it is UTC, as Feast's client sends it."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is not None:
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or not 0 <= moment.timestamp() < _LAST_S:
        raise _NotReadableError("an ISO 8601 time from 1970 to 2099")
    return moment


def _timestamp(value: Any) -> datetime:
    """A feature that is a time: epoch seconds as Feast keeps it, or ISO 8601."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LAST_S:
        return datetime.fromtimestamp(value, UTC)
    return _moment(value)


def _integer(value: Any) -> int:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if not isinstance(whole, int) or isinstance(whole, bool) or not _INT64_MIN <= whole <= _INT64_MAX:
        raise _NotReadableError("an integer of 64 bits")
    return whole


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _NotReadableError("a finite number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _NotReadableError("a finite number")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _NotReadableError("text")
    return value


def _list_of(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def read_all(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _NotReadableError("a list")
        return [read(item) for item in value]

    return read_all


_READERS: dict[DType, Callable[[Any], Any]] = {
    DType.INT64: _integer,
    DType.FLOAT64: _number,
    DType.TIMESTAMP: _timestamp,
    DType.INT64_LIST: _list_of(_integer),
    DType.FLOAT64_LIST: _list_of(_number),
    DType.STRING_LIST: _list_of(_text),
}
