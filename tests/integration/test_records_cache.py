"""Reading everything through a cache folder: the answers of the store, whatever became of either."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from graph_features.clock import MAX_EVENT_MS
from graph_features.contracts import LABEL_SCHEMA, STATUS_SCHEMA, TRANSACTION_SCHEMA
from graph_features.settings import PostgresSettings
from graph_features.sources.base import Records
from graph_features.sources.postgres import PostgresRecords
from graph_features.sources.sqlite import SqliteRecords

Store = PostgresRecords | SqliteRecords
START = 1_700_000_000_000


class Place:
    """One database, with and without a cache folder, and a way to change it behind everybody's back."""

    def __init__(self, folder: Path, settings: PostgresSettings | None) -> None:
        self.cache = folder / "cache"
        self.path = folder / "records.sqlite"
        self.settings = settings
        self.plain, self.cached = self.open(None), self.open(self.cache)
        self.plain.create_schema()

    def open(self, cache: Path | None) -> Store:
        if self.settings is None:
            return SqliteRecords(self.path, cache=cache)
        return PostgresRecords(self.settings, cache=cache)

    def execute(self, statement: str) -> None:
        if self.settings is None:
            with sqlite3.connect(self.path) as connection:
                connection.execute(statement)
            connection.close()
            return
        with psycopg.connect(
            host=self.settings.host,
            port=self.settings.port,
            user=self.settings.user,
            password=self.settings.password.get_secret_value(),
            dbname=self.settings.database,
        ) as server:
            server.execute("SET search_path TO ringfence")
            server.execute(statement)

    def same(self, **bounds: int) -> None:
        agree(self.plain.read_all(**bounds), self.cached.read_all(**bounds))

    def same_of(self, *accounts: str, before_ms: int = MAX_EVENT_MS, reader: Store | None = None) -> None:
        wanted = self.plain.read_accounts(accounts, before_ms=before_ms)
        agree(wanted, (reader or self.cached).read_accounts(accounts, before_ms=before_ms))


def agree(wanted: Records, found: Records) -> None:
    assert tables(found) == tables(wanted)
    assert found.max_seq == wanted.max_seq


