"""Partitions of a graph: files, and the same rows as from the whole."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.catalog import catalog
from graph_features.clock import NEVER_MS
from graph_features.drivers.batch import event_rows
from graph_features.edges import EdgeTable
from graph_features.errors import FeatureComputationError
from graph_features.jobs.work import accounts_of
from graph_features.partitions import PartitionedEdges
from graph_features.settings import FeatureSettings

SETTINGS = FeatureSettings()


class Everything:
    """A record store whose newest number is asked for; counts reads."""

    def __init__(self, history: Any) -> None:
        self.records = history.records()
        self.reads = 0

    def read_all(self, *, max_seq: int) -> Any:
        assert max_seq == self.records.max_seq
        self.reads += 1
        time.sleep(0.05)
        return self.records


def prepared(folder: Path, history: Any, partitions: int, before_ms: int = NEVER_MS) -> PartitionedEdges:
    files, store = PartitionedEdges(folder=folder, partitions=partitions), Everything(history)
    files.prepare(store, before_ms=before_ms, max_seq=store.records.max_seq)  # type: ignore[arg-type]
    return files


def rows(view: Any, edges: EdgeTable, accounts: list[str], period: tuple[int, int]) -> pa.Table:
    found = event_rows(view, edges, from_ms=period[0], to_ms=period[1], settings=SETTINGS, accounts=accounts)
    return pa.concat_tables([view.arrow_schema.empty_table(), *found])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), partitions=st.integers(2, 4))
def test_a_partition_gives_the_rows_of_its_accounts(
    data: Any, partitions: int, stories: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A partition's files give, bit for bit, the rows that the whole graph gives of its accounts, in every view."""
    history, bounds = data.draw(stories.histories()), sorted(data.draw(st.tuples(stories.instants, stories.instants)))
    period = (bounds[0], bounds[1])
    store = stories.MemoryRecords(history)
    whole = store.read_all(before_ms=period[1])
    edges = EdgeTable.from_arrow(whole.transactions, whole.statuses, whole.labels, max_seq=store.max_seq())
    files = prepared(tmp_path_factory.mktemp("cache") / "job", history, partitions, period[1])
    seen: set[str] = set()
    for partition in range(partitions):
        part = files.edges(partition)
        accounts = accounts_of(part, partition, partitions)
        assert accounts == accounts_of(edges, partition, partitions)
        seen |= set(accounts)
        for view in catalog().event_views():
            assert rows(view, part, accounts, period).equals(rows(view, edges, accounts, period)), view.name
    assert seen == set(edges.account_ids)


def test_files_are_made_once_and_complete(stories: Any, tmp_path: Path) -> None:
    """Processes that ask at the same time share one making; what fails leaves nothing, what is old goes."""
    payments = [
        stories.Payment(id=f"t{k}", ts_ms=stories.START_MS + k, sender=f"a{k % 7}", receiver=f"b{k % 5}", amount=100)
        for k in range(50)
    ]
    store = Everything(stories.History(payments=tuple(payments)))
    old = tmp_path / "old-3"
    old.mkdir()
    os.utime(old, (0, 0))
    files = PartitionedEdges(folder=tmp_path / "job-3", partitions=3)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: files.prepare(store, before_ms=NEVER_MS, max_seq=50), range(4)))  # type: ignore[arg-type]
    assert store.reads == 1
    assert not old.exists()
    assert sorted(path.name for path in files.folder.iterdir()) == sorted(
        f"{kind}-{n}" for kind in ("edges", "standings") for n in range(3)
    )
    # A long job's files are in use for as long as someone prepares for it.
    os.utime(files.folder, (0, 0))
    files.prepare(store, before_ms=NEVER_MS, max_seq=50)  # type: ignore[arg-type]
    other = PartitionedEdges(folder=tmp_path / "other-3", partitions=3)
    other.prepare(store, before_ms=NEVER_MS, max_seq=50)  # type: ignore[arg-type]
    assert files.folder.exists()
    other.discard()
    files.discard()
    broken = PartitionedEdges(folder=tmp_path / "job-2", partitions=2)
    with pytest.raises(AttributeError):
        broken.prepare(object(), before_ms=NEVER_MS, max_seq=50)  # type: ignore[arg-type]
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_accounts_whose_sums_do_not_fit_fail_where_they_are_described(stories: Any, tmp_path: Path) -> None:
    """A counterparty in another partition whose amounts cannot be added up is named, as in the whole graph."""
    payments = [
        stories.Payment(id=f"t{k:05d}", ts_ms=stories.START_MS + k, sender="whale", receiver=f"b{k % 9}", amount=10**15)
        for k in range(5_000)
    ]
    files = prepared(tmp_path / "job", stories.History(payments=tuple(payments)), 4)
    view = catalog().schema("account_neighbours")
    period = (0, stories.START_MS + stories.SPAN_MS)

    def described() -> None:
        for partition in range(4):
            part = files.edges(partition)
            rows(view, part, [one for one in accounts_of(part, partition, 4) if one != "whale"], period)

    with pytest.raises(FeatureComputationError, match="whale"):
        described()
