"""Event rows in parts: a mapped EdgeTable, ranges of entities, other processes."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.catalog import catalog
from graph_features.drivers.batch import event_parts, event_rows, event_rows_by, gathered, part_rows
from graph_features.edge_files import load_edges, save_edges
from graph_features.edges import EdgeTable
from graph_features.errors import FeatureComputationError
from graph_features.executor import InProcess, ProcessPool
from graph_features.settings import FeatureSettings

SETTINGS = FeatureSettings()
PERIOD = {"from_ms": 0, "to_ms": 2**60}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_saved_table_comes_back_whole_and_read_only(
    data: Any, stories: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every column of a mapped table equals what was saved, empty tables included."""
    edges = data.draw(stories.histories()).edges()
    folder = tmp_path_factory.mktemp("edges") / "table"
    save_edges(edges, folder)
    found = load_edges(folder)
    for name in ("ts_ms", "sender", "receiver", "amount", "channel", "device", "card", "ip", "seq", "account_ids"):
        assert getattr(found, name).dtype == getattr(edges, name).dtype
        assert getattr(found, name).tolist() == getattr(edges, name).tolist()
    for changes in ("statuses", "labels"):
        for name in ("edge", "ts_ms", "value", "seq"):
            want = getattr(getattr(edges, changes), name)
            assert getattr(getattr(found, changes), name).tolist() == want.tolist()
    assert (found.channels, found.countries, found.max_seq) == (edges.channels, edges.countries, edges.max_seq)
    assert found.n_edges == 0 or not found.amount.flags.writeable


def test_saving_twice_leaves_the_first(stories: Any, tmp_path: Path) -> None:
    """A folder that exists is not overwritten, and nothing half written stays beside it."""
    save_edges(EdgeTable.empty(), tmp_path / "table")
    before = sorted(path.name for path in (tmp_path / "table").iterdir())
    with pytest.raises(OSError, match="table"):
        save_edges(EdgeTable.empty(), tmp_path / "table")
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == before


@pytest.mark.parametrize("view", catalog().event_views(), ids=lambda view: view.name)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_parts_together_are_the_whole(
    view: Any, data: Any, stories: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The rows of all parts, in order, are the rows of the period; parts survive pickling."""
    history, bounds = data.draw(stories.histories()), sorted(data.draw(st.tuples(stories.instants, stories.instants)))
    edges, folder = history.edges(), tmp_path_factory.mktemp("edges") / "table"
    save_edges(edges, folder)
    period = {"from_ms": bounds[0], "to_ms": bounds[1], "settings": SETTINGS}
    parts = event_parts(view, edges, folder, part_rows=5, **period)
    tables = [table for part in pickle.loads(pickle.dumps(parts)) for table in part_rows(part)]
    nothing = view.arrow_schema.empty_table()
    assert pa.concat_tables([nothing, *tables]).equals(pa.concat_tables([nothing, *event_rows(view, edges, **period)]))


def test_other_processes_compute_the_same_rows(stories: Any, tmp_path: Path) -> None:
    """Parts on a pool of processes give the rows of this process, bit for bit."""
    random = np.random.default_rng(7)
    payments = tuple(
        stories.Payment(
            id=f"t{k:04d}",
            ts_ms=stories.START_MS + int(random.integers(0, stories.SPAN_MS)),
            sender=f"s{random.integers(20)}",
            receiver=f"r{random.integers(20)}",
            amount=int(random.integers(1, 10**6)),
        )
        for k in range(400)
    )
    edges = stories.History(payments=payments).edges()
    view = catalog().schema("account_neighbours")
    pool = ProcessPool(2)
    try:
        parts = {"cache": tmp_path / "cache", "part_rows": 300}
        tables = list(event_rows_by(pool, view, edges, settings=SETTINGS, **parts, **PERIOD))
    finally:
        pool.close()
    assert len(tables) > 2
    assert pa.concat_tables(tables).equals(pa.concat_tables(event_rows(view, edges, settings=SETTINGS, **PERIOD)))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failed_part_is_an_error_and_not_a_gap(stories: Any, tmp_path: Path) -> None:
    """Where one part cannot be computed the iterator raises, and leaves nothing in the cache."""
    payments = tuple(
        stories.Payment(id=f"t{k:04d}", ts_ms=stories.START_MS + k, sender="whale", receiver="b", amount=10**15)
        for k in range(5_000)
    )
    edges, view = stories.History(payments=payments).edges(), catalog().schema("account_activity")
    with pytest.raises(FeatureComputationError, match="whale"):
        list(event_rows_by(InProcess(), view, edges, settings=SETTINGS, cache=tmp_path, **PERIOD))
    assert list(tmp_path.iterdir()) == []


@given(sizes=st.lists(st.integers(1, 9), max_size=30), most_rows=st.integers(9, 20), most_bytes=st.integers(1, 200))
def test_tables_are_gathered_by_rows_and_bytes(sizes: list[int], most_rows: int, most_bytes: int) -> None:
    """Every row once and in order; none above the limits by more than its last part, none that could have held more."""
    total = np.arange(sum(sizes))
    parts = [pa.table({"number": part}) for part in np.split(total, np.cumsum(sizes)[:-1])] if sizes else []
    tables = list(gathered(parts, most_rows=most_rows, most_bytes=most_bytes))
    assert [number for table in tables for number in table["number"].to_pylist()] == total.tolist()
    assert all(table.num_rows <= most_rows and table.nbytes < most_bytes + 9 * 8 for table in tables)
    for table, following in pairwise(tables):
        first = following["number"].chunk(0)
        assert table.num_rows + len(first) > most_rows or table.nbytes >= most_bytes
