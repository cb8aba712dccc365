"""Between Feast's protobuf values and columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import DoubleList, Int64List, StringList
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from graph_features.clock import from_ms
from graph_features.schema import DType, EntityKey, ViewSchema
from graph_features.stores.blocks import RowBlock

FeastRow = tuple[EntityKeyProto, dict[str, ValueProto], datetime, datetime | None]
OnlineRow = tuple[datetime | None, dict[str, ValueProto] | None]

_NULL = ValueProto()
_NO_TIME_S = -(2**63)
"""How Feast writes a null time."""
_FIELDS: dict[DType, str] = {
    DType.INT64: "int64_val",
    DType.FLOAT64: "double_val",
    DType.TIMESTAMP: "unix_timestamp_val",
    DType.INT64_LIST: "int64_list_val",
    DType.FLOAT64_LIST: "double_list_val",
    DType.STRING_LIST: "string_list_val",
}
_LISTS: dict[DType, Callable[[list[Any]], ValueProto]] = {
    DType.INT64_LIST: lambda values: ValueProto(int64_list_val=Int64List(val=values)),
    DType.FLOAT64_LIST: lambda values: ValueProto(double_list_val=DoubleList(val=values)),
    DType.STRING_LIST: lambda values: ValueProto(string_list_val=StringList(val=values)),
}


def entity_key(view: ViewSchema, proto: EntityKeyProto) -> EntityKey:
    """Return the key's values in the view's order of join keys."""
    values = dict(zip(proto.join_keys, proto.entity_values, strict=True))
    return tuple(_text(values[name]) for name in view.keys)


def _text(value: ValueProto) -> str:
    kind = value.WhichOneof("val")
    return "" if kind is None else str(getattr(value, kind))


def to_table(view: ViewSchema, rows: Sequence[FeastRow]) -> pa.Table:
    """Return rows as Feast hands them to a store, as the view's table.

    Feast's timestamps values are whole seconds; columns that come without protobuf (materialize) keep milliseconds.
    Rows without a created timestamp are older than any with one.
    """
    keys = [entity_key(view, row[0]) for row in rows]
    columns = [pa.array([key[place] for key in keys], pa.string()) for place in range(len(view.keys))]
    columns.append(pa.array([micros(row[2]) // 1_000 for row in rows], pa.int64()))
    columns.append(pa.array([0 if row[3] is None else micros(row[3]) for row in rows], pa.int64()))
    for feature in view.features:
        values = [_python(feature.dtype, row[1].get(feature.name, _NULL)) for row in rows]
        columns.append(pa.array(values, pa.int64() if feature.dtype is DType.TIMESTAMP else feature.dtype.arrow))
    arrays = [column.cast(field.type) for column, field in zip(columns, view.arrow_schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=view.arrow_schema)


def micros(moment: datetime) -> int:
    """Epoch microseconds of a time; one without a zone is in UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    delta = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _python(dtype: DType, value: ValueProto) -> Any:
    if value.WhichOneof("val") != _FIELDS[dtype]:
        return None
    plain = getattr(value, _FIELDS[dtype])
    if dtype.is_list:
        return list(plain.val)
    if dtype is DType.TIMESTAMP:
        return None if plain == _NO_TIME_S else plain * 1_000
    return plain


def to_feast(block: RowBlock, names: Sequence[str]) -> list[OnlineRow]:
    """Return what Feast's `online_read` answers: event time and values by name, (None, None) for absent rows."""
    columns = [value_protos(block, name) for name in names]
    answers: list[OnlineRow] = []
    for row, present in enumerate(block.present.tolist()):
        if not present:
            answers.append((None, None))
            continue
        values = {name: column[row] for name, column in zip(names, columns, strict=True)}
        answers.append((from_ms(block.as_of_ms[row]), values))
    return answers


def value_protos(block: RowBlock, name: str) -> list[ValueProto]:
    """One feature as Feast's values, without a field for null or absent."""
    dtype = block.view.feature(name).dtype
    valid = block.valid(name).tolist()
    if dtype.is_list:
        offsets, items = block.lists(name)
        bounds, plain = offsets.tolist(), items.tolist()
        make = _LISTS[dtype]
        return [make(plain[bounds[i] : bounds[i + 1]]) if known else _NULL for i, known in enumerate(valid)]
    if dtype is DType.FLOAT64:
        floats = block.float64(name).tolist()
        return [ValueProto(double_val=value) if known else _NULL for value, known in zip(floats, valid, strict=True)]
    integers = block.int64(name)[0]
    if dtype is DType.TIMESTAMP:
        seconds = (integers // 1_000).tolist()
        return [
            ValueProto(unix_timestamp_val=value) if known else _NULL
            for value, known in zip(seconds, valid, strict=True)
        ]
    return [
        ValueProto(int64_val=value) if known else _NULL for value, known in zip(integers.tolist(), valid, strict=True)
    ]
