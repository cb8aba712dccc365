"""Both record stores keep one contract: every test here runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from graph_features.contracts import (
    LABEL_SCHEMA,
    STATUS_SCHEMA,
    STORED_LABEL_SCHEMA,
    STORED_STATUS_SCHEMA,
    STORED_TRANSACTION_SCHEMA,
    TRANSACTION_SCHEMA,
)
from graph_features.errors import InvalidInputError, StoreUnavailableError
from graph_features.schema import EntityKey
from graph_features.settings import PostgresSettings
from graph_features.sources.checksum import bucket_checksums
from graph_features.sources.postgres import PostgresRecords
from graph_features.sources.records import CONFLICT, UNKNOWN_TRANSACTION
from graph_features.sources.sqlite import SqliteRecords

Store = PostgresRecords | SqliteRecords
NAMES = ["sqlite", pytest.param("postgres", marks=pytest.mark.services)]
DAY = 86_400_000
START = 1_700_000_000_000


@pytest.fixture(params=NAMES)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """open_store(): one more client of the same, empty database."""
    opened: list[Store] = []
    settings = request.getfixturevalue("postgres_settings") if request.param == "postgres" else None

    def make() -> Store:
        store = SqliteRecords(tmp_path / "home" / "records.sqlite") if settings is None else PostgresRecords(settings)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    """An empty store with its tables."""
    made = open_store()
    made.create_schema()
    return made


def payment(number: int, sender: str = "a", receiver: str = "b", at: int | None = None, **values: object) -> dict:
    minor = values.pop("amount", 100 + number)
    row = {
        "transaction_id": f"t{number}",
        "event_timestamp": START + number if at is None else at,
        "sender_id": sender,
        "receiver_id": receiver,
        "amount": minor,
        "currency": "EUR",
        "amount_base": minor,
    }
    return row | values


def payments(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=TRANSACTION_SCHEMA)


def label(number: int, is_fraud: bool = True, at: int = START + 7 * DAY, party: str = "both") -> dict:
    return {"transaction_id": f"t{number}", "is_fraud": is_fraud, "label_timestamp": at, "fraud_party": party}


def labels(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=LABEL_SCHEMA)


def statuses(*rows: tuple[int, str, int]) -> pa.Table:
    columns = [{"transaction_id": f"t{n}", "status": status, "status_timestamp": at} for n, status, at in rows]
    return pa.Table.from_pylist(columns, schema=STATUS_SCHEMA)


def everything(store: Store) -> tuple[pa.Table, pa.Table, pa.Table, int]:
    records = store.read_all()
    return records.transactions, records.statuses, records.labels, records.max_seq


def test_an_empty_store_answers(store: Store) -> None:
    """Every read of an empty store has an answer with the right columns."""
    records = store.read_all()
    assert records.transactions.schema == STORED_TRANSACTION_SCHEMA
    assert records.statuses.schema == STORED_STATUS_SCHEMA
    assert records.labels.schema == STORED_LABEL_SCHEMA
    assert records.max_seq == store.max_seq() == 0
    assert store.event_range_ms() is None
    assert list(store.read_transactions(after_seq=0, up_to_seq=10)) == []
    assert store.read_accounts(["a"], before_ms=START).transactions.num_rows == 0
    assert store.read_accounts([], before_ms=START).transactions.num_rows == 0
    assert store.known_accounts([], before_ms=START) == set()
    assert store.checksum() == store.checksum(bucket=0) == {}
    store.barrier()
    store.ping()


def test_rows_come_back_as_they_were_written(store: Store) -> None:
    """Values that text formats stumble over survive: quotes, separators, NA, empty strings, floats, extreme times."""
    rows = [
        payment(1, 'a,"b"', "NA", channel="", device_id="null", sender_lat=0.1 + 0.2, sender_lon=-1e-300),
        payment(2, "\\.", "'; --", channel=None, ip="::1", receiver_lat=-90.0, receiver_lon=179.99999999999997),
        payment(3, "zwölf", "日本", at=0, amount=10**15, sender_country="DE", receiver_country="FR"),
        payment(4, " x ", "\\N", at=4_102_444_799_999, amount=0, card_id="%s %(x)s"),
    ]
    table = payments(*rows)
    result = store.write_transactions(table)
    assert result.inserted.all()
    assert result.max_seq == 4
    stored = store.read_all().transactions
    assert stored.drop_columns(["seq"]).equals(table)
    assert stored["seq"].to_pylist() == [1, 2, 3, 4]
    assert store.write_transactions(table).rejected == {}
    assert store.read_accounts([row["sender_id"] for row in rows], before_ms=2**42).transactions.equals(stored)
    assert store.event_range_ms() == (0, 4_102_444_799_999)


def test_writing_twice_changes_nothing(store: Store) -> None:
    """The same transactions, statuses and labels again are known, take no numbers and mark nothing."""
    first = payments(*(payment(n) for n in range(5)))
    store.write_transactions(first)
    store.write_statuses(statuses((1, "completed", START + 9)))
    store.write_labels(labels(label(1)))
    before = everything(store)
    marked: list[list[EntityKey]] = []
    for result in (
        store.write_transactions(first, marked.append),
        store.write_statuses(statuses((1, "completed", START + 9)), marked.append),
        store.write_labels(labels(label(1)), marked.append),
    ):
        assert not result.inserted.any()
        assert result.rejected == {}
        assert result.max_seq == 7
    assert everything(store) == before
    assert marked == []


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 1},
        {"event_timestamp": START},
        {"receiver_id": "z"},
        {"channel": "web"},
        {"sender_lat": 1.0},
    ],
)
def test_other_content_is_a_conflict(store: Store, change: dict) -> None:
    """The same id with any column changed is rejected, its neighbours in the batch are written, the old row stays."""
    store.write_transactions(payments(payment(1)))
    result = store.write_transactions(payments(payment(2), payment(1) | change, payment(3)))
    assert result.inserted.tolist() == [True, False, True]
    assert result.rejected == {1: CONFLICT}
    stored = store.read_all().transactions
    assert stored["transaction_id"].to_pylist() == ["t1", "t2", "t3"]
    assert stored.slice(0, 1).drop_columns(["seq"]).equals(payments(payment(1)))


def test_a_value_is_not_the_same_as_none(store: Store) -> None:
    """A known row that lacks an optional value conflicts with one that has it, and the other way round."""
    store.write_transactions(payments(payment(1), payment(2, channel="web")))
    result = store.write_transactions(payments(payment(1, channel="web"), payment(2)))
    assert result.rejected == {0: CONFLICT, 1: CONFLICT}


def test_duplicates_inside_a_batch(store: Store) -> None:
    """The first of equal ids wins; later ones are known or in conflict with it, or with what was stored before."""
    store.write_transactions(payments(payment(9)))
    rows = [payment(1), payment(1), payment(1, "x"), payment(2), payment(9, "x"), payment(9)]
    result = store.write_transactions(payments(*rows))
    assert result.inserted.tolist() == [True, False, False, True, False, False]
    assert result.rejected == {2: CONFLICT, 4: CONFLICT}
    twice = store.write_labels(labels(label(1), label(1, False), label(1), label(1, False, at=START + 8 * DAY)))
    assert twice.inserted.tolist() == [True, False, False, True]
    assert twice.rejected == {1: CONFLICT}


def test_labels_and_statuses_have_their_own_keys(store: Store) -> None:
    """A label may be revised later; the same instant with another verdict or party conflicts. A status may repeat."""
    store.write_transactions(payments(payment(1)))
    store.write_labels(labels(label(1)))
    result = store.write_labels(labels(label(1, False), label(1, party="sender"), label(1, False, at=START + 9 * DAY)))
    assert result.rejected == {0: CONFLICT, 1: CONFLICT}
    assert result.inserted.tolist() == [False, False, True]
    changes = statuses((1, "completed", START + 5), (1, "reversed", START + 5), (1, "completed", START + 6))
    assert store.write_statuses(changes).inserted.all()


def test_unknown_transactions_have_no_status_and_no_label(store: Store) -> None:
    """What speaks of a transaction that was never accepted is rejected; the rest of the batch is written."""
    store.write_transactions(payments(payment(1)))
    changes = store.write_statuses(statuses((2, "failed", START), (1, "failed", START), (2, "failed", START)))
    assert changes.rejected == {0: UNKNOWN_TRANSACTION, 2: UNKNOWN_TRANSACTION}
    assert changes.inserted.tolist() == [False, True, False]
    verdicts = store.write_labels(labels(label(7)))
    assert verdicts.rejected == {0: UNKNOWN_TRANSACTION}
    assert verdicts.max_seq == store.max_seq() == 2


def test_touched_entities_are_those_of_new_rows(store: Store) -> None:
    """before_commit sees accounts and pairs of new rows, each once; for statuses and labels those of the payment."""
    store.write_transactions(payments(payment(1, "a", "b")))
    seen: list[list[EntityKey]] = []
    rows = [
        payment(1, "a", "b"),
        payment(2, "c", "d"),
        payment(3, "d", "c"),
        payment(4, "e", "e"),
        payment(5, "c", "d"),
    ]
    store.write_transactions(payments(*rows), seen.append)
    store.write_statuses(statuses((1, "failed", START), (9, "failed", START)), seen.append)
    store.write_labels(labels(label(2)), seen.append)
    assert all(len(set(keys)) == len(keys) for keys in seen)
    assert [set(keys) for keys in seen] == [
        {("c",), ("d",), ("e",), ("c", "d"), ("d", "c"), ("e", "e")},
        {("a",), ("b",), ("a", "b")},
        {("c",), ("d",), ("c", "d")},
    ]


def test_nothing_is_committed_when_marking_fails(store: Store) -> None:
    """An error inside before_commit leaves no row, no number and no lock behind, and reaches the caller."""

    def fail(_: list[EntityKey]) -> None:
        raise StoreUnavailableError("the online store is away")

    with pytest.raises(StoreUnavailableError, match="online store is away"):
        store.write_transactions(payments(payment(1)), fail)
    assert everything(store)[3] == 0
    assert store.read_all().transactions.num_rows == 0
    assert store.write_transactions(payments(payment(2))).max_seq == 1


def test_marks_are_set_before_anybody_sees_the_rows(store: Store, open_store: Callable[[], Store]) -> None:
    """While before_commit runs, another client sees neither the rows nor their numbers."""
    other = open_store()
    seen: list[int] = []
    store.write_transactions(payments(payment(1)), lambda _: seen.append(other.max_seq()))
    assert seen == [0]
    assert other.max_seq() == 1


def test_the_barrier_waits_for_a_write_under_way(store: Store, open_store: Callable[[], Store]) -> None:
    """barrier() returns only after a writer that has begun is through, and then its rows are there."""
    inside, go_on = threading.Event(), threading.Event()

    def pause(_: list[EntityKey]) -> None:
        inside.set()
        assert go_on.wait(30)

    other = open_store()
    with ThreadPoolExecutor(2) as pool:
        write = pool.submit(store.write_transactions, payments(payment(1)), pause)
        assert inside.wait(30)
        barrier = pool.submit(other.barrier)
        time.sleep(0.2)
        assert not barrier.done()
        go_on.set()
        barrier.result(30)
        assert other.max_seq() == 1
        write.result(30)


def test_reads_see_what_was_known_before_an_instant(store: Store) -> None:
    """Transactions, statuses and labels at or after before_ms, each by its own time, are not there."""
    store.write_transactions(payments(payment(1, at=START), payment(2, at=START + 10), payment(3, at=START + 20)))
    store.write_statuses(statuses((1, "completed", START + 5), (1, "reversed", START + 10)))
    store.write_labels(labels(label(1, at=START + 9), label(2, at=START + 11)))
    for records in (store.read_all(before_ms=START + 10), store.read_accounts(["a"], before_ms=START + 10)):
        assert records.transactions["transaction_id"].to_pylist() == ["t1"]
        assert records.statuses["status"].to_pylist() == ["completed"]
        assert records.labels["transaction_id"].to_pylist() == ["t1"]
        assert records.max_seq == 7
    early = store.read_all(max_seq=4)
    assert (early.transactions.num_rows, early.statuses.num_rows, early.labels.num_rows) == (3, 1, 0)
    assert early.max_seq == 4
    assert store.read_all(max_seq=99).max_seq == 7


def test_accounts_are_read_from_both_sides_once(store: Store) -> None:
    """A payment between two of the asked accounts, or of an account with itself, comes once; strangers do not come."""
    rows = [
        payment(1, "a", "b"),
        payment(2, "b", "a"),
        payment(3, "a", "a"),
        payment(4, "c", "a"),
        payment(5, "c", "d"),
    ]
    store.write_transactions(payments(*rows))
    store.write_statuses(statuses((4, "failed", START + 50), (5, "failed", START + 50)))
    store.write_labels(labels(label(4), label(5)))
    records = store.read_accounts(["a", "b", "nobody"], before_ms=START + 30 * DAY)
    assert records.transactions["transaction_id"].to_pylist() == ["t1", "t2", "t3", "t4"]
    assert records.statuses["transaction_id"].to_pylist() == ["t4"]
    assert records.labels["transaction_id"].to_pylist() == ["t4"]
    assert store.known_accounts(["a", "d", "nobody"], before_ms=START + 6) == {"a", "d"}
    assert store.known_accounts(["a", "d"], before_ms=START + 5) == {"a"}
    assert store.known_accounts(["a"], before_ms=START + 1) == set()


def test_transactions_stream_by_number(store: Store) -> None:
    """read_transactions gives each row after the mark once, in order, in batches, whatever else took numbers."""
    store.write_transactions(payments(*(payment(n) for n in range(1, 8))))
    store.write_labels(labels(label(1), label(2)))
    store.write_transactions(payments(*(payment(n) for n in range(8, 12))))
    batches = list(store.read_transactions(after_seq=2, up_to_seq=11, batch_rows=3))
    assert [batch.num_rows for batch in batches] == [3, 3, 1]
    assert [seq for batch in batches for seq in batch["seq"].to_pylist()] == [3, 4, 5, 6, 7, 10, 11]
    assert all(batch.schema == STORED_TRANSACTION_SCHEMA for batch in batches)


def test_checksums_name_the_difference(store: Store) -> None:
    """The store's checksums are those of its rows; one other amount changes its bucket, and its number inside it."""
    store.write_transactions(payments(*(payment(n) for n in range(50))))
    stored = store.read_all().transactions
    assert store.checksum() == bucket_checksums(stored)
    single = store.checksum(bucket=0)
    assert list(single) == list(range(1, 51))
    assert sum(value for _, value in single.values()) % 2**64 == store.checksum()[0][1]
    amounts = stored["amount_base"].to_numpy().copy()
    amounts[30] += 1
    changed = bucket_checksums(stored.set_column(7, stored.schema.field("amount_base"), pa.array(amounts)), 0)
    assert [seq for seq in single if single[seq] != changed[seq]] == [31]
    assert store.checksum(bucket=1) == {}