def tables(records: Records) -> list[pa.Table]:
    return [records.transactions, records.statuses, records.labels]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty store and its cache folder."""
    made = Place(tmp_path, request.getfixturevalue("postgres_settings") if request.param == "postgres" else None)
    yield made
    made.plain.close()
    made.cached.close()


@pytest.fixture
def write() -> Callable[[Store, range], None]:
    """write(store, numbers): payments with these numbers, each with a status and a label."""

    def do(store: Store, numbers: range) -> None:
        payments = [
            {"transaction_id": f"t{n}", "event_timestamp": START + n * 10, "sender_id": f"a{n % 3}"}
            | {"receiver_id": "b", "amount": n, "currency": "EUR", "amount_base": n, "sender_lat": n / 7}
            for n in numbers
        ]
        ids = [f"t{n}" for n in numbers]
        times = [START + n * 10 + 5 for n in numbers]
        store.write_transactions(pa.Table.from_pylist(payments, schema=TRANSACTION_SCHEMA))
        columns = {"transaction_id": ids, "status": ["reversed"] * len(ids), "status_timestamp": times}
        store.write_statuses(pa.table(columns, schema=STATUS_SCHEMA))
        columns = {"transaction_id": ids, "is_fraud": [True] * len(ids), "label_timestamp": times}
        store.write_labels(pa.table({**columns, "fraud_party": ["both"] * len(ids)}, schema=LABEL_SCHEMA))

    return do


def test_answers_are_those_of_the_store(place: Place, write: Callable[[Store, range], None]) -> None:
    """Through any number of writes, and whatever bounds are asked for, the cache changes no answer."""
    place.same()
    chance = random.Random(5)
    first = 0
    for _ in range(25):
        last = first + chance.randint(1, 30)
        write(place.plain, range(first, last))
        first = last
        place.same(max_seq=chance.randint(0, 3 * last + 5))
        place.same(before_ms=START + chance.randint(0, 10 * last))
        place.same(before_ms=START + chance.randint(0, 10 * last), max_seq=chance.randint(0, 3 * last))
        place.same()
    assert len(list(place.cache.glob("*.labels.arrow"))) < 8, "parts are joined"


def test_what_is_kept_is_not_read_again(place: Place, write: Callable[[Store, range], None]) -> None:
    """Rows that the store has lost since, all but the newest, still come from the cache."""
    write(place.plain, range(10))
    everything = place.cached.read_all()
    place.execute("DELETE FROM transactions WHERE transaction_id <> 't9'")
    write(place.plain, range(100, 102))
    found = place.cached.read_all()
    assert found.transactions["transaction_id"].to_pylist() == [f"t{n}" for n in (*range(10), 100, 101)]
    assert found.transactions.slice(0, 10) == everything.transactions


def test_a_store_set_back_is_noticed(place: Place, write: Callable[[Store, range], None]) -> None:
    """A store that lost its newest rows and went on otherwise is read anew."""
    write(place.plain, range(10))
    place.same()
    for table in ("transactions", "statuses", "labels"):
        place.execute(f"DELETE FROM {table} WHERE seq > 15")
    place.execute("UPDATE ingest_sequence SET last_seq = 15")
    place.same()
    write(place.plain, range(50, 80))
    place.same()


def test_another_store_is_noticed(place: Place, write: Callable[[Store, range], None], tmp_path: Path) -> None:
    """The cache of one store says nothing about another with the same numbers and the same last row."""
    write(place.plain, range(10))
    place.same()
    other = SqliteRecords(tmp_path / "other.sqlite", cache=place.cache)
    other.create_schema()
    write(other, range(5, 10))
    assert other.read_all().transactions["transaction_id"].to_pylist() == [f"t{n}" for n in range(5, 10)]
    other.close()
    place.same()


@pytest.mark.parametrize("damage", ["manifest", "files", "folder"])
def test_a_damaged_cache_is_made_anew(place: Place, write: Callable[[Store, range], None], damage: str) -> None:
    """Half a manifest, missing files or no folder: the store is read again."""
    write(place.plain, range(10))
    place.same()
    if damage == "manifest":
        manifest = place.cache / "manifest.json"
        manifest.write_text(manifest.read_text()[:40])
    elif damage == "files":
        for path in place.cache.glob("*.arrow"):
            path.unlink()
    else:
        shutil.rmtree(place.cache)
    place.same()
    write(place.plain, range(10, 12))
    place.same()


def test_readers_and_a_writer_at_once(place: Place, write: Callable[[Store, range], None]) -> None:
    """Several readers with one cache see, while rows come in, always everything up to the number they report."""
    problems: list[str] = []
    done = threading.Event()

    def read() -> None:
        store = place.open(place.cache)
        while not done.is_set():
            found = store.read_all()
            numbers = sorted(seq for table in tables(found) for seq in table["seq"].to_pylist())
            if numbers != list(range(1, found.max_seq + 1)):
                problems.append(f"{found.max_seq}: {numbers}")
        store.close()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for first in range(0, 120, 4):
        write(place.plain, range(first, first + 4))
    done.set()
    for reader in readers:
        reader.join()
    assert problems == []
    place.same()


def test_histories_are_those_of_the_store(place: Place, write: Callable[[Store, range], None]) -> None:
    """Through any number of writes, of other readers and of ids in any order, accounts have what the store has."""
    place.same_of("b")
    chance = random.Random(3)
    first, second = 0, place.open(place.cache)
    for _ in range(25):
        last = first + chance.randint(1, 30)
        write(place.plain, range(first, last))
        first = last
        if chance.random() < 0.2:
            place.same()
        place.same_of("nobody", "a1", "a0", reader=chance.choice([place.cached, second]))
        place.same_of("b", before_ms=START + chance.randint(0, 10 * last))
        place.same_of("a2", "b", before_ms=START + 5, reader=second)
        place.same_of()
    second.close()


def test_a_tail_that_grows_becomes_a_part(place: Place, write: Callable[[Store, range], None]) -> None:
    """What is read again and again goes to the disk, where the next process finds it; the answers stay the same."""
    write(place.plain, range(1_500))
    place.same_of("a0")
    assert not list(place.cache.glob("*.arrow")), "a short tail stays in memory"
    for first in range(1_500, 5_500, 1_000):
        write(place.plain, range(first, first + 1_000))
        place.same_of("a1", "b")
    assert len(list(place.cache.glob("*.accounts.arrow"))) == 1
    other = place.open(place.cache)
    place.same_of("a0", "b", reader=other)
    other.close()
    place.same()


def test_a_reader_far_behind_catches_up_in_pieces(place: Place, write: Callable[[Store, range], None]) -> None:
    """Without a cache, answers come from the store while the parts grow, a piece at each call."""
    write(place.plain, range(40_000))
    ends = []
    for _ in range(4):
        place.same_of("a1")
        (manifest,) = place.cache.glob("manifest.json")
        ends.append(json.loads(manifest.read_text())["parts"][-1]["up_to_seq"])
    assert ends == [50_000, 100_000, 120_000, 120_000]
    place.same_of("b")


def test_who_waits_has_everything_at_hand(place: Place, write: Callable[[Store, range], None]) -> None:
    """A reader far behind that may wait gets the whole index at the first call."""
    write(place.plain, range(20_000))
    store = place.open(place.cache)
    assert store.snapshot() is None
    snapshot = store.snapshot(wait=True)
    assert snapshot is not None
    assert snapshot.max_seq == place.plain.max_seq() == 60_000
    store.close()


@pytest.mark.parametrize("joined", [False, True])
def test_histories_of_a_store_set_back_are_read_anew(
    place: Place, write: Callable[[Store, range], None], joined: bool
) -> None:
    """A tail, or parts, that the store no longer agrees with are dropped."""
    write(place.plain, range(10))
    if joined:
        place.same()
    place.same_of("a0", "b")
    for table in ("transactions", "statuses", "labels"):
        place.execute(f"DELETE FROM {table} WHERE seq > 3")
    place.execute("UPDATE ingest_sequence SET last_seq = 3")
    write(place.plain, range(50, 80))
    for _ in range(3):
        place.same_of("a0", "b")
    place.same()


def test_histories_outlive_their_files(place: Place, write: Callable[[Store, range], None]) -> None:
    """A cache folder may be removed at any time, also while a process reads through it."""
    write(place.plain, range(10))
    place.same()
    place.same_of("b")
    shutil.rmtree(place.cache)
    for first in (10, 20, 30):
        place.same_of("b", "a1")
        write(place.plain, range(first, first + 10))
        place.same_of("b", "a2")
