"""Orders, memos and merged indexes that all kernels rest on, against the obvious way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_features.catalog import catalog
from graph_features.contracts import STORED_STATUS_SCHEMA, STORED_TRANSACTION_SCHEMA, TIMESTAMP
from graph_features.drivers import batch
from graph_features.edges import EdgeTable
from graph_features.kernels.sorting import by_code, by_code_and_time, by_two_codes
from graph_features.kernels.sweeps import window_sums
from graph_features.kernels.timeline import Side
from graph_features.memo import LastMemo, Memo
from graph_features.schema import Cadence
from graph_features.settings import FeatureSettings
from graph_features.time_order import in_time_order
from graph_features.window_spec import WINDOWS

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START_MS = 1_750_000_000_000


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 5)), max_size=40))
def test_items_are_ordered_as_a_stable_sort_orders_them(items: list[tuple[int, int]]) -> None:
    """Orders by code, by code and time, and by two codes are those of a stable sort; offsets bound each code."""
    code, time = np.array(items, np.int64).reshape(-1, 2).T
    kept = np.flatnonzero(code >= 0)
    offsets, order = by_code(code, 5)
    assert order.tolist() == kept[np.argsort(code[kept], kind="stable")].tolist()
    assert np.diff(offsets).tolist() == np.bincount(code[kept], minlength=5).tolist()
    assert by_code_and_time(code[kept], time[kept], 5)[1].tolist() == np.lexsort((time[kept], code[kept])).tolist()
    assert by_two_codes(code[kept], time[kept], 6).tolist() == np.lexsort((time[kept], code[kept])).tolist()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.text(max_size=2)), max_size=30))
def test_payments_are_sorted_by_time_then_id(items: list[tuple[int, str]]) -> None:
    """in_time_order gives what sort_by gives, whatever the order before."""
    columns = {
        "event_timestamp": pa.array([ts for ts, _ in items], pa.int64()).cast(TIMESTAMP),
        "transaction_id": pa.array([name for _, name in items], pa.string()),
        "at": pa.array(range(len(items)), pa.int64()),
    }
    table = pa.table(columns)
    wanted = table.sort_by([("event_timestamp", "ascending"), ("transaction_id", "ascending")])
    got = in_time_order(table)
    assert got.drop_columns("at").equals(wanted.drop_columns("at").combine_chunks())
    assert sorted(got["at"].to_pylist()) == list(range(len(items)))


def test_threads_that_ask_at_once_build_a_value_once() -> None:
    """A memo builds a value once and gives it to all threads that ask for it while it is built."""
    memo, calls, waiting = Memo(), [], threading.Barrier(4)

    def build() -> int:
        calls.append(threading.get_ident())
        return memo.get("inner", lambda: 6) * 7

    def ask() -> int:
        waiting.wait(10)
        return memo.get("outer", build)

    with ThreadPoolExecutor(4) as pool:
        assert {future.result() for future in [pool.submit(ask) for _ in range(4)]} == {42}
    assert len(calls) == 1


def test_a_memo_is_trimmed_to_what_was_asked_for_last() -> None:
    """Values that were not asked for longest go first; memory that two values share counts once."""
    memo = Memo()
    shared = np.zeros(1_000, np.int8)
    memo.get("old", lambda: np.zeros(1_000, np.int8))
    memo.get("whole", lambda: (shared,))
    memo.get("part", lambda: shared[:10])
    memo.get("old", lambda: np.ones(1))
    memo.trim(2_000)
    assert len(memo.get("old", lambda: np.ones(1))) == 1_000
    memo.trim(1_999)
    assert memo.get("whole", lambda: "built again") == "built again"
    assert memo.get("part", lambda: "built again") == "built again"
    assert len(memo.get("old", lambda: np.ones(1))) == 1_000
    memo.trim(0)
    assert memo.get("old", lambda: "built again") == "built again"


def test_only_the_last_memo_is_kept() -> None:
    """A LastMemo forgets what was kept for another key."""
    memos = LastMemo()
    assert memos.of(1).get("a", lambda: 1) == 1
    assert memos.of(1).get("a", lambda: 2) == 1
    assert memos.of(2).get("a", lambda: 3) == 3
    assert memos.of(1).get("a", lambda: 4) == 4


def _hub(n: int, seed: int) -> EdgeTable:
    """One account that pays 12 others `n` times in 40 days; a tenth fails or is reversed, some of it is restored."""
    draw = np.random.default_rng(seed)
    ts_ms = START_MS + np.sort(draw.integers(0, 40 * 24, n)) * HOUR_MS + draw.integers(0, HOUR_MS, n)
    changed = np.repeat(draw.choice(n, n // 10, replace=False), 2)
    restored = np.arange(len(changed)) % 2 == 1
    given: dict[str, Any] = {
        "seq": np.arange(1, n + 1),
        "transaction_id": [f"t{i:05d}" for i in range(n)],
        "event_timestamp": pa.array(ts_ms).cast(TIMESTAMP),
        "sender_id": ["hub"] * n,
        "receiver_id": [f"r{i}" for i in draw.integers(0, 12, n)],
        "amount": draw.integers(1, 50, n),
        "currency": ["EUR"] * n,
    }
    given["amount_base"] = given["amount"]
    columns = [
        pa.array(given[field.name]) if field.name in given else pa.nulls(n, field.type)
        for field in STORED_TRANSACTION_SCHEMA
    ]
    transactions = pa.table(columns, STORED_TRANSACTION_SCHEMA.names).cast(STORED_TRANSACTION_SCHEMA)
    known_ms = ts_ms[changed] + np.where(restored, 9 * DAY_MS, 2 * DAY_MS)
    statuses = pa.table(
        {
            "seq": np.arange(n + 1, n + 1 + len(changed)),
            "transaction_id": [f"t{i:05d}" for i in changed],
            "status": np.where(restored, "completed", "reversed"),
            "status_timestamp": pa.array(known_ms).cast(TIMESTAMP),
        }
    ).select(STORED_STATUS_SCHEMA.names)
    return EdgeTable.from_arrow(transactions, statuses.cast(STORED_STATUS_SCHEMA))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 400))
def test_windows_of_a_busy_account_equal_a_loop(seed: int, n: int) -> None:
    """Counts, sums, maxima, deviations and distinct receivers of long windows equal those of a plain loop."""
    edges = _hub(n, seed)
    as_of_ms = START_MS + np.arange(0, 60 * 24, 7) * HOUR_MS
    hub = np.full(len(as_of_ms), edges.codes(["hub"])[0])
    sums = window_sums(edges, Side.SENT, hub, as_of_ms, WINDOWS, distinct=True)
    for i, at in enumerate(as_of_ms):
        known = edges.statuses.ts_ms < at
        status = np.zeros(edges.n_edges, np.int8)
        status[edges.statuses.edge[known]] = edges.statuses.value[known]
        for w, window in enumerate(WINDOWS):
            held = (edges.ts_ms < at) & (status == 0)
            if window.length_ms is not None:
                held &= edges.ts_ms >= (at - window.length_ms) // window.grain_ms * window.grain_ms
            amounts = edges.amount[held]
            one = sums.at(w)
            assert (one.count[i], one.total[i]) == (len(amounts), amounts.sum())
            assert one.distinct[i] == len(set(edges.receiver[held].tolist()))
            if len(amounts):
                assert one.largest[i] == amounts.max()
                assert one.deviations[i] == pytest.approx(np.sum((amounts - amounts.mean()) ** 2), rel=1e-9, abs=1e-9)


def test_rows_at_one_instant_are_those_of_each_view() -> None:
    """rows_at gives, with one thread and with three, the rows that each view gives by itself."""
    edges, given = _hub(300, 3), FeatureSettings()
    views, at = list(catalog().schemas.values()), START_MS + 30 * DAY_MS

    def rows(threads: int) -> dict[str, pa.Table]:
        found: dict[str, list[pa.Table]] = {}
        for name, table in batch.rows_at(views, edges, as_of_ms=at, settings=given, threads=threads):
            found.setdefault(name, []).append(table)
        return {name: pa.concat_tables(tables) for name, tables in found.items()}

    one, three = rows(1), rows(3)
    for view in views:
        if view.cadence is Cadence.SLICE:
            wanted = batch.slice_rows(view, edges, as_of_ms=at, settings=given)
        else:
            wanted = pa.concat_tables(batch.latest_rows(view, edges, None, before_ms=at, settings=given))
        assert one[view.name].equals(wanted)
        assert three[view.name].equals(wanted)
