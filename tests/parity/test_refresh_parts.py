"""A refresh in several processes ends as one in this process does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_features.catalog import catalog
from graph_features.contracts import LABEL_SCHEMA, STATUS_SCHEMA, TRANSACTION_SCHEMA
from graph_features.executor import InProcess, ProcessPool
from graph_features.lazy_stores import LazyStores
from graph_features.refresh import refresh
from graph_features.refresh_parts import refresh_in_parts
from graph_features.settings import PlatformSettings


@pytest.fixture(scope="module")
def town(stories: Any) -> Any:
    """Two thousand payments of a hundred accounts, some reversed, some labelled late."""
    random = np.random.default_rng(3)
    times = np.sort(random.integers(stories.START_MS, stories.START_MS + stories.SPAN_MS, 2_000))
    payments = [
        stories.Payment(
            id=f"t{k:05d}",
            ts_ms=int(ts_ms),
            sender=f"s{random.integers(50):02d}",
            receiver=f"r{random.integers(50):02d}",
            amount=int(random.lognormal(8, 1)) + 1,
            channel=str(random.choice(["card", "web"])),
        )
        for k, ts_ms in enumerate(times)
    ]
    day = 86_400_000
    late = [int(delay) for delay in random.integers(1, 9 * day, 2_000)]
    return stories.History(
        payments=tuple(payments),
        statuses=tuple(
            stories.Change(id=p.id, ts_ms=p.ts_ms + wait, value="reversed")
            for p, wait in zip(payments[::20], late, strict=False)
        ),
        labels=tuple(
            stories.Change(id=p.id, ts_ms=p.ts_ms + 7 * day, value="receiver" if k % 9 == 0 else None)
            for k, p in enumerate(payments[::3])
        ),
    )


@pytest.fixture
def pending(town: Any, tmp_path: Path) -> Iterator[Callable[[str], LazyStores]]:
    """pending(name): embedded stores of their own, the town ingested and nothing refreshed."""
    opened: list[LazyStores] = []

    def make(name: str) -> LazyStores:
        stores = LazyStores(PlatformSettings(home=tmp_path / name))
        opened.append(stores)
        stores.records.create_schema()
        records, mark = town.records(), stores.online.mark_pending
        stores.records.write_transactions(records.transactions.select(TRANSACTION_SCHEMA.names), mark)
        stores.records.write_statuses(records.statuses.select(STATUS_SCHEMA.names), mark)
        stores.records.write_labels(records.labels.select(LABEL_SCHEMA.names), mark)
        for view in catalog().event_views():
            stores.offline.create_view(view)
        return stores

    yield make
    for stores in opened:
        stores.close()


def online_rows(stores: LazyStores, town: Any) -> list[list[bytes | None]]:
    keys = {"account": [(account,) for account in town.accounts()], "pair": list(town.pairs())}
    return stores.online.read([(view, keys[view.entity]) for view in catalog().event_views()])


@pytest.mark.parametrize("bulk_keys", [0, 10**6])
def test_parts_store_what_one_refresh_would(pending: Callable[[str], LazyStores], town: Any, bulk_keys: int) -> None:
    """Workers with connections of their own store every row that is due, and clear every mark; few keys or many."""
    alone, shared = pending("alone"), pending("shared")
    report = refresh(
        None,
        records=alone.records,
        online=alone.online,
        offline=alone.offline,
        settings=alone.feature_settings,
        bulk_keys=bulk_keys,
    )
    told: list[int] = []
    pool = ProcessPool(2)
    try:
        done = refresh_in_parts(pool, None, shared, part_keys=600, bulk_keys=bulk_keys, on_rows=told.append)
    finally:
        pool.close()
    assert (done.keys, done.rows, done.failed, done.max_seq) == (report.keys, report.rows, {}, report.max_seq)
    assert len(told) > 1
    assert sum(told) == sum(report.rows.values())
    assert shared.online.all_pending() == {}
    rows = online_rows(shared, town)
    assert rows == online_rows(alone, town)
    assert None not in rows[0]


def test_a_part_that_fails_is_reported_by_key_and_stays_pending(
    pending: Callable[[str], LazyStores], town: Any, tmp_path: Path
) -> None:
    """Without the records nothing can be computed: every key says why and keeps its mark; the next run does it all."""
    stores = pending("home")
    marks = stores.online.all_pending()
    stores.records.close()
    kept = tmp_path / "kept"
    shutil.move(tmp_path / "home" / "records.sqlite", kept)
    failed = refresh_in_parts(InProcess(), None, stores, part_keys=600)
    assert failed.failed.keys() == marks.keys()
    assert all("StoreUnavailableError" in reason for reason in failed.failed.values())
    assert stores.online.all_pending() == marks
    shutil.move(kept, tmp_path / "home" / "records.sqlite")
    report = refresh(
        None,
        records=stores.records,
        online=stores.online,
        offline=stores.offline,
        settings=stores.feature_settings,
    )
    assert report.failed == {}
    assert stores.online.all_pending() == {}
    assert None not in online_rows(stores, town)[0]
