"""Which column of a file fills which column of ours: a YAML file, flags, or nothing when the names are the same.

docs/ingest.md describes the format. A target that is not mentioned is filled from the file's column of the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import yaml

from graph_features.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, to_ms
from graph_features.contracts import LABEL_SCHEMA, STATUS_SCHEMA, TRANSACTION_SCHEMA
from graph_features.errors import InvalidInputError
from graph_features.ingest.times import UNITS_NS

_STATUS: Final = ("status", "status_timestamp")
_LABEL: Final = ("is_fraud", "label_timestamp", "fraud_party")
_PAYMENT: Final = tuple(name for name in TRANSACTION_SCHEMA.names if name != "amount_base")
TARGETS: Final = {
    "transactions": (*_PAYMENT, *_STATUS, *_LABEL),
    "statuses": tuple(STATUS_SCHEMA.names),
    "labels": tuple(LABEL_SCHEMA.names),
}
"""Kinds of file and the columns that may be filled from each."""

REQUIRED: Final = {
    "transactions": ("transaction_id", "event_timestamp", "sender_id", "receiver_id", "amount", "currency"),
    "statuses": ("transaction_id", "status", "status_timestamp"),
    "labels": ("transaction_id", "is_fraud", "label_timestamp"),
}
_TIMES: Final = ("event_timestamp", "status_timestamp", "label_timestamp")
_DURATION: Final = re.compile(r"^(\d{1,9})(ms|s|m|h|d)$")
_DURATION_MS: Final = {"ms": 1, "s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_MINOR: Final = "minor"


@dataclass(frozen=True, kw_only=True)
class FromColumn:
    """A column of the file, its text prefixed and its words translated; `unit` for counted time or minor amounts."""

    column: str
    prefix: str = ""
    unit: str | None = None
    epoch_ms: int = 0
    timezone: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same value in every row."""

    value: str


@dataclass(frozen=True, kw_only=True)
class RowNumber:
    """The row's number in the file, counted from 1, for files without ids. Rows must keep their places."""

    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Template:
    """Text made of columns: literals and column names in turn, literals first."""

    parts: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.parts[1::2]


@dataclass(frozen=True, kw_only=True)
class Delay:
    """So long after the payment's own time."""

    delay_ms: int


Source = FromColumn | Constant | RowNumber | Template | Delay


@dataclass(frozen=True, kw_only=True)
class ColumnMapping:
    """Where target columns come from, and how the file is written. `timezone` is that of times without one."""

    columns: Mapping[str, Source] = field(default_factory=dict)
    timezone: str | None = None
    encoding: str = "utf-8"
    delimiter: str = ","

    def resolve(self, kind: str, file_columns: Sequence[str]) -> dict[str, Source]:
        """The source of each target that this file fills; raise InvalidInputError for what is missing or unknown."""
        if kind not in TARGETS:
            raise InvalidInputError(field="kind", expected=f"one of {', '.join(TARGETS)}", got=kind)
        sources: dict[str, Source] = {}
        for target in self.columns:
            if target not in TARGETS[kind]:
                raise _wrong(target, f"one of the columns of {kind}: {', '.join(TARGETS[kind])}", target)
        for target in TARGETS[kind]:
            if target in self.columns:
                sources[target] = self.columns[target]
            elif target in file_columns:
                sources[target] = FromColumn(column=target)
        _check_present(kind, sources, file_columns)
        return {target: self._localised(source) for target, source in sources.items()}

    def _localised(self, source: Source) -> Source:
        if isinstance(source, FromColumn) and source.timezone is None:
            return replace(source, timezone=self.timezone)
        return source


def _check_present(kind: str, sources: Mapping[str, Source], file_columns: Sequence[str]) -> None:
    there = f"the file has {', '.join(file_columns)}"
    for target, source in sources.items():
        if isinstance(source, Delay) and kind != "transactions":
            raise _wrong(target, f"a column, as {kind} have no time of the payment", "delay")
        for column in columns_of(source):
            if column not in file_columns:
                raise _wrong(target, f"a column of the file ({there})", column)
    required = list(REQUIRED[kind])
    if kind == "transactions" and "is_fraud" in sources:
        required.append("label_timestamp")  # a label without the time at which it became known would be a leak
    for target in required:
        if target not in sources:
            raise _wrong(target, f"a source, as {kind} need it; {there}", None)
    if kind == "transactions" and "is_fraud" not in sources and {"label_timestamp", "fraud_party"} & sources.keys():
        raise _wrong("is_fraud", f"a source, as label_timestamp or fraud_party has one; {there}", None)
    if kind == "transactions" and "status" not in sources and "status_timestamp" in sources:
        raise _wrong("status", f"a source, as status_timestamp has one; {there}", None)


def columns_of(source: Source) -> tuple[str, ...]:
    """The columns of the file that a source reads."""
    if isinstance(source, FromColumn):
        return (source.column,)
    return source.columns if isinstance(source, Template) else ()


def load_mapping(path: Path | None = None, flags: Iterable[str] = ()) -> ColumnMapping:
    """Read a mapping file, if any, and then flags `target=source`, which win.

    A flag's source is a column's name, or YAML in braces as in the file: `currency={value: EUR}`.
    """
    data: Any = {}
    if path is not None:
        data = _yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(data, dict):
        raise InvalidInputError(field=str(path), expected="a mapping with `columns:`", got=data)
    columns = data.get("columns") or {}
    if not isinstance(columns, dict):
        raise InvalidInputError(field="columns", expected="target: source lines", got=columns)
    columns = dict(columns)
    for flag in flags:
        target, separator, source = flag.partition("=")
        if not separator or not target or not source:
            raise InvalidInputError(field="--map", expected="target=source", got=flag)
        columns[target] = _yaml(source, f"--map {target}") if source.startswith("{") else source
    return parse_mapping({**data, "columns": columns})


