"""Views of any Feast repo: their schema, their entity keys, and their rows between protobuf, Arrow and columns.

What a row holds is what Feast's own conversion makes of it, value for value. Columns of plain numbers, times, texts and
lists of floats are converted whole; every other type goes through Feast's own code.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Null
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.repo_config import RepoConfig
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feature_repo.stores.protowire import length_delimited, messages_of, scalar_tag
from feature_repo.stores.values import FeastRow, micros
from graph_features.errors import SchemaMismatchError
from graph_features.stores.codec import NO_CREATED
from graph_features.stores.general import GeneralColumns, GeneralField, GeneralView, Kind
from graph_features.stores.heads import Bool, Int64
from graph_features.stores.keys import typed_keys

INTEGERS = {
    "INT32": "int32_val",
    "INT64": "int64_val",
    "BOOL": "bool_val",
    "UNIX_TIMESTAMP": "unix_timestamp_val",
}
FLOATS = {"FLOAT": "float_val", "DOUBLE": "double_val"}
SCALARS = {**INTEGERS, **FLOATS}
"""The types that are one word, and the field of Feast's Value that carries each."""

TEXTS = {"STRING": "string_val", "BYTES": "bytes_val", "PDF_BYTES": "bytes_val", "IMAGE_BYTES": "bytes_val"}
FLOAT_LISTS = {"FLOAT_LIST": ("float_list_val", pa.float32()), "DOUBLE_LIST": ("double_list_val", pa.float64())}
NULL_TIME_S = -(2**63)
"""What Feast makes of a null in a column of times."""

_EPOCH_ZONE = pa.timestamp("us", tz="UTC")


def general_view(table: Any, config: RepoConfig) -> GeneralView:
    """Return the schema that rows of a Feast view of any kind are packed by; its features sorted by name."""
    name = compute_versioned_name(table, config.registry.enable_online_feature_view_versioning)
    keys = sorted((column.name, column.dtype.to_value_type().name) for column in getattr(table, "entity_columns", []))
    fields = sorted((field.name, field.dtype.to_value_type().name) for field in table.features)
    return _view(name, tuple(keys), tuple(fields))


@lru_cache(maxsize=1_024)
def _view(name: str, keys: tuple[tuple[str, str], ...], fields: tuple[tuple[str, str], ...]) -> GeneralView:
    return GeneralView(
        name=name,
        keys=keys,
        fields=tuple(GeneralField(name=field, type=kind, kind=_kind(kind)) for field, kind in fields),
    )


def _kind(value_type: str) -> Kind:
    return Kind.INTEGER if value_type in INTEGERS else Kind.FLOAT if value_type in FLOATS else Kind.MESSAGE


# ---------------------------------------------------------------- entity keys


def key_bytes(keys: Sequence[EntityKeyProto]) -> list[bytes]:
    """Return entity keys as bytes; raise SchemaMismatchError for one of a type that no join key may have."""
    rows = [dict(zip(key.join_keys, key.entity_values, strict=True)) for key in keys]
    return key_rows({name: [row[name] for row in rows] for name in (rows[0] if rows else ())})


def key_rows(columns: Mapping[str, Sequence[ValueProto]]) -> list[bytes]:
    """Return the same for columns of values by join key."""
    kinds: dict[str, set[str | None]] = {}
    for name, values in columns.items():
        kinds[name] = {value.WhichOneof("val") for value in values}
    for name, found in kinds.items():
        if not found <= _KEY_KINDS.keys():
            expected, got = ", ".join(_KEY_KINDS), ", ".join(map(str, found - _KEY_KINDS.keys()))
            raise SchemaMismatchError(f"join key {name}: expected a value of {expected}, got {got}")
    if any(len(found) > 1 for found in kinds.values()):
        # Clients need not agree on the type of a key: a row at a time.
        rows = zip(*columns.values(), strict=True)
        return [key_rows({name: [value] for name, value in zip(columns, row, strict=True)})[0] for row in rows]
    fields = [(name, str(field)) for name in sorted(columns) for field in kinds[name]]
    return typed_keys([(_KEY_KINDS[field], [getattr(one, field) for one in columns[name]]) for name, field in fields])


