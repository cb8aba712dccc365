"""Rows and answers of any Feast view, against Feast's own conversions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Null, Value
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.stores import general, protowire
from feature_repo.stores.answers import rows_of, vectors
from graph_features.errors import SchemaMismatchError
from graph_features.stores.general import GeneralBlock, pack_general
from graph_features.stores.keys import typed_keys

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32)
COLUMNS = {
    "INT64": (pa.int64(), INT64),
    "INT32": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "BOOL": (pa.bool_(), st.booleans()),
    "DOUBLE": (pa.float64(), st.floats()),
    "FLOAT": (pa.float32(), FLOAT32),
    "STRING": (pa.string(), TEXT),
    # Feast makes nulls of a batch in which every one is empty, and keeps them otherwise; ours keeps them.
    "BYTES": (pa.binary(), st.binary(min_size=1, max_size=20)),
    "UNIX_TIMESTAMP": (pa.timestamp("us", "UTC"), st.integers(-(10**15), 4 * 10**15)),
    "DOUBLE_LIST": (pa.list_(pa.float64()), st.lists(st.floats(), max_size=4)),
    "FLOAT_LIST": (pa.list_(pa.float32()), st.lists(FLOAT32, max_size=4)),
    "INT64_LIST": (pa.list_(pa.int64()), st.lists(INT64, min_size=1, max_size=4)),
    "STRING_LIST": (pa.list_(pa.string()), st.lists(TEXT, min_size=1, max_size=4)),
}
"""How each type of feature comes out of an offline store, and its values."""

SCALARS = ["INT64", "INT32", "BOOL", "DOUBLE", "FLOAT", "UNIX_TIMESTAMP"]
NO_NULLS = {"INT64", "INT32", "BOOL"}
"""Columns of these with nulls reach Feast as columns of another type."""


def encoded(value):
    """A value's bytes: equal for equal values, and NaN equals NaN."""
    return value.SerializeToString(deterministic=True)


def read_back(view, columns, name):
    """One feature of packed and decoded rows, as Feast's values."""
    block = GeneralBlock.from_packed(view, pack_general(view, columns))
    return [row[1][name] for row in rows_of(block, [name])]


@pytest.mark.parametrize("kind", sorted(COLUMNS))
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_columns_convert_as_feast_converts_them(kind, data):
    """A column of a table, whole or a slice of a longer one, holds what Feast's own conversion makes of it."""
    arrow, strategy = COLUMNS[kind]
    values = data.draw(st.lists(strategy if kind in NO_NULLS else st.none() | strategy, min_size=1, max_size=8))
    column = pa.array(values, pa.int64() if kind == "UNIX_TIMESTAMP" else arrow).cast(arrow)
    start = data.draw(st.integers(0, len(values) - 1))
    event = pa.array([1] * len(values), pa.timestamp("us", "UTC"))
    table = pa.table({"x": column, "at": event}).slice(start)
    view = general._view("any", (("k", "STRING"),), (("x", kind),))
    got = read_back(view, general.from_arrow(view, table, event="at", created=None), "x")
    expected = python_values_to_proto_values(column.slice(start).to_numpy(zero_copy_only=False), ValueType[kind])
    assert [encoded(value) for value in got] == [encoded(value) for value in expected]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, INT64), min_size=1, max_size=6), st.booleans())
def test_keys_have_one_form(rows, numbers_first):
    """Keys made of messages, of values by column, of Arrow columns and of plain columns are the same bytes."""
    first, second = ("a", "b") if numbers_first else ("b", "a")
    protos = [
        EntityKey(join_keys=[second, first], entity_values=[Value(string_val=text), Value(int64_val=number)])
        for text, number in rows
    ]
    plain = {first: ("INT64", [number for _, number in rows]), second: ("STRING", [text for text, _ in rows])}
    expected = typed_keys([plain[name] for name in sorted(plain)])
    assert general.key_bytes(protos) == expected
    columns = {second: [Value(string_val=text) for text, _ in rows], first: [Value(int64_val=n) for _, n in rows]}
    assert general.key_rows(columns) == expected
    view = general._view("any", tuple(sorted([(first, "INT64"), (second, "STRING")])), ())
    table = pa.table({second: [text for text, _ in rows], first: pa.array([n for _, n in rows], pa.int64())})
    assert general.key_columns(view, table) == expected


KEY_VALUES = st.one_of(
    TEXT.map(lambda text: Value(string_val=text)),
    st.binary(max_size=9).map(lambda data: Value(bytes_val=data)),
    st.integers(-9, 9).map(lambda number: Value(int64_val=number)),
    st.integers(-9, 9).map(lambda number: Value(int32_val=number)),
    st.integers(-9, 9).map(lambda number: Value(unix_timestamp_val=number)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(KEY_VALUES, KEY_VALUES), min_size=2, max_size=12))
