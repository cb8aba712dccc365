"""Feature vectors written straight from packed rows say what the columns of those rows say."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graph_features.clock import MAX_EVENT_MS, created_timestamp, from_ms
from graph_features.errors import InvalidInputError
from graph_features.schema import Cadence, DType, FeatureSchema, Renewal, ViewSchema
from graph_features.stores.blocks import RowBlock
from graph_features.stores.codec import encode
from serving import online
from serving.api_feast import FeatureVector, OnlineFeaturesMetadata, OnlineFeaturesReply
from serving.vectors import NAMES_KEPT, PLANS_KEPT, ColumnReader, Plans, ScalarReader

NO_TIME = "1970-01-01T00:00:00Z"
MOMENTS = st.integers(0, MAX_EVENT_MS - 1)
TEXT = st.text(max_size=5) | st.sampled_from(["],[", '"', "\\", "\u2028"])
VALUES: dict[DType, st.SearchStrategy[Any]] = {
    DType.INT64: st.integers(-(2**63), 2**63 - 1),
    DType.FLOAT64: st.floats(),
    DType.TIMESTAMP: MOMENTS.map(from_ms),
    DType.INT64_LIST: st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    DType.FLOAT64_LIST: st.lists(st.floats(allow_nan=False), max_size=4),
    DType.STRING_LIST: st.lists(TEXT, max_size=4),
}


def view_of(name: str, dtypes: list[DType]) -> ViewSchema:
    features = tuple(
        FeatureSchema(name=f"f{at}", dtype=dtype, description="f", unit="1", range="any", empty=None)
        for at, dtype in enumerate(dtypes)
    )
    return ViewSchema(
        name=name,
        entity="account",
        cadence=Cadence.EVENT,
        description=name,
        features=features,
        renewed_by=(Renewal.TRANSACTION,),
        max_age_s=None,
        code_hash=name,
    )


@st.composite
def stored(draw: st.DrawFn) -> tuple[ViewSchema, list[str], list[bytes | None]]:
    """A view, some of its features in any order, and packed rows: absent, foreign and damaged ones among them."""
    dtypes = draw(st.lists(st.sampled_from(list(DType)), min_size=1, max_size=6))
    wide = draw(st.sampled_from([0, 0, 62, 130]))
    view = view_of("v", [*dtypes, *[DType.INT64] * wide])
    names = draw(st.lists(st.sampled_from(view.names), min_size=1, max_size=8, unique=True))
    foreign = view_of("v", [*dtypes, DType.INT64])
    values: list[bytes | None] = []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["row", "row", "row", "absent", "foreign", "short", "long"]))
        schema = foreign if kind == "foreign" else view
        cells: dict[str, Any] = {
            one.name: draw(st.none() | VALUES[one.dtype]) if at < 6 or 60 < at < 68 else at
            for at, one in enumerate(schema.features)
        }
        cells |= {
            "account_id": "a",
            "event_timestamp": from_ms(draw(MOMENTS)),
            "created_timestamp": created_timestamp(1),
        }
        (value,) = encode(schema, pa.Table.from_pylist([cells], schema.arrow_schema))
        shortened = value[: draw(st.integers(0, len(value) - 1))] if kind == "short" else value
        values.append(None if kind == "absent" else shortened + bytes(8 if kind == "long" else 0))
    return view, names, values


def columnwise(view: ViewSchema, names: list[str], values: list[bytes | None]) -> list[FeatureVector]:
    """The same vectors by RowBlock's own accessors."""
    block = RowBlock.from_packed(view, values)
    present = block.present.tolist()
    return [
        FeatureVector(
            values=online.column(block, name, epoch_s=True),
            statuses=["PRESENT" if there else "NOT_FOUND" for there in present],
            event_timestamps=[
                online.instant(int(ms)) if there else NO_TIME for ms, there in zip(block.as_of_ms, present, strict=True)
            ],
        )
        for name in names
    ]


@settings(max_examples=50, deadline=None)
@given(stored(), st.booleans(), st.booleans())
def test_replies_are_what_columns_say(rows: Any, full: bool, views: bool) -> None:
    """Byte for byte the reply that is built from columns: nulls, absent, foreign and damaged rows, lists and times."""
    view, names, values = rows
    plan = Plans({"v": view}).of([f"v:{name}" for name in names], None, full=full)
    ids = [f'a"{at}],[' for at in range(len(values))]
    keys = FeatureVector(values=ids, statuses=["PRESENT"] * len(ids), event_timestamps=[NO_TIME] * len(ids))
    metadata = OnlineFeaturesMetadata(
        feature_names=["account_id", *(f"v__{name}" if full else name for name in names)],
        feature_view_metadata=[{"name": "v"}] if views else [],
    )
    expected = OnlineFeaturesReply(metadata=metadata, results=[keys, *columnwise(view, names, values)])
    entities = {"account_id": ids}
    assert plan.requests(entities) == [(view, [(one,) for one in ids])]
    assert plan.reply(entities, len(ids), [values], views=views) == msgspec.json.encode(expected)


@settings(max_examples=30, deadline=None)
@given(stored())
def test_both_readers_agree(rows: Any) -> None:
    """Where no list is asked for, reading row by row gives what reading by columns gives."""
    view, names, values = rows
    scalars = [name for name in names if not view.feature(name).dtype.is_list]
    if scalars:
        quick, columns = (kind(view, scalars).read(values) for kind in (ScalarReader, ColumnReader))
        assert list(quick[0]) == list(columns[0])
        np.testing.assert_equal([list(one) for one in quick[1]], [list(one) for one in columns[1]])


@given(st.lists(MOMENTS, min_size=1, max_size=20))
@example([0] * 10)
@example([1_000] * 10)
@example([-1, *range(20)])
@example([MAX_EVENT_MS, *range(20)])
def test_instants_are_those_of_one(moments: list[int]) -> None:
    """Many instants are written as each of them is."""
    assert online.instants(moments) == [online.instant(ms) for ms in moments]


def test_plans_are_kept_but_not_for_ever() -> None:
    """The same list gives the same plan; ever new or very long lists do not pile up; what is wrong is refused again."""
    view = view_of("v", [DType.INT64] * (PLANS_KEPT + 8))
    plans = Plans({"v": view})
    first = plans.of(["v:f0"], None, full=True)
    assert plans.of(["v:f0"], None, full=True) is first
    assert plans.of(["v:f0"], None, full=False).labels == ("f0",)
    for name in view.names:
        plans.of([f"v:{name}"], None, full=True)
    assert plans.of(["v:f0"], None, full=True) is not first
    many = ["v:f0"] * (NAMES_KEPT + 1)
    assert plans.of(many, None, full=True) is not plans.of(many, None, full=True)
    assert len(plans._kept) == PLANS_KEPT
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="v:x"):
            plans.of(["v:x"], None, full=True)


def test_service_and_names_are_told_apart() -> None:
    """A plan of a service is not that of a list that happens to hold its name."""
    plans = Plans({"v": view_of("v", [DType.INT64])})
    service = plans.of([], "account_features", full=True)
    assert [one.name for one in service.projections] == ["v"]
    with pytest.raises(InvalidInputError):
        plans.of(["account_features"], None, full=True)
    reply = json.loads(service.reply({"account_id": ["a"]}, 1, [[None]], views=False))
    assert [one["statuses"] for one in reply["results"]] == [["PRESENT"], ["NOT_FOUND"]]