def test_null_ids_are_refused(store: Store) -> None:
    """A required value that is missing is named, and nothing is written."""
    table = pa.table({**{name: payments(payment(1))[name] for name in TRANSACTION_SCHEMA.names}})
    table = table.set_column(2, "sender_id", pa.nulls(1, pa.string()))
    with pytest.raises(InvalidInputError, match="sender_id"):
        store.write_transactions(table)
    assert store.max_seq() == 0


def test_two_writers_share_one_gapless_sequence(store: Store, open_store: Callable[[], Store]) -> None:
    """Writers at once: numbers without gaps, and a reader who has seen N never finds anything new at or below N."""
    writers, batches, rows = 4, 12, 7
    stop = threading.Event()
    violations: list[str] = []

    def write(writer: int) -> None:
        mine = open_store()
        for batch in range(batches):
            first = 1_000 * writer + batch * rows
            mine.write_transactions(payments(*(payment(first + n) for n in range(rows))))
            mine.write_labels(labels(label(first)))

    def watch() -> None:
        mine = open_store()
        counts: dict[int, int] = {}
        while not stop.is_set():
            records = mine.read_all()
            seen = [
                seq for t in (records.transactions, records.statuses, records.labels) for seq in t["seq"].to_pylist()
            ]
            if sorted(seen) != list(range(1, records.max_seq + 1)):
                violations.append(f"up to {records.max_seq}: {len(seen)} rows")
            counts[records.max_seq] = len(seen)

    with ThreadPoolExecutor(writers + 1) as pool:
        watcher = pool.submit(watch)
        for future in [pool.submit(write, writer) for writer in range(writers)]:
            future.result(60)
        stop.set()
        watcher.result(60)
    assert violations == []
    assert store.max_seq() == writers * batches * (rows + 1)


