"""The batch driver and the on-demand driver give the same rows, through every record store."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.catalog import catalog
from graph_features.contracts import LABEL_SCHEMA, STATUS_SCHEMA, TRANSACTION_SCHEMA
from graph_features.drivers import batch, on_demand
from graph_features.edges import EdgeTable
from graph_features.settings import FeatureSettings
from graph_features.sources.sqlite import SqliteRecords

if TYPE_CHECKING:
    from graph_features.settings import PostgresSettings
    from graph_features.sources.base import RecordStore

SETTINGS = FeatureSettings()
VIEWS = catalog().event_views()
EVER = 2**60

examples = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def write(store: RecordStore, history: Any) -> None:
    """Ingest a history as it stands."""
    records = history.records()
    assert store.write_transactions(records.transactions.select(TRANSACTION_SCHEMA.names)).rejected == {}
    assert store.write_statuses(records.statuses.select(STATUS_SCHEMA.names)).rejected == {}
    assert store.write_labels(records.labels.select(LABEL_SCHEMA.names)).rejected == {}


def in_batch(store: RecordStore, keys: dict[str, list[tuple[str, ...]]], before_ms: int) -> dict[str, pa.Table]:
    """The newest rows of `keys` from everything that is stored, whatever its time: features must not look ahead."""
    everything = store.read_all()
    edges = EdgeTable.from_arrow(
        everything.transactions, everything.statuses, everything.labels, max_seq=everything.max_seq
    )
    return {
        view.name: pa.concat_tables(
            [
                view.arrow_schema.empty_table(),
                *batch.latest_rows(view, edges, keys[view.entity], before_ms=before_ms, settings=SETTINGS),
            ]
        )
        for view in VIEWS
    }


def check(store: RecordStore, history: Any, keys: dict[str, list[tuple[str, ...]]], before_ms: int) -> None:
    wanted = in_batch(store, keys, before_ms)
    done = on_demand.latest_rows(VIEWS, keys, store, before_ms=before_ms, settings=SETTINGS)
    assert done.failed == {}
    for view in VIEWS:
        # Bit for bit: both run the same kernels over the same history.
        assert done.tables[view.name].equals(wanted[view.name]), view.name
    seen = history.before(before_ms)
    known = {"account": {(account,) for account in seen.accounts()}, "pair": set(seen.pairs())}
    assert done.never_seen == {key for entity in keys for key in keys[entity] if key not in known[entity]}


def unique_ids(history: Any) -> tuple[Any, str]:
    """The same history under ids that begin with a mark of their own, so that one store can hold many; and the mark."""
    mark = secrets.token_hex(6)

    def own(item: Any) -> Any:
        renamed = {"id": mark + item.id}
        if hasattr(item, "sender"):
            renamed |= {"sender": mark + item.sender, "receiver": mark + item.receiver}
        return replace(item, **renamed)

    return replace(
        history,
        payments=tuple(map(own, history.payments)),
        statuses=tuple(map(own, history.statuses)),
        labels=tuple(map(own, history.labels)),
    ), mark


def draw_case(data: Any, stories: Any) -> tuple[Any, dict[str, list[tuple[str, ...]]], int]:
    drawn = data.draw(stories.histories(accounts="abcdefgh"))
    # Stores refuse the same status or label twice; what is left differs in time.
    history = replace(
        drawn,
        statuses=tuple({(c.id, c.ts_ms): c for c in drawn.statuses}.values()),
        labels=tuple({(c.id, c.ts_ms): c for c in drawn.labels}.values()),
    )
    history, mark = unique_ids(history)
    name = st.sampled_from("abcdefghz").map(lambda letter: mark + letter)
    accounts = data.draw(st.lists(st.tuples(name), unique=True, max_size=4))
    pairs = data.draw(st.lists(st.tuples(name, name), unique=True, max_size=4))
    return history, {"account": sorted(accounts), "pair": sorted(pairs)}, data.draw(stories.instants)


@examples
@given(data=st.data())
def test_a_few_accounts_read_alone_have_the_rows_of_the_batch(data: Any, stories: Any) -> None:
    """On any history, any keys and any instant, reading only the accounts' own payments changes nothing."""
    history, keys, before_ms = draw_case(data, stories)
    store = stories.MemoryRecords(history=history.numbered())
    check(store, history, keys, before_ms)
    assert store.reads <= 2


@pytest.fixture(scope="module", params=["asked", "indexed"])
def sqlite_records(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteRecords]:
    folder = tmp_path_factory.mktemp("records")
    store = SqliteRecords(folder / "records.sqlite", cache=folder / "cache" if request.param == "indexed" else None)
    store.create_schema()
    yield store
    store.close()


@examples
@given(data=st.data())
def test_the_drivers_agree_through_sqlite(data: Any, stories: Any, sqlite_records: SqliteRecords) -> None:
    """The same through SQLite, which holds the histories of every example before this one too; asked, or by index."""
    history, keys, before_ms = draw_case(data, stories)
    write(sqlite_records, history)
    if data.draw(st.booleans()):
        sqlite_records.read_all()  # what was written so far is in parts of the cache, if there is one
    check(sqlite_records, history, keys, before_ms)


@pytest.mark.services
@pytest.mark.parametrize("indexed", [False, True])
def test_the_drivers_agree_through_postgres(
    stories: Any, postgres_settings: PostgresSettings, tmp_path: Path, indexed: bool
) -> None:
    """The same through PostgreSQL."""
    from graph_features.sources.postgres import PostgresRecords

    store = PostgresRecords(postgres_settings, cache=tmp_path if indexed else None)
    store.create_schema()

    @examples
    @given(data=st.data())
    def agree(data: Any) -> None:
        history, keys, before_ms = draw_case(data, stories)
        write(store, history)
        check(store, history, keys, before_ms)

    agree()
    store.close()
