"""Feast's answers written as protobuf bytes, a column at a time.

Making a Python object per value is most of what an online read costs. A column of numbers is a matrix of bytes in which
every row is one encoded Value; protobuf then parses the whole column in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from graph_features.stores.heads import Bool, Int64

FeatureVector = GetOnlineFeaturesResponse.FeatureVector

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_WIRE = {"double_val": _FIXED64, "float_val": _FIXED32}
_WIRE.update(dict.fromkeys(("int32_val", "int64_val", "bool_val", "unix_timestamp_val"), _VARINT))
_VALUES, _STATUSES, _MOMENTS = b"\x0a", b"\x12", b"\x1a"
"""Tags of the fields 1, 2 and 3 of a FeatureVector."""
_NULL = b"\x0a\x00"
_LONGEST = 10
FEW = 24
"""So many values are written faster one by one than as a matrix."""


def varint(value: int) -> bytes:
    """A non-negative integer as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@cache
def scalar_tag(field: str) -> bytes:
    """The tag of a field of Value."""
    return varint(ValueProto.DESCRIPTOR.fields_by_name[field].number << 3 | _WIRE.get(field, _DELIMITED))


def length_delimited(tag: bytes, data: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return tag + varint(len(data)) + data


def messages_of(values: Sequence[ValueProto]) -> list[bytes]:
    """Values as bytes, empty for null."""
    return [value.SerializeToString() for value in values]


def values_of_floats(field: str, values: npt.NDArray[np.float64], valid: Bool) -> bytes:
    """The `values` field of a FeatureVector from a column of floats."""
    width = 4 if field == "float_val" else 8
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(values.astype("<f4" if width == 4 else "<f8"))
    if len(values) <= FEW:
        data = numbers.tobytes()
        return values_of_few(field, [data[at : at + width] for at in range(0, len(data), width)], valid.tolist())
    raw = numbers.view(np.uint8).reshape(-1, width)
    lengths = np.full(len(values), width, np.int64)
    return _values(scalar_tag(field), raw, lengths, valid)


def values_of_integers(field: str, values: Int64, valid: Bool) -> bytes:
    """The same from a column of integers, negative ones in ten bytes as protobuf has it."""
    rest = np.ascontiguousarray(values).view(np.uint64)
    if len(values) <= FEW:
        return values_of_few(field, [varint(value) for value in rest.tolist()], valid.tolist())
    raw = np.empty((len(values), _LONGEST), np.uint8)
    lengths = np.ones(len(values), np.int64)
    for place in range(_LONGEST):
        raw[:, place] = (rest & np.uint64(0x7F)).astype(np.uint8)
        rest = rest >> np.uint64(7)
        more = rest > 0
        if not more.any():
            raw = raw[:, : place + 1]
            break
        raw[more, place] |= 0x80
        lengths[more] = place + 2
    return _values(scalar_tag(field), np.ascontiguousarray(raw), lengths, valid)


def values_of_few(field: str, encoded: Sequence[bytes], valid: Sequence[bool]) -> bytes:
    """The same from numbers as protobuf writes them, value by value; those that are not valid mean nothing."""
    tag = scalar_tag(field)
    parts = [
        b"%c%c%b%b" % (_VALUES[0], len(tag) + len(data), tag, data) if known else _NULL
        for data, known in zip(encoded, valid, strict=True)
    ]
    return b"".join(parts)


def _values(tag: bytes, raw: npt.NDArray[np.uint8], lengths: Int64, valid: Bool) -> bytes:
    """Rows of field tag, length, tag of the value, and the first `lengths` bytes of raw; nulls are empty."""
    n, width = raw.shape
    first = 2 + len(tag)
    out = np.empty((n, first + width), np.uint8)
    out[:, 0] = _VALUES[0]
    out[:, 1] = len(tag) + lengths
    out[:, 2:first] = np.frombuffer(tag, np.uint8)
    out[:, first:] = raw
    ends = first + lengths
    if not valid.all():
        out[~valid, :2] = np.frombuffer(_NULL, np.uint8)
        ends = np.where(valid, ends, 2)
    if (ends == first + width).all():
        return out.tobytes()
    return out[np.arange(first + width) < ends[:, None]].tobytes()


def values_of_messages(messages: Sequence[bytes]) -> bytes:
    """The same from encoded Values, empty for null."""
    return b"".join([length_delimited(_VALUES, message) for message in messages])


def statuses(present: Bool) -> bytes:
    """The `statuses` field: PRESENT, null or not, where there is a row."""
    codes = np.where(present, FieldStatus.PRESENT, FieldStatus.NOT_FOUND).astype(np.uint8)
    return length_delimited(_STATUSES, codes.tobytes())


def moments(event_us: Int64, present: Bool) -> bytes:
    """The `event_timestamps` field, the epoch where there is no row."""
    seconds, micros = np.divmod(np.where(present, event_us, 0), 1_000_000)
    parts = []
    for second, micro in zip(seconds.tolist(), micros.tolist(), strict=True):
        text = b"\x08" + varint(second % 2**64) if second else b""
        text += b"\x10" + varint(micro * 1_000) if micro else b""
        parts.append(length_delimited(_MOMENTS, text))
    return b"".join(parts)