def test_the_same_rows_from_two_writers_are_stored_once(store: Store, open_store: Callable[[], Store]) -> None:
    """Two clients that write equal batches at once insert every row exactly once between them."""
    table = payments(*(payment(n) for n in range(200)))
    start = threading.Barrier(2)

    def write() -> int:
        mine = open_store()
        start.wait(30)
        return sum(int(mine.write_transactions(table.slice(n, 20)).inserted.sum()) for n in range(0, 200, 20))

    with ThreadPoolExecutor(2) as pool:
        inserted = [future.result(60) for future in [pool.submit(write), pool.submit(write)]]
    assert sum(inserted) == 200
    assert store.max_seq() == store.read_all().transactions.num_rows == 200


def _count_in_child(store: Store, answers: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    answers.put((store.max_seq(), store.write_transactions(payments(payment(77))).max_seq))
    store.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(store: Store) -> None:
    """A store used before a fork works in the child, and the parent's connections are as good as before."""
    store.write_transactions(payments(payment(1)))
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_count_in_child, args=(store, answers))
    child.start()
    assert answers.get(timeout=30) == (1, 2)
    child.join(30)
    assert child.exitcode == 0
    assert store.max_seq() == 2
    assert store.read_accounts(["a"], before_ms=START + DAY).transactions.num_rows == 2


