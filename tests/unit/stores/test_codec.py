"""Packed values and RowBlock."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.errors import SchemaMismatchError, UnknownFeatureError
from graph_features.schema import DType
from graph_features.stores.blocks import RowBlock
from graph_features.stores.codec import encode
from graph_features.stores.heads import HEADER_BYTES
from graph_features.stores.keys import decode_key, encode_key

INT64 = st.integers(-(2**63), 2**63 - 1)
MS = st.integers(0, 4_102_444_800_000)
FLOATS = st.floats(allow_nan=True, width=64)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = {
    DType.INT64: INT64,
    DType.FLOAT64: FLOATS,
    DType.TIMESTAMP: MS,
    DType.INT64_LIST: st.lists(INT64, max_size=5),
    DType.FLOAT64_LIST: st.lists(FLOATS, max_size=5),
    DType.STRING_LIST: st.lists(TEXT, max_size=5),
}


def rows_of(view):
    """Up to six rows of a view, any of them absent (None)."""
    values = st.tuples(*(st.none() | VALUES[feature.dtype] for feature in view.features))
    key = st.tuples(*(TEXT for _ in view.keys))
    return st.lists(st.none() | st.tuples(key, MS, INT64.map(lambda us: us // 10_000), values), max_size=6)


def same(left, right):
    return left == right or (isinstance(left, float) and math.isnan(left) and math.isnan(right))


def check_feature(block, feature, i, value):
    """The block's feature of row i must read back as `value`."""
    assert bool(block.valid(feature.name)[i]) == (value is not None)
    if feature.dtype.is_list:
        offsets, values = block.lists(feature.name)
        got = values[offsets[i] : offsets[i + 1]].tolist()
        assert len(got) == len(value or [])
        assert all(same(a, b) for a, b in zip(got, value or [], strict=True))
    elif feature.dtype is DType.FLOAT64:
        assert same(float(block.float64(feature.name)[i]), math.nan if value is None else value)
    else:
        integers, valid = block.int64(feature.name)
        assert (int(integers[i]) if valid[i] else None) == value