_KEY_KINDS = {
    "string_val": "STRING",
    "bytes_val": "BYTES",
    "int32_val": "INT32",
    "int64_val": "INT64",
    "unix_timestamp_val": "UNIX_TIMESTAMP",
}
"""Fields of Value that may hold a join key, and their types."""


def key_columns(view: GeneralView, table: pa.Table) -> list[bytes]:
    """Return the same for the join key columns of a table."""
    columns = {name: table[name].combine_chunks() for name, _ in view.keys}
    if all(_plain_key(columns[name], kind) for name, kind in view.keys):
        return typed_keys([(kind, columns[name].to_pylist()) for name, kind in view.keys])
    return key_rows({name: _by_feast(kind, columns[name]) for name, kind in view.keys})


def _plain_key(column: pa.Array, value_type: str) -> bool:
    if column.null_count:
        return False
    return (value_type == "STRING" and pa.types.is_string(column.type)) or (
        value_type in ("INT32", "INT64") and pa.types.is_signed_integer(column.type)
    )


# ---------------------------------------------------------------- rows as protobuf


def from_protos(view: GeneralView, rows: Sequence[FeastRow]) -> GeneralColumns:
    """Return rows as Feast hands them to a store; raise SchemaMismatchError where a value is of another type."""
    n, features = len(rows), len(view.fields)
    slots, valid = np.zeros((n, features), np.int64), np.zeros((n, features), np.bool_)
    messages: dict[str, Sequence[bytes]] = {}
    for place, field in enumerate(view.fields):
        values = [row[1].get(field.name) for row in rows]
        if field.kind is Kind.MESSAGE:
            encoded = [b"" if value is None else value.SerializeToString() for value in values]
            messages[field.name] = [b"" if data == _NULL_MESSAGE else data for data in encoded]
            valid[:, place] = [len(data) > 0 for data in messages[field.name]]
        else:
            slots[:, place], valid[:, place] = _scalars(view, field, values)
    return GeneralColumns(
        event_us=np.array([micros(row[2]) for row in rows], np.int64),
        created_us=np.array([NO_CREATED if row[3] is None else micros(row[3]) for row in rows], np.int64),
        slots=slots,
        valid=valid,
        messages=messages,
    )


_NULL_MESSAGE = ValueProto(null_val=Null.NULL).SerializeToString()


def _scalars(view: GeneralView, field: GeneralField, values: Sequence[ValueProto | None]) -> tuple[Int64, Bool]:
    expected = SCALARS[field.type]
    kinds = [None if value is None else value.WhichOneof("val") for value in values]
    wrong = {kind for kind in kinds if kind is not None} - {expected, "null_val"}
    if wrong:
        raise SchemaMismatchError(
            f"view {view.name}: feature {field.name} is of type {field.type} ({expected}), got {', '.join(wrong)}"
        )
    valid = np.array([kind == expected for kind in kinds], np.bool_)
    plain = [getattr(value, expected) if known else 0 for value, known in zip(values, valid.tolist(), strict=True)]
    if field.kind is Kind.FLOAT:
        return np.array(plain, np.float64).view(np.int64), valid
    return np.array(plain, np.int64), valid


# ---------------------------------------------------------------- rows as Arrow


def from_arrow(view: GeneralView, table: pa.Table, *, event: str, created: str | None) -> GeneralColumns:
    """Return rows of a table whose columns have the names of the features; raise SchemaMismatchError."""
    n, features = table.num_rows, len(view.fields)
    missing = [name for name in (*view.names, event) if name not in table.column_names]
    if missing:
        raise SchemaMismatchError(f"rows for view {view.name}: no columns {', '.join(missing[:5])}")
    slots, valid = np.zeros((n, features), np.int64), np.zeros((n, features), np.bool_)
    messages: dict[str, Sequence[bytes]] = {}
    for place, field in enumerate(view.fields):
        column = table[field.name].combine_chunks()
        numbers = _numbers(field.type, column)
        if numbers is not None:
            slots[:, place], valid[:, place] = numbers
        elif field.kind is Kind.MESSAGE:
            messages[field.name] = _messages(field.type, column)
            valid[:, place] = [len(data) > 0 for data in messages[field.name]]
        else:
            slots[:, place], valid[:, place] = _scalars(view, field, _by_feast(field.type, column))
    event_us, known = _micros(table[event])
    if not known.all():
        raise SchemaMismatchError(f"rows for view {view.name}: {event} holds nulls, which an event timestamp may not")
    created_us = np.full(n, NO_CREATED, np.int64)
    if created is not None:
        moments, known = _micros(table[created])
        created_us[known] = moments[known]
    return GeneralColumns(event_us=event_us, created_us=created_us, slots=slots, valid=valid, messages=messages)


