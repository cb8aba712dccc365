"""Every event feature against the slow reference, on random histories."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.catalog import catalog
from graph_features.clock import HOUR_MS, created_timestamp
from graph_features.compute import Entities, compute_rows
from graph_features.drivers.batch import event_rows, latest_rows
from graph_features.edges import EdgeTable
from graph_features.errors import FeatureComputationError
from graph_features.settings import FeatureSettings

SETTINGS = FeatureSettings()
EVENT_VIEWS = catalog().event_views()
EVER = 2**60

examples = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
each_view = pytest.mark.parametrize("view", EVENT_VIEWS, ids=lambda view: view.name)


def all_rows(view: Any, edges: EdgeTable, from_ms: int = 0, to_ms: int = EVER, chunk_rows: int = 7) -> pa.Table:
    tables = event_rows(view, edges, from_ms=from_ms, to_ms=to_ms, settings=SETTINGS, chunk_rows=chunk_rows)
    return pa.concat_tables([view.arrow_schema.empty_table(), *tables])


def keys_of(view: Any, history: Any) -> list[tuple[str, ...]]:
    return history.pairs() if view.entity == "pair" else [(account,) for account in history.accounts()]


@each_view
@examples
@given(data=st.data())
def test_every_event_row_equals_the_reference(
    view: Any, data: Any, stories: Any, reference: Any, rows_of: Any, assert_same: Any
) -> None:
    """Each renewing instant has one row, t + 1 ms, with the values that the definitions give."""
    history = data.draw(stories.histories())
    slow = reference(history)
    rows = rows_of(view, all_rows(view, history.edges()))
    wanted = [
        (key, ts_ms + 1) for key in keys_of(view, history) for ts_ms in slow.event_times(key, tuple(view.renewed_by))
    ]
    assert [(key, as_of) for key, as_of, _ in rows] == wanted
    for key, as_of, row in rows:
        assert_same(row, slow.row(view.name, key, as_of), f"{view.name} {key} {as_of}")


@each_view
def test_payments_taken_out_and_restored_in_every_order_equal_the_reference(
    view: Any, stories: Any, reference: Any, rows_of: Any, assert_same: Any
) -> None:
    """Of three payments, every sequence of five reversals and restorations, with labels that change alike."""
    everything, alone = stories.History(), {}
    for sequence in itertools.product(range(3), repeat=5):
        account = "a" + "".join(map(str, sequence))
        payments, statuses, labels, turned = [], [], [], [0, 0, 0]
        for k, amount in enumerate((9_999, 10**15, 1)):
            ts_ms = stories.START_MS + (k * k + k) * HOUR_MS
            payments.append(
                stories.Payment(id=account + str(k), ts_ms=ts_ms, sender=account, receiver="b", amount=amount)
            )
        for step, k in enumerate(sequence):
            turned[k] += 1
            change = {"id": account + str(k), "ts_ms": stories.START_MS + (24 + step) * HOUR_MS}
            statuses.append(stories.Change(**change, value="reversed" if turned[k] % 2 else "completed"))
            labels.append(stories.Change(**change, value="both" if turned[k] % 2 else None))
        alone[account] = stories.History(payments=tuple(payments), statuses=tuple(statuses), labels=tuple(labels))
        everything = everything.and_then(alone[account])
    rows = [row for row in rows_of(view, all_rows(view, everything.edges())) if row[0][0] in alone]
    assert len(rows) == len(alone) * (3 + 5)
    slow = {account: reference(history) for account, history in alone.items()}
    for key, as_of, row in rows:
        wanted = slow[key[0]].row(view.name, key, as_of)
        if view.name == "account_neighbours":  # everybody pays b: its profile is not one account's to tell
            row, wanted = ({name: r[name] for name in r if name != "neighbour_profile"} for r in (row, wanted))
        assert_same(row, wanted, f"{view.name} {key} {as_of}")


@each_view
@examples
@given(data=st.data())
def test_any_instant_in_any_order_equals_the_reference(
    view: Any, data: Any, stories: Any, reference: Any, rows_of: Any, assert_same: Any
) -> None:
    """compute_rows answers for arbitrary (entity, as_of), unsorted and repeated, unknown entities included."""
    history = data.draw(stories.histories(max_payments=12))
    slow, edges = reference(history), history.edges()
    n_keys = len(view.keys)
    keys = st.tuples(*[st.sampled_from("abcdz")] * n_keys)
    asked = data.draw(st.lists(st.tuples(keys, stories.instants), min_size=1, max_size=12))
    as_of_ms = np.array([as_of for _, as_of in asked])
    entities = Entities.of_keys(edges, [key for key, _ in asked])
    table = compute_rows(view, edges, entities=entities, as_of_ms=as_of_ms, settings=SETTINGS)
    rows = rows_of(view, table)
    assert [(key, as_of) for key, as_of, _ in rows] == asked
    for key, as_of, row in rows:
        assert_same(row, slow.row(view.name, key, as_of), f"{view.name} {key} {as_of}")


@each_view
@examples
@given(data=st.data())
def test_nothing_at_or_after_as_of_changes_a_row(view: Any, data: Any, stories: Any) -> None:
    """Appending, relabelling and reordering what comes at or after as_of must not change one bit before it."""
    cut_ms = data.draw(stories.instants)
    past = data.draw(stories.histories(max_payments=14)).before(cut_ms)
    later = st.integers(cut_ms, cut_ms + stories.SPAN_MS)
    future = data.draw(stories.histories(accounts="abef", max_payments=10, times=later, prefix="u", of=past))
    order = data.draw(st.permutations(past.payments))
    mixed = stories.History(
        payments=(*future.payments, *order),
        statuses=(*future.statuses, *past.statuses),
        labels=(*future.labels, *past.labels),
    )
    rows = [
        all_rows(view, history.edges(), to_ms=cut_ms).drop_columns("created_timestamp") for history in (past, mixed)
    ]
    assert rows[0].equals(rows[1])


@each_view
@examples
@given(data=st.data())
def test_a_period_has_its_rows_and_one_snapshot_per_entity(view: Any, data: Any, stories: Any) -> None:
    """[from, to) yields the rows of its own events and, per entity, the last row before from."""
    history, from_ms, to_ms = data.draw(stories.histories()), data.draw(stories.instants), data.draw(stories.instants)
    edges = history.edges()
    everything = all_rows(view, edges).to_pylist()
    wanted = []
    for key in keys_of(view, history):
        own = [row for row in everything if tuple(row[k] for k in view.keys) == key]
        at = [row["event_timestamp"].timestamp() * 1000 - 1 for row in own]
        before = [row for row, ts_ms in zip(own, at, strict=True) if ts_ms < min(from_ms, to_ms)]
        wanted += before[-1:] + [row for row, ts_ms in zip(own, at, strict=True) if from_ms <= ts_ms < to_ms]
    assert all_rows(view, edges, from_ms, to_ms).to_pylist() == wanted
    chosen = history.accounts()[:2]
    some = event_rows(view, edges, from_ms=from_ms, to_ms=to_ms, settings=SETTINGS, accounts=chosen)
    assert [row for table in some for row in table.to_pylist()] == [
        row for row in wanted if row[view.keys[0]] in chosen
    ]


@each_view
@examples
@given(data=st.data())
def test_latest_rows_are_the_last_event_rows(view: Any, data: Any, stories: Any) -> None:
    """The newest row before an instant is the event row that a payment at that instant is joined to."""
    history, before_ms = data.draw(stories.histories()), data.draw(stories.instants)
    edges = history.edges()
    rows = all_rows(view, edges).to_pylist()
    last = {
        tuple(row[k] for k in view.keys): row for row in rows if row["event_timestamp"].timestamp() * 1000 <= before_ms
    }
    found = list(latest_rows(view, edges, None, before_ms=before_ms, settings=SETTINGS, chunk_rows=3))
    assert [row for table in found for row in table.to_pylist()] == [last[key] for key in sorted(last)]
    keys = [*keys_of(view, history)[::2], ("nobody",) * len(view.keys)]
    found = list(latest_rows(view, edges, keys, before_ms=before_ms, settings=SETTINGS))
    assert [row for table in found for row in table.to_pylist()] == [last[key] for key in keys if key in last]


@each_view
def test_empty_values_are_what_an_empty_history_gives(view: Any) -> None:
    """The catalogue's `empty` of every feature is the value that is computed for an account never seen."""
    edges = EdgeTable.empty()
    entities = Entities.of_keys(edges, [("nobody",) * len(view.keys)])
    (row,) = compute_rows(view, edges, entities=entities, as_of_ms=np.array([1]), settings=SETTINGS).to_pylist()
    assert {f.name: row[f.name] for f in view.features} == {
        f.name: [] if f.dtype.is_list else f.empty for f in view.features
    }


