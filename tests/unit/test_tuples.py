"""Input tuples: one definition over packed and historical rows, and what counts as absent, unknown and never seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_features.catalog import catalog
from graph_features.clock import DAY_MS
from graph_features.errors import SchemaMismatchError
from graph_features.finish import finish
from graph_features.input_spec import InputSpec, is_finished
from graph_features.neighbour_spec import NEIGHBOUR_PROFILE, NEIGHBOUR_PROFILE_SIZE
from graph_features.schema import Cadence, DType, ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.stores.blocks import RowBlock
from graph_features.stores.codec import encode
from graph_features.transaction import TransactionColumns
from graph_features.tuples import InputTuples, TupleBlocks, build_tuples, row_requests

NOW_MS = 1_700_000_000_000
PAYMENTS = 12
NEIGHBOURS = 3
AS_OF_AGO_MS = 3_600_000
AS_OF_MINUTE = (NOW_MS - AS_OF_AGO_MS) // 60_000


@pytest.fixture(scope="module")
def spec() -> InputSpec:
    """Inputs over the whole catalogue."""
    views = catalog()
    return InputSpec.derive(
        views.schemas.values(),
        feature_hash=views.feature_hash(settings=FeatureSettings()),
        profile=NEIGHBOUR_PROFILE,
        neighbours=NEIGHBOURS,
    )


@pytest.fixture(scope="module")
def payments() -> TransactionColumns:
    generator = np.random.default_rng(0)
    return TransactionColumns.from_mapping(
        {
            "event_timestamp": NOW_MS + np.arange(PAYMENTS) * 60_000,
            "sender_id": [f"s{row % 5}" for row in range(PAYMENTS)],
            "receiver_id": [f"r{row % 4}" for row in range(PAYMENTS)],
            "amount_base": generator.integers(1, 10**6, PAYMENTS),
            "channel": ["card", None, "Online", "carrier pigeon"] * (PAYMENTS // 4),
        }
    )


def _values(generator: np.random.Generator, dtype: DType, name: str) -> Any:
    """One made-up value; the columns of the neighbours view have one length per row."""
    if name == "neighbour_ids":
        return ["r1", "s2", "x", "y"]
    if name == "neighbour_timestamps":
        return [NOW_MS - AS_OF_AGO_MS - gap for gap in (1_000, 50_000, 70_000, 10**9)]
    if name in ("neighbour_directions", "neighbour_amounts"):
        return generator.integers(0, 2, 4).tolist()
    if name == "neighbour_profile":
        return generator.random(4 * NEIGHBOUR_PROFILE_SIZE).tolist()
    if name.endswith("label_buckets"):
        return [AS_OF_MINUTE - 4_000, 3, int(generator.integers(0, 3)), AS_OF_MINUTE - 60, 0, 1]
    if name.endswith("_buckets"):
        first, second = generator.integers(1, 10**6, 2).tolist()
        return [AS_OF_MINUTE - 12_000, 2, first + second, 1, AS_OF_MINUTE - 60, 1, second, 1]
    if name.endswith(("_maxima", "_deviations")):  # of the one bucket of two
        return [int(generator.integers(1, 10**6))]
    if name.endswith("_histogram"):
        return [20, 5, 40, 5]
    if dtype is DType.TIMESTAMP:
        return NOW_MS - AS_OF_AGO_MS - int(generator.integers(0, 10**9))
    if generator.random() < 0.2:
        return None
    return int(generator.integers(0, 1_000)) if dtype is DType.INT64 else float(generator.random() * 1e4)


def _table(view: ViewSchema, rows: int, seed: int) -> pa.Table:
    generator = np.random.default_rng(seed)
    columns: dict[str, Any] = {key: [f"k{row}" for row in range(rows)] for key in view.keys}
    columns["event_timestamp"] = [NOW_MS - AS_OF_AGO_MS] * rows
    columns["created_timestamp"] = list(range(rows))
    for feature in view.features:
        columns[feature.name] = [_values(generator, feature.dtype, feature.name) for _ in range(rows)]
    return pa.table(columns, schema=view.arrow_schema)


def _tables(spec: InputSpec) -> dict[str, pa.Table]:
    return {view.name: _table(view, 2 * PAYMENTS, seed) for seed, view in enumerate(spec.views)}


def _blocks(spec: InputSpec, make: Callable[[ViewSchema], RowBlock]) -> TupleBlocks:
    return TupleBlocks(
        accounts={view.name: make(view) for view in spec.account_views},
        pairs={view.name: make(view) for view in spec.pair_views},
    )


def _from_arrow(spec: InputSpec, tables: dict[str, pa.Table]) -> TupleBlocks:
    return _blocks(spec, lambda view: RowBlock.from_arrow(view, tables[view.name]))


def _same(first: InputTuples, second: InputTuples) -> None:
    for name, array in first.feeds().items():
        np.testing.assert_array_equal(array, second.feeds()[name], err_msg=name)


@pytest.fixture(scope="module")
def built(spec: InputSpec, payments: TransactionColumns) -> InputTuples:
    return build_tuples(spec, payments, _from_arrow(spec, _tables(spec)))


def test_packed_and_historical_rows_give_the_same_tuples(
    spec: InputSpec, payments: TransactionColumns, built: InputTuples
) -> None:
    """Serving's packed values and training's Arrow rows end in the same arrays, bit for bit."""
    tables = _tables(spec)
    requests = row_requests(spec, payments)
    values = [encode(view, tables[view.name]) for view, _ in requests]
    assert [len(keys) for _, keys in requests] == [2 * PAYMENTS] * len(values)
    _same(built, build_tuples(spec, payments, TupleBlocks.from_packed(spec, values)))


def test_requests_name_both_ends_and_both_directions(spec: InputSpec, payments: TransactionColumns) -> None:
    """Accounts are read for senders then receivers, pairs forth then back."""
    keys = {view.name: asked for view, asked in row_requests(spec, payments)}
    assert keys["account_activity"][1] == ("s1",)
    assert keys["account_activity"][PAYMENTS + 1] == ("r1",)
    assert keys["pair_history"][1] == ("s1", "r1")
    assert keys["pair_history"][PAYMENTS + 1] == ("r1", "s1")


def test_shapes_and_order(spec: InputSpec, built: InputTuples) -> None:
    """Every array has the columns that the spec names, float32, and edges sorted with at most K per side."""
    assert built.sender_x.shape == built.receiver_x.shape == (PAYMENTS, len(spec.account))
    assert built.transaction_x.shape == (PAYMENTS, len(spec.transaction_names))
    assert built.neighbour_x.shape == (2 * PAYMENTS * NEIGHBOURS, len(spec.neighbour_names))
    np.testing.assert_array_equal(built.neighbour_index, np.repeat(np.arange(2 * PAYMENTS), NEIGHBOURS))
    assert {array.dtype for name, array in built.feeds().items() if name != "neighbour_index"} == {np.dtype("f4")}


def test_timestamps_become_ages(spec: InputSpec, built: InputTuples, payments: TransactionColumns) -> None:
    """A timestamp enters as the seconds before the payment itself, not before the row, and never as an instant."""
    column = spec.account.index("account_activity:last_transaction_timestamp")
    table = _tables(spec)["account_activity"]
    instants = table["last_transaction_timestamp"].cast(pa.int64()).to_numpy()[:PAYMENTS]
    np.testing.assert_allclose(built.sender_x[:, column], (payments.event_ms - instants) / 1_000, rtol=1e-6)


def test_absent_event_rows_are_never_seen(spec: InputSpec, payments: TransactionColumns) -> None:
    """Without a row an account has the catalogue's empty values; counts are zero, means null, neighbours none."""
    nothing = _blocks(spec, lambda view: RowBlock.from_packed(view, [None] * (2 * PAYMENTS)))
    tuples = build_tuples(spec, payments, nothing)
    for position, name in enumerate(spec.account):
        view_name, _, feature_name = name.partition(":")
        view = spec.view(view_name)
        empty = view.feature(feature_name).empty
        expected = np.nan if empty is None or view.cadence is Cadence.SLICE else empty
        np.testing.assert_array_equal(tuples.sender_x[:, position], np.full(PAYMENTS, expected, np.float32), name)
    paid = spec.transaction_names.index("pair_history:paid_count_all")
    assert (tuples.transaction_x[:, paid] == 0).all()
    assert np.isnan(tuples.transaction_x[:, spec.transaction_names.index("amount_percentile_sender")]).all()
    assert len(tuples.neighbour_x) == 0


