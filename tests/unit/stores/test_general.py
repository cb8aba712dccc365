"""Packed values of any Feast view, and the ways into and out of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_features.errors import UnknownFeatureError
from graph_features.stores.codec import NO_CREATED
from graph_features.stores.general import GeneralBlock, GeneralColumns, GeneralField, GeneralView, Kind, pack_general
from graph_features.stores.storing import Storing

INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = {Kind.INTEGER: INT64, Kind.FLOAT: st.floats(width=64), Kind.MESSAGE: st.binary(min_size=1, max_size=40)}


def view_of(kinds):
    """A view whose features have these kinds, in order."""
    fields = tuple(GeneralField(name=f"f{i}", type=kind.value, kind=kind) for i, kind in enumerate(kinds))
    return GeneralView(name="any", keys=(("k", "STRING"),), fields=fields)


def columns_of(view, rows):
    """Rows of (event_us, created_us, values) as columns; None is null."""
    slots = np.zeros((len(rows), len(view.fields)), np.int64)
    valid = np.zeros(slots.shape, np.bool_)
    messages = {}
    for place, field in enumerate(view.fields):
        values = [row[2][place] for row in rows]
        valid[:, place] = [value is not None for value in values]
        if field.kind is Kind.MESSAGE:
            messages[field.name] = [value or b"" for value in values]
        elif field.kind is Kind.FLOAT:
            slots[:, place] = np.array([value or 0.0 for value in values], np.float64).view(np.int64)
        else:
            slots[:, place] = [value or 0 for value in values]
    return GeneralColumns(
        event_us=np.array([row[0] for row in rows], np.int64),
        created_us=np.array([row[1] for row in rows], np.int64),
        slots=slots,
        valid=valid,
        messages=messages,
    )


def value_of(block, field, row):
    """What the block holds, None for null."""
    if not block.valid(field.name)[row]:
        return None
    if field.kind is Kind.MESSAGE:
        return block.messages(field.name)[row]
    return (block.floats(field.name) if field.kind is Kind.FLOAT else block.integers(field.name))[row].item()


def same(left, right):
    return left == right or (isinstance(left, float) and isinstance(right, float) and math.isnan(left + right))


@st.composite
def views_with_rows(draw):
    """A view of up to 70 features of any kind, and up to five rows of it."""
    kinds = draw(st.lists(st.sampled_from(Kind), max_size=4)) + [Kind.INTEGER] * draw(st.sampled_from([0, 0, 60, 66]))
    values = st.tuples(*(st.none() | VALUES[kind] for kind in kinds))
    rows = draw(st.lists(st.tuples(INT64, INT64, values), max_size=5))
    return view_of(kinds), rows


@settings(max_examples=80, deadline=None)
@given(views_with_rows(), st.randoms())
def test_round_trip(drawn, rng):
    """What is packed is what is read: nulls, negative zero, NaN, empty views, absent rows between."""
    view, rows = drawn
    values = pack_general(view, columns_of(view, rows))
    assert all(len(value) % 8 == 0 for value in values)
    given_values, expected = [], []
    for value, row in zip(values, rows, strict=True):
        absent = rng.randrange(3)
        given_values += [None] * absent + [value]
        expected += [None] * absent + [row]
    block = GeneralBlock.from_packed(view, given_values)
    assert block.present.tolist() == [row is not None for row in expected]
    assert not block.mismatched.any()
    for i, row in enumerate(expected):
        for place, field in enumerate(view.fields):
            assert same(value_of(block, field, i), None if row is None else row[2][place])
        if row is not None:
            assert (int(block.event_us[i]), int(block.created_us[i])) == row[:2]
        else:
            assert (int(block.event_us[i]), int(block.created_us[i])) == (0, NO_CREATED)


def test_matrix():
    """Integers and floats side by side as float32, NaN where null or absent; messages have no number."""
    view = view_of([Kind.INTEGER, Kind.MESSAGE, Kind.FLOAT])
    values = pack_general(view, columns_of(view, [(1, 1, (3, b"x", 0.5)), (1, 1, (None, b"y", None))]))
    matrix = GeneralBlock.from_packed(view, [*values, None]).matrix(["f2", "f0"])
    np.testing.assert_array_equal(matrix, np.array([[0.5, 3], [np.nan] * 2, [np.nan] * 2], np.float32))
    block = GeneralBlock.from_packed(view, values)
    with pytest.raises(UnknownFeatureError, match="f1 is kept as message"):
        block.matrix(["f1"])
    with pytest.raises(UnknownFeatureError, match="no feature 'f9'"):
        block.integers("f9")


def test_another_schema_is_seen():
    """A renamed, retyped, moved or added feature, and another view's name, make every old value a mismatch."""
    view = view_of([Kind.INTEGER, Kind.FLOAT])
    [value] = pack_general(view, columns_of(view, [(1, 1, (1, 1.0))]))
    first, second = view.fields
    others = [
        replace(view, name="other"),
        replace(view, fields=(replace(first, name="g"), second)),
        replace(view, fields=(replace(first, type="other"), second)),
        replace(view, fields=(second, first)),
        replace(view, fields=(first,)),
        replace(view, fields=(first, second, replace(first, name="more"))),
    ]
    for other in others:
        block = GeneralBlock.from_packed(other, [value, None])
        assert (block.present.tolist(), block.mismatched.tolist()) == ([False, False], [True, False])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 200), st.integers(0, 255), st.integers(0, 120))
def test_damage_never_reaches_another_row(place, byte, length):
    """A changed byte or a cut value is a mismatch or a value of this row; the rows beside it read as before."""
    view = view_of([Kind.MESSAGE, Kind.INTEGER, Kind.MESSAGE])
    good, hurt = pack_general(view, columns_of(view, [(1, 1, (b"good", 1, b"row")), (2, 2, (b"hurt" * 5, 2, b"!"))]))
    damaged = bytearray(hurt)
    damaged[place % len(hurt)] = byte
    for value in (bytes(damaged), hurt[: length % len(hurt)]):
        block = GeneralBlock.from_packed(view, [good, value, good])
        assert block.present[[0, 2]].all()
        assert block.present[1] != block.mismatched[1]
        for row in (0, 2):
            assert [value_of(block, field, row) for field in view.fields] == [b"good", 1, b"row"]
        taken = [block.messages(name)[1] for name in ("f0", "f2")]
        assert len(b"".join(taken)) <= len(value)
        assert b"good" not in b"".join(taken)


def test_how_rows_are_put():
    """The script's last arguments: compared or not, the kind of expiry, one time for all or one a row."""
    part = slice(1, 3)
    assert Storing().tail(part) == ["1", ""]
    assert Storing(after_ms=5, compare=False).tail(part) == ["0", "AFTER", 5]
    assert Storing(at_ms=[7, 8, 9]).tail(part) == ["1", "AT", 8, 9]