@each_view
def test_rows_carry_the_sequence_they_were_computed_from(view: Any, stories: Any) -> None:
    """created_timestamp is the ingest sequence of the table, whatever the rows' own time."""
    payment = stories.Payment(id="t", ts_ms=stories.START_MS, sender="a", receiver="b")
    history = stories.History(payments=(payment,)).numbered(after=40)
    assert set(all_rows(view, history.edges())["created_timestamp"].to_pylist()) == {created_timestamp(41)}


def test_variance_is_exact_where_floats_cancel(stories: Any) -> None:
    """Amounts of 10^15 that differ by one have a deviation of the order of one, and sums stay integers."""
    amounts = [10**15 - k % 2 for k in range(1_000)]
    payments = tuple(
        stories.Payment(id=f"t{k:04d}", ts_ms=stories.START_MS + k, sender="a", receiver="b", amount=amount)
        for k, amount in enumerate(amounts)
    )
    view = catalog().schema("account_activity")
    (row,) = latest_rows(view, stories.History(payments=payments).edges(), [("a",)], before_ms=EVER, settings=SETTINGS)
    assert row["sent_amount_sum_all"].to_pylist() == [sum(amounts)]
    assert row["sent_amount_std_all"].to_pylist() == pytest.approx([(0.25 * 1_000 / 999) ** 0.5], rel=1e-12)


def test_sums_beyond_64_bits_are_refused_by_name(stories: Any) -> None:
    """An account whose amounts cannot be added up is named; nothing wraps around."""
    payments = tuple(
        stories.Payment(id=f"t{k:04d}", ts_ms=stories.START_MS + k, sender="whale", receiver="b", amount=10**15)
        for k in range(5_000)
    )
    view = catalog().schema("account_activity")
    edges = stories.History(payments=payments).edges()
    with pytest.raises(FeatureComputationError, match="whale: amounts sent add up"):
        list(latest_rows(view, edges, [("whale",)], before_ms=EVER, settings=SETTINGS))