@pytest.mark.parametrize(("age_s", "absent"), [(0, False), (1, True)])
def test_old_slice_rows_are_null(
    spec: InputSpec, payments: TransactionColumns, built: InputTuples, age_s: int, absent: bool
) -> None:
    """A slice row counts up to its largest age at the payment's own time, and is null after; event rows never age."""
    tables = _tables(spec)
    limit = spec.view("account_topology").max_age_s
    assert limit is not None
    last_ms = int(payments.event_ms[-1])
    for view in spec.views:
        if view.cadence is Cadence.SLICE:
            instant = pa.array(
                [last_ms - (limit + age_s) * 1_000] * 2 * PAYMENTS, view.arrow_schema.field("event_timestamp").type
            )
            position = view.arrow_schema.get_field_index("event_timestamp")
            tables[view.name] = tables[view.name].set_column(position, "event_timestamp", instant)
    tuples = build_tuples(spec, payments, _from_arrow(spec, tables))
    slices = [spec.view(name.partition(":")[0]).cadence is Cadence.SLICE for name in spec.account]
    assert np.isnan(tuples.sender_x[-1, slices]).all() == absent
    np.testing.assert_array_equal(tuples.sender_x[:, np.logical_not(slices)], built.sender_x[:, np.logical_not(slices)])


