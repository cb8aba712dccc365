"""Ids, words, truth values and coordinates, checked a column at a time. Empty text counts as nothing everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.contracts import MAX_ID_LENGTH
from graph_features.ingest.faults import Faults, Mask

CONTROL: Final = r"[\p{Cc}\p{Cs}\x{2028}\x{2029}]"
NUMBER: Final = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_TRUE: Final = pa.array(["1", "true", "t", "yes", "y"])
_FALSE: Final = pa.array(["0", "false", "f", "no", "n"])


def truth(mask: pa.Array) -> Mask:
    """An Arrow boolean array as a NumPy mask, null as false."""
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def matches(text: pa.Array, pattern: str) -> Mask:
    return truth(pc.match_substring_regex(text, pattern))


def flat(column: Any) -> pa.Array:
    """A column as one plain array: chunks joined, dictionaries decoded."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def as_text(field: str, raw: pa.Array, faults: Faults) -> pa.Array:
    """`raw` as strings, empty ones as null. Whole floats lose their point, as ids in data frames with gaps need."""
    kind = raw.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        text = _decoded(field, raw, faults)
    elif pa.types.is_floating(kind):
        values = raw.cast(pa.float64())
        whole = truth(pc.and_(pc.is_finite(values), pc.equal(pc.floor(values), values)))
        whole &= truth(pc.less(pc.abs(values), 2.0**53))
        faults.add(field, ~whole & truth(pc.is_valid(raw)), "text or a whole number", raw)
        text = pc.if_else(pa.array(whole), values, None).cast(pa.int64()).cast(pa.string())
    elif pa.types.is_nested(kind) or pa.types.is_duration(kind) or pa.types.is_interval(kind):
        faults.add(field, truth(pc.is_valid(raw)), "text or a number", raw)
        text = pa.nulls(len(raw), pa.string())
    else:
        text = raw.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text)


def _decoded(field: str, raw: pa.Array, faults: Faults) -> pa.Array:
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        bad = np.zeros(len(raw), np.bool_)
        for row, value in enumerate(raw.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                bad[row] = True
        faults.add(field, bad, "UTF-8 text", raw)
        return pa.array(texts, pa.string())


def require(field: str, values: pa.Array, faults: Faults) -> pa.Array:
    """`values`, rows without one noted as a fault."""
    faults.add(field, truth(pc.is_null(values)), "a value", values)
    return values


def word(field: str, raw: pa.Array, faults: Faults, *, secret: bool = False) -> pa.Array:
    """Ids and other short text: 1 to MAX_ID_LENGTH characters, none of them a control character."""
    text = as_text(field, raw, faults)
    too_long = truth(pc.greater(pc.utf8_length(text), MAX_ID_LENGTH))
    faults.add(field, too_long, f"at most {MAX_ID_LENGTH} characters", text, secret=secret)
    if _may_hold_control(text):
        faults.add(field, matches(text, CONTROL), "text without control characters", text, secret=secret)
    return text


def _may_hold_control(text: pa.Array) -> bool:
    """Whether any byte could begin a control character: a look at the bytes is far cheaper than the pattern."""
    strings = pc.drop_null(text)
    if not len(strings):
        return False
    _, offsets, data = strings.buffers()
    first, last = np.frombuffer(offsets, np.int32)[[strings.offset, strings.offset + len(strings)]]
    octets = np.frombuffer(data, np.uint8)[first:last]
    return bool(((octets < 0x20) | (octets == 0x7F) | (octets == 0xC2) | (octets == 0xE2)).any())


def country(field: str, raw: pa.Array, faults: Faults) -> pa.Array:
    """ISO 3166-1 alpha-2 codes in upper case."""
    text = as_text(field, raw, faults)
    faults.add(field, _unlike(text, r"^[A-Z]{2}$"), "an ISO 3166 code of two capital letters", text)
    return text


def currency(field: str, raw: pa.Array, faults: Faults, *, known: Sequence[str]) -> pa.Array:
    """ISO 4217 codes that have a rate."""
    text = require(field, as_text(field, raw, faults), faults)
    faults.add(field, _unlike(text, r"^[A-Z]{3}$"), "an ISO 4217 code of three capital letters", text)
    without_rate = ~truth(pc.is_in(text, value_set=pa.array(known, pa.string())))
    faults.add(field, without_rate, f"a currency with a rate in RINGFENCE_RATES (there are {', '.join(known)})", text)
    return text


def choice(field: str, raw: pa.Array, faults: Faults, *, options: Sequence[str]) -> pa.Array:
    """One of `options`, or null."""
    text = as_text(field, raw, faults)
    stranger = truth(pc.is_valid(text)) & ~truth(pc.is_in(text, value_set=pa.array(options)))
    faults.add(field, stranger, f"one of {', '.join(options)}", text)
    return text


def boolean(field: str, raw: pa.Array, faults: Faults) -> pa.Array:
    """Truth values, or null: booleans, 0 and 1, true and false, yes and no, in any case."""
    text = pc.utf8_lower(as_text(field, raw, faults))
    yes, no = pc.is_in(text, value_set=_TRUE), pc.is_in(text, value_set=_FALSE)
    neither = truth(pc.is_valid(text)) & ~truth(yes) & ~truth(no)
    faults.add(field, neither, "0 or 1, true or false", raw)
    return pc.if_else(pc.or_(yes, no), yes, None)


def coordinate(field: str, raw: pa.Array, faults: Faults, *, limit: float) -> pa.Array:
    """Degrees between -limit and limit, or null."""
    degrees = number(field, raw, faults)
    outside = truth(pc.invert(pc.less_equal(pc.abs(degrees), limit)))  # NaN is not within the limit either
    faults.add(field, outside, f"degrees between -{limit:g} and {limit:g}", raw)
    return degrees


def number(field: str, raw: pa.Array, faults: Faults) -> pa.Array:
    """Floats from numbers or their text; what is no number is noted and null."""
    if pa.types.is_floating(raw.type) or pa.types.is_integer(raw.type):
        return raw.cast(pa.float64(), safe=False)
    text = as_text(field, raw, faults)
    strange = _unlike(text, NUMBER)
    faults.add(field, strange, "a number", text)
    return pc.if_else(pa.array(strange), None, text).cast(pa.float64())


def _unlike(text: pa.Array, pattern: str) -> Mask:
    return truth(pc.is_valid(text)) & ~matches(text, pattern)