def test_named_locks_keep_others_out(store: Store, open_store: Callable[[], Store]) -> None:
    """One holder per name; another name is free; waiting gets the lock when it is let go; writers are not disturbed."""
    other = open_store()
    with store.lock("sync") as held:
        assert held
        with other.lock("sync") as second, other.lock("leader/1") as third:
            assert not second
            assert third
        began = time.monotonic()
        with other.lock("sync", wait_s=0.3) as waited:
            assert not waited
        assert 0.25 < time.monotonic() - began < 10
        other.write_transactions(payments(payment(1)))
    with other.lock("sync", wait_s=5) as held:
        assert held


def test_a_lock_is_handed_over(store: Store, open_store: Callable[[], Store]) -> None:
    """Who waits for a lock has it soon after its holder lets go."""
    other = open_store()
    with ThreadPoolExecutor(1) as pool:

        def wait() -> bool:
            with other.lock("sync", wait_s=30) as held:
                return held

        with store.lock("sync"):
            waiting = pool.submit(wait)
            time.sleep(0.2)
            assert not waiting.done()
        assert waiting.result(30)


def test_create_schema_at_once_and_twice(open_store: Callable[[], Store]) -> None:
    """Several clients may create the tables at the same moment, and again later, without losing anything."""
    stores = [open_store() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: one.create_schema(), stores))
    stores[0].write_transactions(payments(payment(1)))
    stores[1].create_schema()
    assert stores[2].max_seq() == 1