def test_rows_from_after_the_payment_are_not_read(spec: InputSpec, payments: TransactionColumns) -> None:
    """A row whose as_of lies after the payment is null throughout, whatever it holds: no tuple sees the future."""
    early = replace(payments, event_ms=payments.event_ms - 2 * DAY_MS)
    tuples = build_tuples(spec, early, _from_arrow(spec, _tables(spec)))
    assert np.isnan(tuples.sender_x).all()
    assert np.isnan(tuples.transaction_x[:, len(spec.request) :]).all()
    assert len(tuples.neighbour_x) == 0


def test_neighbour_edges_by_hand(spec: InputSpec, built: InputTuples, payments: TransactionColumns) -> None:
    """An edge carries log amount, direction, log gap to this payment, if it is the other party, and the profile."""
    table = _tables(spec)["account_neighbours"].slice(1, 1).to_pylist()[0]
    edges = built.neighbour_x[built.neighbour_index == 1]
    # Payment 1 is from s1 to r1, and the first of s1's made-up neighbours is r1.
    np.testing.assert_array_equal(edges[:, 3], [1, 0, 0])
    np.testing.assert_array_equal(edges[:, 1], table["neighbour_directions"][:NEIGHBOURS])
    np.testing.assert_allclose(
        edges[:, 0], np.log1p(np.array(table["neighbour_amounts"][:NEIGHBOURS]) / 100), rtol=1e-6
    )
    gaps = payments.event_ms[1] - np.array([NOW_MS - AS_OF_AGO_MS - gap for gap in (1_000, 50_000, 70_000)])
    np.testing.assert_allclose(edges[:, 2], np.log1p(gaps / 1_000), rtol=1e-6)
    profile = np.array(table["neighbour_profile"], np.float32).reshape(-1, NEIGHBOUR_PROFILE_SIZE)
    np.testing.assert_array_equal(edges[:, 4:], profile[:NEIGHBOURS])