def test_keys_differ_where_feasts_own_differ(rows):
    """Keys of any types, clients of different types among them, are told apart exactly as Feast tells them apart."""
    protos = [EntityKey(join_keys=["a", "b"], entity_values=row) for row in rows]
    feasts = [serialize_entity_key(key, entity_key_serialization_version=3) for key in protos]
    ours = general.key_bytes(protos)
    assert [key == ours[0] for key in ours] == [key == feasts[0] for key in feasts]
    assert len(set(ours)) == len(set(feasts))


def test_a_key_that_no_entity_may_have_is_refused():
    """A float and a missing id are named, not read as some other entity."""
    for value in (Value(double_val=1.0), Value()):
        with pytest.raises(SchemaMismatchError, match="join key k: expected a value of string_val"):
            general.key_rows({"k": [Value(string_val="a"), value]})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_vectors_are_protobufs_own(data):
    """Columns written as bytes parse to the very messages that Feast would build value by value."""
    kinds = data.draw(st.lists(st.sampled_from(SCALARS), min_size=1, max_size=3))
    fields = tuple((f"x{i}", kind) for i, kind in enumerate(kinds))
    view = general._view("any", (("k", "STRING"),), fields)
    strategies = {"UNIX_TIMESTAMP": INT64}
    n = data.draw(st.integers(0, 5))
    at = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=data.draw(INT64) // 10**4) for _ in range(n)]
    rows = []
    for i in range(n):
        values = {}
        for name, kind in fields:
            plain = data.draw(st.none() | strategies.get(kind, COLUMNS[kind][1]))
            values[name] = Value() if plain is None else Value(**{general.SCALARS[kind]: plain})
        rows.append((EntityKey(), values, at[i], None))
    packed = pack_general(view, general.from_protos(view, rows))
    block = GeneralBlock.from_packed(view, [*packed, None])
    places = np.array(data.draw(st.lists(st.integers(0, n), max_size=6)), np.int64)
    # Few values are written one by one, many as a matrix.
    places = np.tile(places, data.draw(st.sampled_from([1, protowire.FEW])))
    for name, text in zip(view.names, vectors(block, view.names, places), strict=True):
        expected = protowire.FeatureVector()
        for place in places.tolist():
            present = place < n
            expected.values.append(rows[place][1][name] if present else Value())
            moment = expected.event_timestamps.add()
            if present:
                moment.FromDatetime(at[place])
        expected.statuses[:] = [
            protowire.FieldStatus.PRESENT if place < n else protowire.FieldStatus.NOT_FOUND for place in places.tolist()
        ]
        assert protowire.FeatureVector.FromString(text).SerializeToString() == expected.SerializeToString()


def test_nulls_are_told_from_empty_values():
    """A null however written, and a feature that a row lacks, are null; empty text and lists are values."""
    view = general._view("any", (("k", "STRING"),), (("n", "INT64"), ("t", "STRING")))
    at = datetime(2024, 1, 1, tzinfo=UTC)
    given_rows = [{}, {"n": Value(), "t": Value()}, {"n": Value(null_val=Null.NULL), "t": Value(null_val=Null.NULL)}]
    given_rows.append({"n": Value(int64_val=0), "t": Value(string_val="")})
    columns = general.from_protos(view, [(EntityKey(), values, at, at) for values in given_rows])
    assert columns.valid.tolist() == [[False, False]] * 3 + [[True, True]]
    assert read_back(view, columns, "t")[-1].WhichOneof("val") == "string_val"


def test_a_value_of_another_type_is_refused():
    """A number where a truth value belongs is named, not stored."""
    view = general._view("any", (("k", "STRING"),), (("n", "BOOL"),))
    row = (EntityKey(), {"n": Value(int64_val=1)}, datetime(2024, 1, 1, tzinfo=UTC), None)
    with pytest.raises(SchemaMismatchError, match=r"feature n is of type BOOL \(bool_val\), got int64_val"):
        general.from_protos(view, [row])


def test_a_table_that_lacks_something_is_refused():
    """A missing column and a null event time are named."""
    view = general._view("any", (("k", "STRING"),), (("n", "INT64"),))
    with pytest.raises(SchemaMismatchError, match="no columns n, at"):
        general.from_arrow(view, pa.table({"m": [1]}), event="at", created=None)
    table = pa.table({"n": [1], "at": pa.array([None], pa.timestamp("us", "UTC"))})
    with pytest.raises(SchemaMismatchError, match="at holds nulls"):
        general.from_arrow(view, table, event="at", created=None)
