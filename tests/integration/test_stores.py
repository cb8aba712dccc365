"""Both online stores and both offline stores, one set of tests each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.errors import SchemaMismatchError, StoreUnavailableError
from graph_features.schema import Cadence, DType, FeatureSchema, ViewSchema
from graph_features.settings import PostgresSettings, RedisSettings
from graph_features.stores.base import OnlineStore
from graph_features.stores.blocks import RowBlock
from graph_features.stores.parquet import (
    FILES_PER_MERGE,
    RETIRED_AFTER_S,
    ParquetOfflineStore,
    live_files,
)
from graph_features.stores.postgres import PostgresOfflineStore
from graph_features.stores.redis import RedisOnlineStore
from graph_features.stores.sqlite import SqliteOnlineStore
from graph_features.stores.versions import WRITE_ORDER

CREATED_US = 946_684_800_000_000


def make_view(name: str = "account_small", entity: str = "account", extra: Sequence[FeatureSchema] = ()) -> ViewSchema:
    """A view of three features of different types."""
    types = {"count": DType.INT64, "mean": DType.FLOAT64, "names": DType.STRING_LIST}
    features = [FeatureSchema(name=n, dtype=t, description=n, unit="u", range="any") for n, t in types.items()]
    return ViewSchema(
        name=name, entity=entity, cadence=Cadence.EVENT, description="Small.", features=(*features, *extra)
    )


VIEW = make_view()
PAIRS = make_view("pair_small", "pair")


def rows(view: ViewSchema, keys: Sequence[tuple[str, ...]], as_of_ms: Sequence[int], seq: Sequence[int]) -> pa.Table:
    """Rows whose features follow from their version, so that a mixed row shows."""
    version = [ms * 1_000 + n for ms, n in zip(as_of_ms, seq, strict=True)]
    created = pa.array([CREATED_US + n for n in seq], pa.int64())
    values = {
        **{name: pa.array([key[i] for key in keys], pa.string()) for i, name in enumerate(view.keys)},
        "event_timestamp": pa.array(as_of_ms, pa.int64()).cast(pa.timestamp("ms", "UTC")),
        "created_timestamp": created.cast(pa.timestamp("us", "UTC")),
        "count": pa.array(version, pa.int64()),
        "mean": pa.array([v / 2 for v in version], pa.float64()),
        "names": pa.array([[str(v)] * (v % 4) for v in version], pa.list_(pa.string())),
    }
    return pa.table([values[name] for name in view.arrow_schema.names], schema=view.arrow_schema)


def read(store: OnlineStore, view: ViewSchema, keys: Sequence[tuple[str, ...]]) -> RowBlock:
    return RowBlock.from_packed(view, store.read([(view, keys)])[0])


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.services)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., OnlineStore]]:
    """open_store(project="ringfence"): a new store object over the same data."""
    opened: list[OnlineStore] = []
    server = request.getfixturevalue("redis_settings") if request.param == "redis" else None

    def make(project: str = "ringfence") -> OnlineStore:
        if server is not None:
            opened.append(RedisOnlineStore(server, project=project))
        else:
            opened.append(SqliteOnlineStore(tmp_path / "online.sqlite", project=project))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


class TestOnline:
    """Redis and SQLite behave alike."""

    def test_what_is_written_is_read(self, open_store: Callable[..., OnlineStore]) -> None:
        """Several views in one read, in the order asked for, None where nothing was written."""
        store = open_store()
        store.ping()
        keys = [(f"a{i}",) for i in range(1_500)]
        assert store.write(VIEW, rows(VIEW, keys, range(1, 1_501), range(1_500))) == 1_500
        assert store.write(PAIRS, rows(PAIRS, [("a", "b"), ("b", "a")], [5, 6], [1, 2])) == 2
        accounts, pairs, none = open_store().read(
            [(VIEW, [*keys[::-1], ("nobody",)]), (PAIRS, [("b", "a"), ("ab", "")]), (VIEW, [])]
        )
        block = RowBlock.from_packed(VIEW, accounts)
        assert block.as_of_ms[:1_500].tolist() == list(range(1_500, 0, -1))
        assert block.present.tolist() == [True] * 1_500 + [False]
        assert RowBlock.from_packed(PAIRS, pairs).as_of_ms.tolist() == [6, 0]
        assert none == []

    def test_newest_version_wins(self, open_store: Callable[..., OnlineStore]) -> None:
        """Later event time, then later created time; an equal version is written again, an older one never."""
        store = open_store()
        for as_of_ms, seq, stored in [(10, 5, 1), (9, 99, 0), (10, 4, 0), (10, 5, 1), (10, 6, 1), (11, 1, 1)]:
            assert store.write(VIEW, rows(VIEW, [("a",)], [as_of_ms], [seq])) == stored
        assert read(store, VIEW, [("a",)]).int64("count")[0].tolist() == [11_001]

    def test_versions_are_compared_as_64_bit_integers(self, open_store: Callable[..., OnlineStore]) -> None:
        """Numbers that a double cannot tell apart, and negative ones, keep their order."""
        store = open_store()
        big = 2**53 - CREATED_US
        assert store.write(VIEW, rows(VIEW, [("a",)], [2**33], [big + 1])) == 1
        assert store.write(VIEW, rows(VIEW, [("a",)], [2**33], [big])) == 0
        assert store.write(VIEW, rows(VIEW, [("b",)], [3], [-CREATED_US - 2])) == 1
        assert store.write(VIEW, rows(VIEW, [("b",)], [3], [-CREATED_US - 3])) == 0
        assert store.write(VIEW, rows(VIEW, [("b",)], [3], [-CREATED_US + 1])) == 1

    def test_a_row_of_another_feature_set_gives_way(self, open_store: Callable[..., OnlineStore]) -> None:
        """After a schema change old rows read as mismatched, and any new row replaces them."""
        store = open_store()
        store.write(VIEW, rows(VIEW, [("a",)], [100], [1]))
        wider = make_view(extra=[FeatureSchema(name="more", dtype=DType.INT64, description="", unit="u", range="any")])
        assert read(store, wider, [("a",)]).mismatched.tolist() == [True]
        table = rows(VIEW, [("a",)], [50], [1]).append_column("more", pa.array([7], pa.int64()))
        assert store.write(wider, table) == 1
        assert read(store, wider, [("a",)]).int64("more")[0].tolist() == [7]

    def test_writers_in_threads_never_lose_the_newest(self, open_store: Callable[..., OnlineStore]) -> None:
        """Eight threads write versions in random order; readers see whole rows that only get newer."""
        store, keys = open_store(), [(f"a{i}",) for i in range(20)]
        stop, wrong = threading.Event(), []

        def write(seed: int) -> None:
            order = random.Random(seed).sample(range(1, 41), 40)
            for version in order:
                store.write(VIEW, rows(VIEW, keys, [version] * 20, [seed] * 20))

        def watch() -> None:
            last = np.zeros(20, np.int64)
            while not stop.is_set():
                block = read(store, VIEW, keys)
                count, valid = block.int64("count")
                mixed = valid & ((count // 1_000 != block.as_of_ms) | (block.float64("mean") * 2 != count))
                if mixed.any() or (count < last).any():
                    wrong.append((count, last))
                last = count

        watchers = [threading.Thread(target=watch) for _ in range(2)]
        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(8)]
        for thread in (*watchers, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        for thread in watchers:
            thread.join()
        assert not wrong
        assert read(store, VIEW, keys).int64("count")[0].tolist() == [40_007] * 20

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_writers_in_processes(self, open_store: Callable[..., OnlineStore], method: str) -> None:
        """A store that was used before crosses fork and spawn; the newest of all processes' rows is kept."""
        store, keys = open_store(), [(f"a{i}",) for i in range(50)]
        store.ping()
        context = multiprocessing.get_context(method)
        workers = [context.Process(target=write_versions, args=(store, keys, seed)) for seed in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert read(store, VIEW, keys).int64("count")[0].tolist() == [20_002] * 50

    def test_pending_marks_are_cleared_by_their_own_token_only(self, open_store: Callable[..., OnlineStore]) -> None:
        """A mark that came after the tokens were read stays."""
        store, a, b, pair = open_store(), ("a",), ("b",), ("a", "b")
        store.mark_pending([a, b, pair])
        before = store.pending([a, pair, b, ("c",)])
        assert set(before) == {a, b, pair}
        store.mark_pending([a])
        assert store.pending([a])[a] != before[a]
        store.clear_pending(before)
        assert set(store.all_pending()) == {a}
        assert store.pending([a, b, pair]) == store.all_pending()
        store.clear_pending(store.all_pending())
        assert store.all_pending() == {}

    def test_rows_and_marks_come_together(self, open_store: Callable[..., Any]) -> None:
        """One call answers whether rows are there and fresh."""
        store = open_store()
        store.write(VIEW, rows(VIEW, [("a",)], [5], [1]))
        store.mark_pending([("a",), ("b",)])
        [values], tokens = store.read_with_pending([(VIEW, [("a",), ("b",)])], [("a",), ("c",)])
        assert [value is None for value in values] == [False, True]
        assert set(tokens) == {("a",)}

    def test_many_marks(self, open_store: Callable[..., OnlineStore]) -> None:
        """A large ingest marks hundreds of thousands of accounts and pairs."""
        store = open_store()
        keys = [(f"account-{i}",) if i % 2 else (f"account-{i}", f"account-{i + 1}") for i in range(350_000)]
        store.mark_pending(keys)
        tokens = store.all_pending()
        assert len(tokens) == 350_000
        assert store.pending(keys[:5_000]) == {key: tokens[key] for key in keys[:5_000]}
        store.clear_pending(tokens)
        assert store.all_pending() == {}

    def test_teardown_leaves_other_projects_alone(self, open_store: Callable[..., OnlineStore]) -> None:
        """One project's rows and marks go, another's whose name begins alike stay; so it is for views."""
        mine, other = open_store("one"), open_store("one_more")
        longer = make_view("account_small_too")
        for store in (mine, other):
            store.write(VIEW, rows(VIEW, [(f"a{i}",) for i in range(3_000)], [1] * 3_000, [1] * 3_000))
            store.write(longer, rows(longer, [("a",)], [1], [1]))
            store.mark_pending([("a",)])
        mine.delete_view(VIEW)
        assert not read(mine, VIEW, [(f"a{i}",) for i in range(3_000)]).present.any()
        assert read(mine, longer, [("a",)]).present.all()
        mine.teardown()
        assert not read(mine, longer, [("a",)]).present.any()
        assert mine.all_pending() == {}
        assert read(other, VIEW, [(f"a{i}",) for i in range(3_000)]).present.all()
        assert read(other, longer, [("a",)]).present.all()
        assert set(other.all_pending()) == {("a",)}

    def test_any_id_can_be_asked_for(self, open_store: Callable[..., OnlineStore]) -> None:
        """Lone surrogates, NUL, separators and very long ids are unknown, not errors, and never another's row."""
        store = open_store()
        store.write(PAIRS, rows(PAIRS, [("a", "b:c"), ("é*?[", "\x00")], [1, 2], [1, 1]))
        odd = [("a:b", "c"), ("a", "b:c"), ("\ud800", "x"), ("é*?[", "\x00"), ("x" * 10_000, "")]
        assert read(store, PAIRS, odd).present.tolist() == [False, True, False, True, False]
        assert store.pending(odd) == {}


def write_versions(store: OnlineStore, keys: Sequence[tuple[str, ...]], seed: int) -> None:
    """Write versions 1 to 20 of every key in a random order: what each worker process does."""
    for version in random.Random(seed).sample(range(1, 21), 20):
        store.write(VIEW, rows(VIEW, keys, [version] * len(keys), [seed] * len(keys)))
    store.close()


EVERY_TYPE = ViewSchema(
    name="Every.type",
    entity="pair",
    cadence=Cadence.EVENT,
    description="It's every type.",
    features=tuple(
        FeatureSchema(name=f"a {dtype.value}", dtype=dtype, description="", unit="u", range="any") for dtype in DType
    ),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
INT64 = st.integers(-(2**63), 2**63 - 1)
ITEMS: dict[DType, st.SearchStrategy[Any]] = {
    DType.INT64: INT64,
    DType.FLOAT64: st.floats(allow_nan=False),
    DType.TIMESTAMP: st.integers(0, 2**42),
    DType.INT64_LIST: st.lists(INT64, max_size=3),
    DType.FLOAT64_LIST: st.lists(st.floats(allow_nan=False), max_size=3),
    DType.STRING_LIST: st.lists(TEXT, max_size=3),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Rows of EVERY_TYPE with versions of their own."""
    n = draw(st.integers(0, 5))
    columns: list[list[Any]] = [draw(st.lists(TEXT, min_size=n, max_size=n)) for _ in EVERY_TYPE.keys]
    columns += [draw(st.lists(st.integers(0, 2**42), min_size=n, max_size=n)), list(range(n))]
    for feature in EVERY_TYPE.features:
        columns.append(draw(st.lists(st.none() | ITEMS[feature.dtype], min_size=n, max_size=n)))
    arrays = [
        pa.array(values, pa.int64() if pa.types.is_timestamp(field.type) else field.type).cast(field.type)
        for values, field in zip(columns, EVERY_TYPE.arrow_schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=EVERY_TYPE.arrow_schema)


@pytest.mark.services
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables())
def test_postgres_holds_what_was_written(postgres_settings: PostgresSettings, table: pa.Table) -> None:
    """Every value of every type arrives by binary COPY, read back by PostgreSQL's own driver."""
    with contextlib.closing(PostgresOfflineStore(postgres_settings)) as store:
        store.create_view(EVERY_TYPE)
        store.write(EVERY_TYPE, table, part="p")
    options: Any = postgres_settings.conninfo()
    with psycopg.connect(**options) as connection:
        rows = connection.execute('SELECT * FROM features."Every.type" ORDER BY created_timestamp').fetchall()
        connection.execute('DROP TABLE features."Every.type"')
    assert [list(row) for row in rows] == [list(row.values()) for row in table.to_pylist()]


@pytest.mark.services
class TestPostgres:
    """What only the PostgreSQL offline store does."""

    def test_many_rows_and_long_lists(self, postgres_settings: PostgresSettings) -> None:
        """Several chunks, one of them with a list that is much longer than the others."""
        keys = [(f"a{i}",) for i in range(30_000)]
        table = rows(VIEW, keys, range(30_000), range(30_000))
        names = [["x" * (i % 7)] * (20_000 if i == 17_000 else i % 3) for i in range(30_000)]
        table = table.set_column(table.column_names.index("names"), "names", pa.array(names, pa.list_(pa.string())))
        table = table.cast(VIEW.arrow_schema)
        with contextlib.closing(PostgresOfflineStore(postgres_settings)) as store:
            store.create_view(VIEW)
            assert store.write(VIEW, table, part="p") == 30_000
        options: Any = postgres_settings.conninfo()
        with psycopg.connect(**options) as connection:
            query = "SELECT sum(count), count(*), max(array_length(names, 1)) FROM features.account_small"
            assert connection.execute(query).fetchone() == (sum(table["count"].to_pylist()), 30_000, 20_000)

    def test_all_or_none(self, postgres_settings: PostgresSettings) -> None:
        """A table with a row that PostgreSQL refuses leaves nothing behind, and the store goes on working."""
        with contextlib.closing(PostgresOfflineStore(postgres_settings)) as store:
            store.create_view(VIEW)
            with pytest.raises(psycopg.DataError):
                store.write(VIEW, rows(VIEW, [("fine",), ("nul\0",)], [1, 2], [1, 2]), part="p")
            assert store.write(VIEW, rows(VIEW, [("fine",)], [5], [1]), part="p") == 1
        options: Any = postgres_settings.conninfo()
        with psycopg.connect(**options) as connection:
            assert connection.execute("SELECT count(*) FROM features.account_small").fetchone() == (1,)

    def test_a_retyped_feature_is_refused(self, postgres_settings: PostgresSettings) -> None:
        """The table keeps its column; the message says what to do."""
        retyped = replace(VIEW, features=(replace(VIEW.features[0], dtype=DType.FLOAT64), *VIEW.features[1:]))
        with contextlib.closing(PostgresOfflineStore(postgres_settings)) as store:
            store.create_view(VIEW)
            with pytest.raises(SchemaMismatchError, match="count is bigint, the feature is double precision"):
                store.create_view(retyped)

    def test_a_server_that_is_gone(self, postgres_settings: PostgresSettings) -> None:
        """A connection that broke is opened again; one that cannot be opened is our error."""
        options: Any = postgres_settings.conninfo()
        with contextlib.closing(PostgresOfflineStore(postgres_settings)) as store:
            store.ping()
            with psycopg.connect(**options, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
            with pytest.raises(StoreUnavailableError):
                store.ping()
            store.ping()
        with pytest.raises(StoreUnavailableError, match="services status"):
            PostgresOfflineStore(postgres_settings.model_copy(update={"port": 1})).ping()


class TestParquet:
    """What only the Parquet offline store does."""

    def test_small_files_are_merged(self, tmp_path: Path) -> None:
        """Hundreds of one-row writes leave few files, every row once, the last written version of each."""
        store = ParquetOfflineStore(tmp_path)
        for i in range(150):
            store.write(VIEW, rows(VIEW, [(f"a{i % 40}",)], [i % 40], [1]), part=f"live {i}")
        files = live_files(tmp_path / VIEW.name)
        assert len(files) < 2 * FILES_PER_MERGE
        table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
        kept = {}
        for row in sorted(table.to_pylist(), key=lambda row: row[WRITE_ORDER.name]):
            kept[row["account_id"]] = row
        assert len(kept) == 40
        assert {row["count"] for row in kept.values()} == {i * 1_000 + 1 for i in range(40)}

    def test_a_part_written_again_replaces_itself(self, tmp_path: Path) -> None:
        """Part names of any characters name one file each."""
        store = ParquetOfflineStore(tmp_path)
        for part in ("a/b", "a b", "../a", "a/b", "é" * 200):
            store.write(VIEW, rows(VIEW, [(part,)], [1], [1]), part=part)
        files = [file for file in live_files(tmp_path / VIEW.name) if pq.read_metadata(file).num_rows]
        assert len(files) == 4
        assert all(file.parent == tmp_path / VIEW.name for file in files)

    def test_a_reader_never_fails_or_sees_doubles(self, tmp_path: Path) -> None:
        """Who lists the files and then opens them finds all rows once, while writers merge under its eyes."""
        context = multiprocessing.get_context("spawn")
        ParquetOfflineStore(tmp_path).create_view(VIEW)
        writers = [context.Process(target=write_parts, args=(tmp_path, seed)) for seed in range(2)]
        for writer in writers:
            writer.start()
        last = 0
        while any(writer.is_alive() for writer in writers):
            files = live_files(tmp_path / VIEW.name)
            table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
            accounts = table["account_id"].to_pylist()
            assert len(accounts) == len(set(accounts)) >= last
            last = len(accounts)
        assert [writer.exitcode for writer in writers] == [0, 0]
        files = live_files(tmp_path / VIEW.name)
        assert sum(pq.read_metadata(file).num_rows for file in files) == 200

    def test_what_stopped_to_count_is_deleted_later(self, tmp_path: Path) -> None:
        """Old files and what a crash left go, after a while; files that count stay."""
        store = ParquetOfflineStore(tmp_path)
        folder = tmp_path / VIEW.name
        for i in range(FILES_PER_MERGE):
            store.write(VIEW, rows(VIEW, [(f"a{i}",)], [1], [1]), part=f"{i}")
        (folder / "0000000999-crash.parquet.tmp").write_bytes(b"half")
        before = time.time() - RETIRED_AFTER_S - 1
        for path in folder.glob("*.parquet*"):
            os.utime(path, (before, before))
        for i in range(FILES_PER_MERGE):
            store.write(VIEW, rows(VIEW, [(f"b{i}",)], [1], [1]), part=f"b{i}")
        assert not (folder / "0000000999-crash.parquet.tmp").exists()
        files = live_files(folder)
        assert sum(pq.read_metadata(file).num_rows for file in files) == 2 * FILES_PER_MERGE

    def test_a_retyped_feature_is_refused(self, tmp_path: Path) -> None:
        """The files keep their column; the message says what to do."""
        store = ParquetOfflineStore(tmp_path)
        store.create_view(VIEW)
        retyped = replace(VIEW, features=(replace(VIEW.features[0], dtype=DType.FLOAT64), *VIEW.features[1:]))
        with pytest.raises(SchemaMismatchError, match="count is int64, the feature is double"):
            store.write(retyped, retyped.arrow_schema.empty_table(), part="p")

    def test_a_view_that_was_never_created(self, tmp_path: Path) -> None:
        """Reading it says what to run."""
        with pytest.raises(StoreUnavailableError, match="ringfence apply"):
            live_files(tmp_path / "nothing")


def write_parts(folder: Path, seed: int) -> None:
    """Write a hundred one-row parts: what each of several refreshing processes does."""
    store = ParquetOfflineStore(folder)
    for i in range(100):
        store.write(VIEW, rows(VIEW, [(f"a{seed}-{i}",)], [i], [1]), part=f"{seed} {i}")


def test_a_server_that_does_not_answer_is_unavailable() -> None:
    """Nothing listens, or nothing speaks Redis: one error that names the address and the next step."""
    store = RedisOnlineStore(RedisSettings(port=1, timeout_s=0.5), project="ringfence")
    for call in (store.ping, store.all_pending, lambda: store.read([(VIEW, [("a",)])])):
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1 .*services status"):
            call()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    """SQLite's own errors come out as ours."""
    (tmp_path / "online.sqlite").write_text("not a database, but long enough to look like one" * 50)
    store = SqliteOnlineStore(tmp_path / "online.sqlite", project="ringfence")
    with pytest.raises(StoreUnavailableError, match=r"online\.sqlite"):
        store.ping()
