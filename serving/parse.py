"""Request bodies to values: read with a limit, decoded strictly, and each refusal says where, what and why."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

import msgspec
from fastapi import Request

from graph_features.errors import InvalidInputError
from graph_features.settings import ServingSettings
from serving.middleware import PLACE
from serving.problems import SlowBodyError, TooLargeError

T = TypeVar("T")

_PATH = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$")
_EXPECTED = re.compile(r"^Expected (?P<expected>.*?)(, got `(?P<got>.*)`)?$")
_PLAIN = {
    "Invalid decimal string": "a decimal number",
    "Number out of range": "a finite number",
}
_STEP = re.compile(r"\[(\d+)\]|\[\.\.\.\]|([^.\[\]]+)")


async def read_body(request: Request, settings: ServingSettings) -> bytes:
    """Return the body; raise TooLargeError as soon as it is known to be larger than `settings` allow.

    Raises SlowBodyError when it does not arrive in time. Until it is there the request holds no place among those at
    work: clients that send a byte now and then must not keep others out. Raises OverloadedError where there is none.
    """
    limit_bytes = settings.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > limit_bytes:
        raise _too_large(int(declared), limit_bytes)
    chunks: list[bytes] = []
    size = 0
    place = request.scope.get(PLACE)
    if place is not None:
        place.leave()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit_bytes:
                    raise _too_large(size, limit_bytes)
                if place is not None:
                    place.hold(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise SlowBodyError(f"The body did not arrive within {settings.body_timeout_s:g} s.") from None
    if place is not None:
        place.take()
    return b"".join(chunks)


def _too_large(size: int, limit: int) -> TooLargeError:
    return TooLargeError(field="body", expected=f"at most {limit} bytes", got=f"{size} bytes or more")


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(body: bytes, kind: type[T]) -> T:
    """Decode JSON into `kind`; raise InvalidInputError naming the field."""
    try:
        hashable: Any = kind
        value: T = _decoder(hashable).decode(body)
        return value
    except msgspec.ValidationError as error:
        raise _invalid(str(error), body) from None
    except UnicodeDecodeError:
        raise InvalidInputError(field="body", expected="UTF-8 text", got=_first_bad_byte(body)) from None
    except msgspec.DecodeError as error:
        raise _malformed(str(error), body) from None
    except RecursionError:
        raise InvalidInputError(field="body", expected="JSON of ordinary depth", got="too many levels") from None


def _first_bad_byte(body: bytes) -> str:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte 0x{body[error.start]:02x} at position {error.start}"
    return "an escape that is not a character"


def _invalid(message: str, body: bytes) -> InvalidInputError:
    match = _PATH.search(message)
    path = match["path"] if match else ""
    message = _PATH.sub("", message)
    if unknown := _UNKNOWN.match(message):
        return InvalidInputError(field=_join(path, unknown["name"]), expected="no such field", got=unknown["name"])
    if missing := _MISSING.match(message):
        return InvalidInputError(field=_join(path, missing["name"]), expected="a value", got=None)
    field = path or "body"
    if message in _PLAIN:
        return InvalidInputError(field=field, expected=_PLAIN[message], got=_value_at(body, path))
    expected = _EXPECTED.match(message)
    return InvalidInputError(
        field=field,
        expected=(expected["expected"] if expected else message).replace("`", ""),
        got=_value_at(body, path),
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _value_at(body: bytes, path: str) -> object:
    """What stands at `path` in the body."""
    try:
        value: Any = msgspec.json.decode(body)
        for index, name in _STEP.findall(path):
            value = value[int(index)] if index else value[name]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return "something else"
    return value


def _malformed(message: str, body: bytes) -> InvalidInputError:
    """Python's own parser takes NaN and Infinity, which JSON does not have: with its help the field can be named."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    for path, value in _non_finite(document, ""):
        return InvalidInputError(field=path, expected="a finite number", got=value)
    return InvalidInputError(field="body", expected="a JSON document", got=message)


def _non_finite(value: object, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _non_finite(item, _join(path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _non_finite(item, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path or "body", value


def check_batch(name: str, rows: list[Any], limit: int, key: tuple[str, ...] = ("transaction_id",)) -> None:
    """Refuse more rows than `limit`, and rows of which two have the same `key`."""
    if len(rows) > limit:
        raise TooLargeError(field=name, expected=f"at most {limit} items", got=len(rows))
    first: dict[object, int] = {}
    for index, row in enumerate(rows):
        value = tuple(getattr(row, part) for part in key)
        if first.setdefault(value, index) != index:
            raise InvalidInputError(
                field=f"{name}[{index}].transaction_id",
                expected=f"each {' with its '.join(key)} once (it is in {name}[{first[value]}] too)",
                got=row.transaction_id,
            )