def test_amounts_against_history(spec: InputSpec, built: InputTuples, payments: TransactionColumns) -> None:
    """Ratio, deviation and percentile compare the amount with the right side's own columns."""
    table = _tables(spec)["account_activity"]
    mean = table["received_amount_mean_all"].to_numpy()[PAYMENTS:]
    std = table["received_amount_std_all"].to_numpy()[PAYMENTS:]
    names = spec.transaction_names
    ratio = built.transaction_x[:, names.index("amount_over_receiver_mean_all")]
    deviation = built.transaction_x[:, names.index("amount_deviation_receiver_all")]
    np.testing.assert_allclose(ratio, payments.amount / mean, rtol=1e-5)
    np.testing.assert_allclose(deviation, (payments.amount - mean) / std, rtol=1e-5)
    rank = built.transaction_x[:, names.index("amount_percentile_sender")]
    assert set(rank.tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def _finished(spec: InputSpec, payments: TransactionColumns) -> dict[str, Any]:
    table = _tables(spec)["account_windows"]
    block = RowBlock.from_arrow(spec.view("account_windows"), table)
    features = finish(block, np.concatenate([payments.event_ms, payments.event_ms])).features
    return {f"{view}:{name}": features[view][name] for view in features for name in features[view]}


def test_windows_are_those_of_the_payment(spec: InputSpec, built: InputTuples, payments: TransactionColumns) -> None:
    """Windowed inputs come from the buckets, at the payment's instant, whatever the other views' rows say."""
    for name, values in _finished(spec, payments).items():
        column = spec.account.index(name)
        np.testing.assert_array_equal(built.sender_x[:, column], values[:PAYMENTS].astype(np.float32), name)
        np.testing.assert_array_equal(built.receiver_x[:, column], values[PAYMENTS:].astype(np.float32), name)


def test_windows_go_on_between_events(spec: InputSpec, payments: TransactionColumns) -> None:
    """The same rows, read for later payments, show fewer and fewer payments in the windows."""
    blocks, column = _from_arrow(spec, _tables(spec)), spec.account.index("account_activity:sent_count_7d")
    counts = [
        build_tuples(spec, replace(payments, event_ms=payments.event_ms + days * DAY_MS), blocks).sender_x[:, column]
        for days in (0, 5, 8)
    ]
    np.testing.assert_array_equal(counts, [[1] * PAYMENTS, [1] * PAYMENTS, [0] * PAYMENTS])


def test_amounts_against_windows_of_the_payment(
    spec: InputSpec, built: InputTuples, payments: TransactionColumns
) -> None:
    """Ratio and deviation over a window compare with that window at the payment's instant."""
    finished, names = _finished(spec, payments), spec.transaction_names
    mean = finished["account_activity:received_amount_mean_30d"][PAYMENTS:]
    std = finished["account_activity:received_amount_std_30d"][PAYMENTS:]
    ratio = built.transaction_x[:, names.index("amount_over_receiver_mean_30d")]
    deviation = built.transaction_x[:, names.index("amount_deviation_receiver_30d")]
    np.testing.assert_allclose(ratio, payments.amount / mean, rtol=1e-6)
    np.testing.assert_allclose(deviation, (payments.amount - mean) / std, rtol=1e-6)


def test_windows_follow_their_own_row(spec: InputSpec, payments: TransactionColumns, built: InputTuples) -> None:
    """Where the buckets are unknown the windows are null and nothing else is; where they never were, they are empty."""
    blocks = _from_arrow(spec, _tables(spec))
    view = spec.view("account_windows")
    moving = np.array([is_finished(*name.split(":")) for name in spec.account])
    late = blocks.accounts[view.name]
    late = replace(late, columns=replace(late.columns, as_of_ms=late.as_of_ms + DAY_MS))
    unknown = build_tuples(spec, payments, replace(blocks, accounts={**blocks.accounts, view.name: late}))
    assert np.isnan(unknown.sender_x[:, moving]).all()
    np.testing.assert_array_equal(unknown.sender_x[:, ~moving], built.sender_x[:, ~moving])
    history = [name.endswith(("_1h", "_1d", "_7d", "_30d")) for name in spec.transaction_names]
    assert np.isnan(unknown.transaction_x[:, history]).all()
    np.testing.assert_array_equal(
        unknown.transaction_x[:, np.logical_not(history)], built.transaction_x[:, np.logical_not(history)]
    )
    none = RowBlock.from_packed(view, [None] * (2 * PAYMENTS))
    never = build_tuples(spec, payments, replace(blocks, accounts={**blocks.accounts, view.name: none}))
    assert (never.sender_x[:, spec.account.index("account_activity:sent_count_7d")] == 0).all()
    assert np.isnan(never.sender_x[:, spec.account.index("account_activity:sent_amount_mean_7d")]).all()
    np.testing.assert_array_equal(never.sender_x[:, ~moving], built.sender_x[:, ~moving])


def test_windows_without_their_buckets_are_refused() -> None:
    """A model cannot be made to read windowed features without the view that they are finished from."""
    with pytest.raises(SchemaMismatchError, match="account_activity without view account_windows"):
        InputSpec.derive(
            [catalog().schema("account_activity")], feature_hash="", profile=NEIGHBOUR_PROFILE, neighbours=NEIGHBOURS
        )


def test_spec_survives_json(spec: InputSpec) -> None:
    """A bundle's spec is the same after a trip through JSON text."""
    assert InputSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_no_identifier_or_instant_is_an_input(spec: InputSpec) -> None:
    """Lists are never plain inputs, and every scalar of the account and pair views is."""
    scalars = [
        f"{view.name}:{feature.name}"
        for view in spec.views
        for feature in view.features
        if not feature.dtype.is_list and feature.unit != "id"
    ]
    assert sorted([*spec.account, *spec.pair]) == sorted(scalars)


@given(st.integers(1, 9), st.integers(0, 10**6))
def test_tuples_do_not_depend_on_the_batch(rows: int, seed: int) -> None:
    """Payments built together equal payments built one by one."""
    views = catalog()
    spec = InputSpec.derive(
        [
            views.schema(name)
            for name in (
                "account_neighbours",
                "account_activity",
                "account_exposure",
                "account_windows",
                "pair_history",
            )
        ],
        feature_hash="",
        profile=NEIGHBOUR_PROFILE,
        neighbours=NEIGHBOURS,
    )
    generator = np.random.default_rng(seed)
    payments = TransactionColumns.from_mapping(
        {
            "event_timestamp": NOW_MS + generator.integers(0, 10**7, rows),
            "sender_id": ["s2"] * rows,
            "receiver_id": ["r1"] * rows,
            "amount_base": generator.integers(1, 10**6, rows),
        }
    )
    blocks = _from_arrow(spec, {view.name: _table(view, 2 * rows, seed) for view in spec.views})
    together = build_tuples(spec, payments, blocks)

    def alone(row: int) -> InputTuples:
        sides = np.array([row, row + rows])
        part = TupleBlocks(
            accounts={name: block.take(sides) for name, block in blocks.accounts.items()},
            pairs={name: block.take(sides) for name, block in blocks.pairs.items()},
        )
        return build_tuples(spec, payments.take(np.array([row])), part)

    _same(together, InputTuples.concat([alone(row) for row in range(rows)]))
