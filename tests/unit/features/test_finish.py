"""Windows finished from stored buckets equal the features computed at that very instant."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.catalog import catalog
from graph_features.clock import DAY_MS, HOUR_MS, MINUTE_MS
from graph_features.compute import Entities, compute_rows
from graph_features.drivers.batch import event_rows, latest_rows
from graph_features.finish import finish
from graph_features.settings import FeatureSettings
from graph_features.stores.blocks import RowBlock
from graph_features.stores.codec import encode
from graph_features.window_spec import FINISHED, LABEL_LEVELS, PAYMENT_LEVELS, WINDOWS

SETTINGS = FeatureSettings()
VIEW = catalog().schema("account_windows")
EVER = 2**60
NOBODY_MS = 10**12

examples = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def _bursts(stories: Any) -> st.SearchStrategy[int]:
    """Times that fill some minutes, hours and days with several payments, and lie on both sides of their ends."""
    end_ms = (stories.START_MS + 40 * DAY_MS) // DAY_MS * DAY_MS
    reach = st.sampled_from([2 * MINUTE_MS, HOUR_MS + MINUTE_MS, 5 * HOUR_MS, DAY_MS, 7 * DAY_MS, 31 * DAY_MS])
    step = st.sampled_from([1, MINUTE_MS // 2, MINUTE_MS, HOUR_MS, DAY_MS])
    return st.builds(
        lambda back, at, grain, shift: end_ms - int(back * at) // grain * grain + shift,
        reach,
        st.floats(0, 1),
        step,
        st.integers(-1, 1),
    )


def _rows(edges: Any) -> pa.Table:
    tables = event_rows(VIEW, edges, from_ms=0, to_ms=EVER, settings=SETTINGS)
    return pa.concat_tables([VIEW.arrow_schema.empty_table(), *tables])


def _computed(view: str, edges: Any, keys: list[tuple[str, ...]], at_ms: Any) -> pa.Table:
    entities = Entities.of_keys(edges, keys)
    return compute_rows(catalog().schema(view), edges, entities=entities, as_of_ms=at_ms, settings=SETTINGS)


def _check(block: RowBlock, edges: Any, keys: list[tuple[str, ...]], at_ms: Any) -> None:
    """Every finished feature equals the one computed at that instant: integers exactly, floats closely."""
    finished = finish(block, at_ms)
    for view, names in FINISHED.items():
        table = _computed(view, edges, keys, at_ms)
        assert finished.features[view].keys() == set(names)
        for name in names:
            got, wanted = finished.features[view][name], table[name]
            if catalog().schema(view).feature(name).empty == 0:
                assert got.dtype == np.int64
                assert got.tolist() == wanted.to_pylist(), name
            elif pa.types.is_integer(wanted.type):
                assert [None if x != x else int(x) for x in got.tolist()] == wanted.to_pylist(), name
            else:
                values = wanted.to_numpy(zero_copy_only=False).astype(np.float64)
                np.testing.assert_allclose(got, values, rtol=1e-9, atol=1e-12, err_msg=name)


@examples
@given(data=st.data())
def test_any_instant_up_to_the_next_event_has_the_row_of_that_instant(data: Any, stories: Any) -> None:
    """At as_of, at the last instant before the next event and at any between, all rows at once and packed."""
    times = data.draw(st.sampled_from([stories.instants, _bursts(stories)]))
    history = data.draw(stories.histories(accounts="abc", max_payments=40, times=times))
    edges = history.edges()
    table = _rows(edges)
    if table.num_rows == 0:
        return
    keys = [(account,) for account in table["account_id"].to_pylist()]
    as_of = table["event_timestamp"].cast(pa.int64()).to_numpy()
    ends = np.append(as_of[1:], 0) - 1
    last = np.array([key != after for key, after in zip(keys, [*keys[1:], None], strict=True)])
    ends[last] = as_of[last] + 40 * DAY_MS
    share = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(keys), max_size=len(keys))))
    grain = data.draw(st.sampled_from([1, MINUTE_MS, HOUR_MS, DAY_MS]))
    between = (as_of + ((ends - as_of) * share).astype(np.int64)) // grain * grain
    packed = RowBlock.from_packed(VIEW, encode(VIEW, table))
    _check(RowBlock.from_arrow(VIEW, table), edges, keys, as_of)
    for at_ms in (as_of, ends, np.clip(between, as_of, ends)):
        _check(packed, edges, keys, at_ms)


def test_windows_empty_one_after_the_other(stories: Any) -> None:
    """One payment leaves each window when the quantised start has passed it, and not one millisecond before."""
    ts_ms = stories.START_MS // DAY_MS * DAY_MS + 13 * HOUR_MS + 59 * MINUTE_MS + 59_999
    payment = stories.Payment(id="t", ts_ms=ts_ms, sender="a", receiver="a", amount=7)
    table = _rows(stories.History(payments=(payment,)).edges())
    block = RowBlock.from_arrow(VIEW, table).take(np.array([0, 0]))
    for window in WINDOWS[:-1]:
        assert window.length_ms is not None
        leaves_ms = ts_ms // window.grain_ms * window.grain_ms + window.length_ms + window.grain_ms
        found = finish(block, np.array([leaves_ms - 1, leaves_ms])).features["account_activity"]
        for side in ("sent", "received"):
            assert found[f"{side}_count_{window.name}"].tolist() == [1, 0]
            assert found[f"{side}_amount_max_{window.name}"][0] == 7
            assert np.isnan(found[f"{side}_amount_max_{window.name}"][1])


@pytest.mark.parametrize("amounts", [(10**15, 10**15 - 1), (1, 10**15), (0, 0), (3, 3, 4)])
def test_deviations_do_not_cancel(stories: Any, amounts: tuple[int, ...]) -> None:
    """Large amounts that differ by one have their deviation, in one bucket and over many, beside small ones."""
    history = stories.History(
        payments=tuple(
            stories.Payment(
                id=f"t{k:04d}",
                ts_ms=stories.START_MS + k * step,
                sender=f"s{step}",
                receiver="b",
                amount=amounts[k % len(amounts)],
            )
            for step in (1, 7 * MINUTE_MS, 5 * HOUR_MS)
            for k in range(300)
        )
    )
    edges = history.edges()
    keys = [(f"s{step}",) for step in (1, 7 * MINUTE_MS, 5 * HOUR_MS)]
    table = pa.concat_tables(latest_rows(VIEW, edges, sorted(keys), before_ms=EVER, settings=SETTINGS))
    keys = [(account,) for account in table["account_id"].to_pylist()]
    as_of = table["event_timestamp"].cast(pa.int64()).to_numpy()
    for later in (0, HOUR_MS, 3 * DAY_MS, 20 * DAY_MS):
        _check(RowBlock.from_arrow(VIEW, table), edges, keys, as_of + later)


def test_a_hub_keeps_a_bounded_number_of_buckets(stories: Any) -> None:
    """A payment in every minute of 40 days, reversals and labels among them: the buckets stay within their bound."""
    start_ms = stories.START_MS // DAY_MS * DAY_MS
    payments = tuple(
        stories.Payment(
            id=f"t{k:06d}", ts_ms=start_ms + k * MINUTE_MS, sender=f"s{k % 900}", receiver="hub", amount=k % 977
        )
        for k in range(40 * 24 * 60)
    )
    statuses = tuple(stories.Change(id=one.id, ts_ms=one.ts_ms + DAY_MS, value="reversed") for one in payments[::97])
    labels = tuple(stories.Change(id=one.id, ts_ms=one.ts_ms + HOUR_MS, value=None) for one in payments[::5])
    edges = stories.History(payments=payments, statuses=statuses, labels=labels).edges()
    instants = start_ms + np.arange(5 * DAY_MS, 39 * DAY_MS, 119 * MINUTE_MS) + 30_000
    keys = [("hub",)] * len(instants)
    table = _computed("account_windows", edges, keys, instants)
    lengths = pa.compute.list_value_length(table["received_buckets"]).to_numpy()
    assert lengths.max() == 4 * (61 + 168 + 24)
    assert pa.compute.max(pa.compute.list_value_length(table["received_label_buckets"])).as_py() <= 3 * 193
    _check(RowBlock.from_arrow(VIEW, table), edges, keys, instants)


def test_rows_that_are_absent_have_no_payments() -> None:
    """Without a row, counts are 0 and means null, which is what the catalogue gives to accounts never seen."""
    for rows in (0, 3):
        found = finish(RowBlock.from_packed(VIEW, [None] * rows), np.full(rows, NOBODY_MS)).features
        for view, names in FINISHED.items():
            for name in names:
                empty = catalog().schema(view).feature(name).empty
                wanted = np.full(rows, np.nan if empty is None else empty)
                np.testing.assert_array_equal(found[view][name], wanted, name)


def test_finished_features_are_the_windowed_ones() -> None:
    """Every feature whose window ends is finished on read, and no other."""
    ends = tuple(f"_{window.name}" for window in WINDOWS[:-1])
    for view in catalog().event_views():
        assert set(FINISHED.get(view.name, ())) == {name for name in view.names if name.endswith(ends)}, view.name


def test_levels_hold_the_windows() -> None:
    """Every window begins at the start of a bucket: a grain divides each coarser one and the lengths of its windows."""
    for levels, windows in ((PAYMENT_LEVELS, WINDOWS[:-1]), (LABEL_LEVELS, WINDOWS[1:-1])):
        for fine, coarse in itertools.pairwise(levels):
            assert coarse.grain_ms % fine.grain_ms == 0
        for window in windows:
            (level,) = [one for one in levels if one.grain_ms == window.grain_ms]
            assert window.length_ms is not None
            assert level.length_ms is not None
            assert window.length_ms <= level.length_ms
            assert window.length_ms % window.grain_ms == 0