@pytest.mark.parametrize("view_name", ["account_view", "pair_view"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip(view_name, request, make_table, data):
    """What is encoded is what is decoded: nulls, empty lists, NaN, infinities, every string."""
    view = request.getfixturevalue(view_name)
    rows = data.draw(rows_of(view))
    packed = iter(encode(view, make_table(view, [row for row in rows if row is not None])))
    block = RowBlock.from_packed(view, [None if row is None else next(packed) for row in rows])
    assert block.present.tolist() == [row is not None for row in rows]
    assert not block.mismatched.any()
    for i, row in enumerate(rows):
        if row is not None:
            assert (int(block.as_of_ms[i]), int(block.created_us[i])) == row[1:3]
        for j, feature in enumerate(view.features):
            check_feature(block, feature, i, None if row is None else row[3][j])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_both_constructors_agree(account_view, make_table, data):
    """Training (Arrow with null rows) and serving (packed values) must read the same arrays."""
    view = account_view
    rows = data.draw(rows_of(view))
    table = make_table(view, [row for row in rows if row is not None])
    take = [None if row is None else sum(r is not None for r in rows[:i]) for i, row in enumerate(rows)]
    packed = encode(view, table)
    joined = table.take(pa.array(take, pa.int64()))
    joined = joined.rename_columns([f"sender__{name}" for name in joined.column_names])
    online = RowBlock.from_packed(view, [None if i is None else packed[i] for i in take])
    offline = RowBlock.from_arrow(view, joined, prefix="sender__")
    np.testing.assert_array_equal(online.present, offline.present)
    np.testing.assert_array_equal(online.as_of_ms, offline.as_of_ms)
    np.testing.assert_array_equal(online.created_us, offline.created_us)
    scalars = [feature.name for feature in view.features if not feature.dtype.is_list]
    np.testing.assert_array_equal(online.matrix(scalars), offline.matrix(scalars))
    for feature in view.features:
        np.testing.assert_array_equal(online.valid(feature.name), offline.valid(feature.name))
        if feature.dtype.is_list:
            for left, right in zip(online.lists(feature.name), offline.lists(feature.name), strict=True):
                np.testing.assert_array_equal(left, right)


def test_matrix_is_float32_with_nan_for_null_and_absent(pair_view, make_table):
    """Columns come in the order asked for, integers and floats alike."""
    table = make_table(pair_view, [(("a", "b"), 5, 7, [None if i == 3 else i for i in range(70)])])
    block = RowBlock.from_packed(pair_view, [*encode(pair_view, table), None])
    matrix = block.matrix(["x5", "x3", "x2"])
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.array([[5, np.nan, 2], [np.nan] * 3], np.float32))


def test_rows_of_another_feature_set_are_a_state_of_their_own(account_view, make_table):
    """A renamed feature, a retyped feature, another format and a cut-off value are mismatched, never misread."""
    table = make_table(account_view, [(("a",), 5, 7, [1, 2.0, 3, [4], [5.0], ["six"]])])
    value = encode(account_view, table)[0]
    renamed = replace(account_view.features[0], name="other")
    other = replace(account_view, features=(renamed, *account_view.features[1:]))
    flipped = bytes([value[0] ^ 1]) + value[1:]
    damaged = [value[:-8], value + bytes(8), value[:HEADER_BYTES], value[:5], b"", flipped]
    block = RowBlock.from_packed(account_view, [value, *damaged, None])
    assert block.present.tolist() == [True] + [False] * 7
    assert block.mismatched.tolist() == [False] + [True] * 6 + [False]
    assert RowBlock.from_packed(other, [value]).mismatched.tolist() == [True]
    assert np.isnan(block.float64("float64_feature")[1:]).all()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_values_never_break_a_read(account_view, make_table, data):
    """Any change of bytes behind the header is either decoded in bounds or a mismatch; good rows beside it stand."""
    table = make_table(account_view, [(("a",), 5, 7, [1, 2.0, 3, [4, 5], [6.0], ["seven", "é"]])])
    value = encode(account_view, table)[0]
    at = data.draw(st.integers(0, len(value) - 1))
    damaged = value[:at] + data.draw(st.binary(min_size=1, max_size=8)) + value[at + 1 :]
    block = RowBlock.from_packed(account_view, [damaged, value])
    assert bool(block.present[1])
    offsets, values = block.lists("string_list_feature")
    assert values[offsets[1] : offsets[2]].tolist() == ["seven", "é"]


def test_a_table_that_is_not_the_views_is_refused(account_view, pair_view, make_table):
    """Encoding checks names, order and types first."""
    table = make_table(account_view, [(("a",), 5, 7, [1, 2.0, 3, [4], [5.0], ["six"]])])
    with pytest.raises(SchemaMismatchError, match="pair_scalars"):
        encode(pair_view, table)
    with pytest.raises(SchemaMismatchError, match="null items"):
        encode(account_view, make_table(account_view, [(("a",), 5, 7, [1, 2.0, 3, [4, None], [5.0], []])]))
    with pytest.raises(SchemaMismatchError, match="no columns"):
        RowBlock.from_arrow(pair_view, table)


def test_wrong_names_and_types_are_named(account_view):
    """Asking for what is not there, or as what it is not, says so."""
    block = RowBlock.from_packed(account_view, [None])
    with pytest.raises(UnknownFeatureError, match="nothing"):
        block.matrix(["nothing"])
    with pytest.raises(UnknownFeatureError, match="int64_list"):
        block.float64("int64_list_feature")
    with pytest.raises(UnknownFeatureError, match="expected int64"):
        block.int64("float64_feature")


def test_take_repeats_and_reorders_rows(account_view, make_table):
    """Two payments of one sender share its row."""
    rows = [((name,), i, i, [i, float(i), i, [i] * i, [], [name] * i]) for i, name in enumerate("abc")]
    block = RowBlock.from_packed(account_view, encode(account_view, make_table(account_view, rows)))
    taken = block.take(np.array([2, 0, 2]))
    assert taken.int64("int64_feature")[0].tolist() == [2, 0, 2]
    offsets, values = taken.lists("string_list_feature")
    assert offsets.tolist() == [0, 2, 2, 4]
    assert values.tolist() == ["c"] * 4


@given(
    left=st.lists(st.text(max_size=6), min_size=1, max_size=2),
    right=st.lists(st.text(max_size=6), min_size=1, max_size=2),
)
def test_keys_are_unambiguous(left, right):
    """Different keys have different names, and a name gives its key back, whatever the ids hold."""
    assert (encode_key(tuple(left)) == encode_key(tuple(right))) == (left == right)
    assert decode_key(encode_key(tuple(left))) == tuple(left)