def parse_mapping(data: Mapping[str, Any]) -> ColumnMapping:
    """A mapping from plain data as YAML gives it; raise InvalidInputError naming the entry."""
    known = ("columns", "timezone", "encoding", "delimiter")
    for key in data:
        if key not in known:
            raise InvalidInputError(field=str(key), expected=f"one of {', '.join(known)}", got=key)
    all_targets = sorted({name for names in TARGETS.values() for name in names})
    columns: dict[str, Source] = {}
    for target, source in data.get("columns", {}).items():
        if target not in all_targets:
            raise _wrong(str(target), f"one of the target columns {', '.join(all_targets)}", target)
        columns[target] = _source(target, source)
    delimiter = data.get("delimiter", ",")
    if not isinstance(delimiter, str) or len(delimiter) != 1 or not delimiter.isascii():
        raise InvalidInputError(field="delimiter", expected="one ASCII character", got=delimiter)
    return ColumnMapping(
        columns=columns,
        timezone=_timezone("timezone", data.get("timezone")),
        encoding=_encoding(data.get("encoding", "utf-8")),
        delimiter=delimiter,
    )


def _source(target: str, data: Any) -> Source:
    if isinstance(data, str):
        return FromColumn(column=data)
    if not isinstance(data, dict):
        raise _wrong(target, "a column's name or one of column, value, template, row_number, delay", data)
    options = dict(data)
    kinds = [key for key in ("column", "value", "template", "row_number", "delay") if key in options]
    if len(kinds) != 1:
        raise _wrong(target, "exactly one of column, value, template, row_number, delay", data)
    made = _MAKERS[kinds[0]](target, options)
    if options:
        raise _wrong(target, f"no option {next(iter(options))} beside {kinds[0]}", data)
    return made


def _column(target: str, options: dict[str, Any]) -> Source:
    unit = options.pop("unit", None)
    units = tuple(UNITS_NS) if target in _TIMES else (_MINOR,) if target == "amount" else ()
    if unit is not None and unit not in units:
        raise _wrong(f"{target}.unit", f"one of {', '.join(units)}" if units else "no unit for this column", unit)
    epoch_ms = _epoch(target, options.pop("epoch")) if target in _TIMES and unit and "epoch" in options else 0
    words = options.pop("values", {})
    if not isinstance(words, dict):
        raise _wrong(f"{target}.values", "pairs of the file's word and ours", words)
    return FromColumn(
        column=_text(target, options.pop("column")),
        prefix=_text(target, options.pop("prefix", "")),
        unit=unit,
        epoch_ms=epoch_ms,
        timezone=_timezone(f"{target}.timezone", options.pop("timezone", None)),
        words={_text(target, key): _text(target, value) for key, value in words.items()},
    )


def _constant(target: str, options: dict[str, Any]) -> Source:
    return Constant(value=_text(target, options.pop("value")))


def _row_number(target: str, options: dict[str, Any]) -> Source:
    if target != "transaction_id" or options.pop("row_number") is not True:
        raise _wrong(target, "row_number: true, and for transaction_id only", options)
    return RowNumber(prefix=_text(target, options.pop("prefix", "")))


def _template(target: str, options: dict[str, Any]) -> Source:
    text = _text(target, options.pop("template"))
    parts = re.split(r"\{([^{}]+)\}", text)
    if len(parts) < 3 or any("{" in literal or "}" in literal for literal in parts[::2]):
        raise _wrong(target, "text with columns in braces, such as '{account}-{number}'", text)
    return Template(parts=tuple(parts))


def _delay(target: str, options: dict[str, Any]) -> Source:
    text = str(options.pop("delay"))
    match = _DURATION.match(text)
    if target not in ("label_timestamp", "status_timestamp") or match is None:
        raise _wrong(target, "a delay such as 7d, 12h, 30m or 10s, for status_timestamp and label_timestamp", text)
    return Delay(delay_ms=int(match[1]) * _DURATION_MS[match[2]])


_MAKERS: Final = {
    "column": _column,
    "value": _constant,
    "template": _template,
    "row_number": _row_number,
    "delay": _delay,
}


def _epoch(target: str, value: Any) -> int:
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise _wrong(f"{target}.epoch", "an instant with a time zone such as 2020-01-01T00:00:00Z", value)
    return to_ms(moment)


def _timezone(name: str, value: Any) -> str | None:
    if value is None:
        return None
    try:
        ZoneInfo(value)
    except (ValueError, TypeError, OSError, KeyError):
        raise InvalidInputError(field=name, expected="a time zone such as UTC or Europe/Paris", got=value) from None
    return str(value)


def _encoding(value: Any) -> str:
    try:
        "".encode(value)
    except (LookupError, TypeError):
        raise InvalidInputError(field="encoding", expected="an encoding such as utf-8 or latin-1", got=value) from None
    return str(value)


def _text(target: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise _wrong(target, "text", value)
    return str(value)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInputError(field=where, expected="YAML", got=str(error).splitlines()[0]) from None


def _wrong(target: str, expected: str, got: object) -> InvalidInputError:
    return InvalidInputError(field=f"mapping of {target}", expected=expected, got=got)
