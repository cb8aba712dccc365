"""Feast's protobuf rows as columns."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Int64List, Value

from feature_repo.stores.values import to_feast, to_table
from graph_features.stores.blocks import RowBlock
from graph_features.stores.codec import encode


def row(account, values, created):
    key = EntityKey(join_keys=["account_id"], entity_values=[account])
    return key, values, datetime(2024, 1, 1, 0, 0, 0, 5_000, tzinfo=UTC), created


def test_nulls_missing_values_and_missing_created_timestamps(account_view):
    """What Feast leaves out, or writes as no time, is null; no created timestamp is older than any."""
    values = {
        "int64_feature": Value(int64_val=3),
        "float64_feature": Value(),
        "timestamp_feature": Value(unix_timestamp_val=-(2**63)),
        "int64_list_feature": Value(int64_list_val=Int64List(val=[])),
    }
    rows = [
        row(Value(string_val="a"), values, None),
        row(Value(int64_val=7), {}, datetime(2024, 1, 1, tzinfo=UTC)),
    ]
    table = to_table(account_view, rows)
    assert table["account_id"].to_pylist() == ["a", "7"]
    assert table["event_timestamp"].cast(pa.int64()).to_pylist() == [1_704_067_200_005] * 2
    created = table["created_timestamp"].to_pylist()
    assert created[0] < created[1]
    first = table.to_pylist()[0]
    assert first["int64_feature"] == 3
    assert first["int64_list_feature"] == []
    assert [first[name] for name in ("float64_feature", "timestamp_feature", "string_list_feature")] == [None] * 3


def test_absent_rows_and_nulls_are_told_apart(account_view):
    """Feast wants (None, None) for no row, and a value without a field for null."""
    table = to_table(account_view, [row(Value(string_val="a"), {"int64_feature": Value(int64_val=3)}, None)])
    block = RowBlock.from_packed(account_view, [*encode(account_view, table), None])
    present, absent = to_feast(block, ["int64_feature", "float64_feature"])
    assert absent == (None, None)
    assert present[0] == datetime(2024, 1, 1, 0, 0, 0, 5_000, tzinfo=UTC)
    assert present[1] == {"int64_feature": Value(int64_val=3), "float64_feature": Value()}