def test_without_tables_the_error_says_what_to_do(open_store: Callable[[], Store], tmp_path: Path) -> None:
    """A database without our tables is named as such."""
    (tmp_path / "home").mkdir()
    with pytest.raises(StoreUnavailableError, match="create_schema"):
        open_store().ping()


def test_a_large_batch_keeps_its_order(store: Store) -> None:
    """Numbers follow the batch's own order, so that a rerun after a crash gives the same numbers."""
    order = np.random.default_rng(3).permutation(3_000)
    store.write_transactions(payments(*(payment(int(n)) for n in order)))
    assert store.read_all().transactions["transaction_id"].to_pylist() == [f"t{n}" for n in order]


def test_sqlite_says_when_its_file_is_no_database(tmp_path: Path) -> None:
    """A file of something else is reported, not overwritten."""
    path = tmp_path / "records.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be read as one" * 40)
    records = SqliteRecords(path)
    with pytest.raises(StoreUnavailableError, match="not a database"):
        records.ping()
    records.close()
    assert path.read_bytes().startswith(b"not a database")


def test_postgres_that_is_not_there_is_said_at_once() -> None:
    """An unreachable server is a StoreUnavailableError naming it, within a second."""
    records = PostgresRecords(PostgresSettings(port=1, password="hush"))  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1.*refused") as caught:
        records.ping()
    assert time.monotonic() - began < 5
    assert "hush" not in str(caught.value)


@pytest.mark.services
def test_a_wrong_password_is_said_without_showing_it(postgres_settings: PostgresSettings) -> None:
    """A refused log-in is a StoreUnavailableError that names user and reason, never the password."""
    wrong = postgres_settings.model_copy(update={"password": type(postgres_settings.password)("not-the-one")})
    with pytest.raises(StoreUnavailableError, match="authentication failed") as caught:
        PostgresRecords(wrong).ping()
    assert "not-the-one" not in str(caught.value)


@pytest.mark.services
def test_postgres_connections_that_were_cut_are_replaced(postgres_settings: PostgresSettings) -> None:
    """After the server has ended our idle connections (a restart does), the next call works."""
    import psycopg

    records = PostgresRecords(postgres_settings)
    records.create_schema()
    records.write_transactions(payments(payment(1)))
    with psycopg.connect(**postgres_settings.conninfo(), autocommit=True) as admin:  # type: ignore[arg-type]
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    assert records.max_seq() == 1
    records.close()