def _micros(column: pa.ChunkedArray) -> tuple[Int64, Bool]:
    array = column.combine_chunks()
    if not pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("us"))
    array = array.cast(_EPOCH_ZONE if array.type.tz else pa.timestamp("us"), safe=False).cast(pa.int64())
    return _int64(array)


def _int64(array: pa.Array) -> tuple[Int64, Bool]:
    known: Bool = array.is_valid().to_numpy(zero_copy_only=False)
    values: Int64 = pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return values, known


def _numbers(value_type: str, column: pa.Array) -> tuple[Int64, Bool] | None:
    """Slots and validity of a column of numbers, None where only Feast knows how to read it."""
    source = column.type
    if value_type == "INT64" and pa.types.is_signed_integer(source):
        return _int64(column.cast(pa.int64()))
    if value_type == "INT32" and source in (pa.int8(), pa.int16(), pa.int32()):
        return _int64(column.cast(pa.int64()))
    if value_type == "BOOL" and pa.types.is_boolean(source):
        return _int64(column.cast(pa.int8()))
    if value_type == "UNIX_TIMESTAMP" and pa.types.is_timestamp(source):
        values, known = _int64(column.cast(pa.int64()))
        seconds = values // {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[source.unit]
        return np.where(known, seconds, NULL_TIME_S), np.ones(len(known), np.bool_)
    if value_type in FLOATS and source in (pa.float32(), pa.float64()):
        floats = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
        known = ~np.isnan(floats)
        if value_type == "FLOAT":
            with np.errstate(over="ignore"):
                floats = floats.astype(np.float32).astype(np.float64)
        return np.where(known, floats, 0.0).view(np.int64), known
    return None


def _messages(value_type: str, column: pa.Array) -> list[bytes]:
    source = column.type
    if value_type == "STRING" and pa.types.is_string(source):
        return _texts(value_type, column)
    if value_type in TEXTS and value_type != "STRING" and pa.types.is_binary(source):
        return _texts(value_type, column)
    if value_type in FLOAT_LISTS and source.num_fields == 1 and pa.types.is_list(source):
        field, item = FLOAT_LISTS[value_type]
        if source.value_type == item and column.flatten().null_count == 0:
            return _float_lists(field, column)
    return messages_of(_by_feast(value_type, column))


def _texts(value_type: str, column: pa.Array) -> list[bytes]:
    tag = scalar_tag(TEXTS[value_type])
    known = column.is_valid().to_pylist()
    return [length_delimited(tag, item) if k else b"" for item, k in zip(_slices_of(column), known, strict=True)]


def _slices_of(column: pa.Array) -> list[bytes]:
    """The bytes of each text of a column."""
    if not len(column):
        return []
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4).tolist()
    # A slice of a table shares the buffers of the whole: copy the slice's part only.
    first, last = bounds[0], bounds[-1]
    raw = b"" if data is None else data.slice(first, last - first).to_pybytes()
    return [raw[start - first : end - first] for start, end in itertools.pairwise(bounds)]


def _float_lists(field: str, column: pa.Array) -> list[bytes]:
    if not len(column):
        return []
    tag, size = scalar_tag(field), column.type.value_type.bit_width // 8
    bounds = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, column.offset * 4)
    raw = np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False)).tobytes()
    out, at = [], 0
    for known, length in zip(column.is_valid().to_pylist(), np.diff(bounds).tolist(), strict=True):
        if not known:
            out.append(b"")
            continue
        items = raw[at : at + length * size]
        at += length * size
        out.append(length_delimited(tag, length_delimited(_PACKED, items) if items else b""))
    return out


_PACKED = b"\x0a"
"""Field 1 of Feast's lists, as one run of bytes."""


def _by_feast(value_type: str, column: pa.Array) -> list[ValueProto]:
    converted: list[ValueProto] = python_values_to_proto_values(
        column.to_numpy(zero_copy_only=False), ValueType[value_type]
    )
    return converted
