"""What the model reads of an account at a payment is the feature at that very instant, from rows of any age."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.catalog import catalog
from graph_features.compute import Entities, compute_rows
from graph_features.drivers.batch import event_rows
from graph_features.edges import EdgeTable
from graph_features.input_spec import InputSpec
from graph_features.neighbour_spec import NEIGHBOUR_PROFILE
from graph_features.schema import DType, EntityKey, ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.stores.codec import encode
from graph_features.transaction import TransactionColumns
from graph_features.tuples import InputTuples, TupleBlocks, build_tuples, row_requests
from training.point_in_time import tuples_at

SETTINGS = FeatureSettings()
VIEWS = catalog().event_views()
SPEC = InputSpec.derive(VIEWS, feature_hash="", profile=NEIGHBOUR_PROFILE, neighbours=4)


class Stored:
    """Every event row of a history, packed; what a store would return of them at an instant."""

    def __init__(self, edges: EdgeTable) -> None:
        self._rows: dict[tuple[str, EntityKey], tuple[list[int], list[bytes]]] = {}
        for view in VIEWS:
            for table in event_rows(view, edges, from_ms=0, to_ms=2**60, settings=SETTINGS):
                keys = zip(*(table[name].to_pylist() for name in view.keys), strict=True)
                as_of_ms = table["event_timestamp"].cast(pa.int64()).to_pylist()
                for key, at_ms, value in zip(keys, as_of_ms, encode(view, table), strict=True):
                    times, values = self._rows.setdefault((view.name, key), ([], []))
                    times.append(at_ms)
                    values.append(value)

    def at(self, view: ViewSchema, key: EntityKey, at_ms: int) -> bytes | None:
        """The newest row whose as_of is not after `at_ms`."""
        times, values = self._rows.get((view.name, key), ([], []))
        place = bisect_right(times, at_ms)
        return values[place - 1] if place else None


def as_read(edges: EdgeTable, payments: TransactionColumns) -> InputTuples:
    """The tuples that training and serving make of the stored rows."""
    stored, both_ms = Stored(edges), np.tile(payments.event_ms, 2).tolist()
    packed = [
        [stored.at(view, key, at_ms) for key, at_ms in zip(keys, both_ms, strict=True)]
        for view, keys in row_requests(SPEC, payments)
    ]
    return build_tuples(SPEC, payments, TupleBlocks.from_packed(SPEC, packed))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_account_feature_is_that_of_the_payments_own_instant(data: Any, stories: Any) -> None:
    """Computed at the instant itself, every scalar of both ends is the input, timestamps as seconds before it."""
    history = data.draw(stories.histories(accounts="abc", max_payments=30))
    asked = data.draw(st.lists(st.tuples(*[st.sampled_from("abcz")] * 2, stories.instants), min_size=1, max_size=20))
    payments = TransactionColumns.from_mapping(
        {
            "event_timestamp": [at_ms for _, _, at_ms in asked],
            "sender_id": [sender for sender, _, _ in asked],
            "receiver_id": [receiver for _, receiver, _ in asked],
            "amount_base": [1_000] * len(asked),
        }
    )
    edges = history.edges()
    tuples = as_read(edges, payments)
    for ids, inputs in ((payments.sender_id, tuples.sender_x), (payments.receiver_id, tuples.receiver_x)):
        entities = Entities.of_keys(edges, [(account,) for account in ids.tolist()])
        for columns in SPEC.account_columns:
            table = compute_rows(columns.view, edges, entities=entities, as_of_ms=payments.event_ms, settings=SETTINGS)
            for place, name in enumerate(columns.names):
                found = pa.compute.cast(table[name], pa.int64()) if _is_time(columns.view, name) else table[name]
                wanted = found.to_numpy(zero_copy_only=False).astype(np.float64)
                if _is_time(columns.view, name):
                    wanted = (payments.event_ms - wanted) / 1_000
                np.testing.assert_allclose(inputs[:, columns.first + place], wanted, rtol=1e-6, err_msg=name)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_tuples_off_the_table_are_those_of_the_stored_rows(data: Any, stories: Any) -> None:
    """Without any store, every input is the one that the stored rows give, bit for bit, of strangers too."""
    history = data.draw(stories.histories(accounts="abc", max_payments=30))
    asked = data.draw(st.lists(st.tuples(*[st.sampled_from("abcz")] * 2, stories.instants), min_size=1, max_size=20))
    payments = TransactionColumns.from_mapping(
        {
            "event_timestamp": [at_ms for _, _, at_ms in asked],
            "sender_id": [sender for sender, _, _ in asked],
            "receiver_id": [receiver for _, receiver, _ in asked],
            "amount_base": [1_000] * len(asked),
        }
    )
    edges = history.edges()
    stored, straight = as_read(edges, payments), tuples_at(SPEC, edges, payments, settings=SETTINGS)
    for name, array in stored.feeds().items():
        np.testing.assert_array_equal(array, straight.feeds()[name], err_msg=name)


def _is_time(view: ViewSchema, name: str) -> bool:
    return view.feature(name).dtype is DType.TIMESTAMP
