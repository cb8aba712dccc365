"""Ingest on real stores: once is twice, a crash leaves nothing half done, every refused row is named."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graph_features.errors import InvalidInputError, SettingsError, StoreUnavailableError
from graph_features.ingest.ingest import IngestProgress, IngestReport, ingest_file
from graph_features.ingest.mapping import ColumnMapping, parse_mapping
from graph_features.schema import EntityKey
from graph_features.settings import IngestSettings, PostgresSettings
from graph_features.sources.postgres import PostgresRecords
from graph_features.sources.sqlite import SqliteRecords

Store = PostgresRecords | SqliteRecords
HEADER = ["transaction_id", "event_timestamp", "sender_id", "receiver_id", "amount", "currency", "is_fraud", "status"]
MAPPING = parse_mapping({"columns": {"label_timestamp": {"delay": "7d"}}})


class Place:
    """Where a test keeps its records: makes clients of one database, here and in other processes."""

    def __init__(self, profile: str, folder: Path, fresh_database: Callable[[], PostgresSettings] | None) -> None:
        self._profile = profile
        self._path = folder / "records.sqlite"
        self._settings = fresh_database() if fresh_database else None
        self._opened: list[Store] = []

    def open(self) -> Store:
        store = SqliteRecords(self._path) if self._settings is None else PostgresRecords(self._settings)
        self._opened.append(store)
        return store

    def close(self) -> None:
        for store in self._opened:
            store.close()

    def environment(self) -> dict[str, str]:
        """What a subprocess needs to open the same records."""
        values = {"TEST_RECORDS": str(self._path)}
        if self._settings is not None:
            shown = self._settings.model_dump() | {"password": self._settings.password.get_secret_value()}
            values = {f"RINGFENCE_POSTGRES_{name.upper()}": str(value) for name, value in shown.items()}
        return {**os.environ, **values}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def make_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Place]]:
    """make_place(): one more empty place for records."""
    fresh = request.getfixturevalue("fresh_database") if request.param == "postgres" else None
    places: list[Place] = []

    def make() -> Place:
        folder = tmp_path / f"place{len(places)}"
        folder.mkdir()
        places.append(Place(request.param, folder, fresh))
        return places[-1]

    yield make
    for place in places:
        place.close()


@pytest.fixture
def place(make_place: Callable[[], Place]) -> Place:
    """An empty place for records."""
    return make_place()


def row(number: int, **change: object) -> list[object]:
    values = {
        "transaction_id": f"t{number}",
        "event_timestamp": f"2026-03-{1 + number % 28:02}T12:00:{number % 60:02}Z",
        "sender_id": f"a{number % 13}",
        "receiver_id": f"b{number % 7}",
        "amount": f"{number}.25",
        "currency": "EUR",
        "is_fraud": int(number % 11 == 0),
        "status": "failed" if number % 5 == 0 else "",
    }
    return [(values | change)[name] for name in HEADER]


def write_csv(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


@pytest.fixture
def payments_csv(tmp_path: Path) -> Path:
    """1,000 good rows."""
    return write_csv(tmp_path / "payments.csv", [row(number) for number in range(1_000)])


def ingest(path: Path, records: Store, *, mapping: ColumnMapping = MAPPING, **options: Any) -> IngestReport:
    defaults: dict[str, Any] = {
        "kind": "transactions",
        "settings": IngestSettings(),
        "mark_pending": None,
        "rejects_path": path.with_suffix(".rejects.csv"),
        "chunk_rows": 150,
    }
    return ingest_file(path, mapping=mapping, records=records, **(defaults | options))


def rejects(path: Path) -> list[tuple[int, str, str]]:
    file = path.with_suffix(".rejects.csv")
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return [(int(line["row"]), line["transaction_id"], line["field"]) for line in csv.DictReader(lines)]


def content(records: Store) -> tuple[pa.Table, pa.Table, pa.Table, int]:
    everything = records.read_all()
    return everything.transactions, everything.statuses, everything.labels, everything.max_seq


def test_a_file_becomes_records(place: Place, payments_csv: Path) -> None:
    """Every row is stored once, with its status and label, numbered in the order of the file; the report adds up."""
    records = place.open()
    steps: list[IngestProgress] = []
    report = ingest(payments_csv, records, progress=steps.append)
    assert (report.rows, report.inserted, report.known, report.rejected) == (1_000, 1_000, 0, 0)
    assert (report.statuses, report.labels, report.interrupted) == (200, 1_000, False)
    assert [step.rows for step in steps] == [150, 300, 450, 600, 750, 900, 1_000]
    assert steps[0].total == 1_000
    transactions, statuses, labels, max_seq = content(records)
    assert transactions["transaction_id"].to_pylist() == [f"t{number}" for number in range(1_000)]
    assert transactions["amount"].to_pylist() == [number * 100 + 25 for number in range(1_000)]
    assert sum(labels["is_fraud"].to_pylist()) == 91
    numbers = [seq for table in (transactions, statuses, labels) for seq in table["seq"].to_pylist()]
    assert sorted(numbers) == list(range(1, max_seq + 1))
    assert rejects(payments_csv) == []
    assert "1,000 rows: 1,000 new" in str(report)


def test_twice_is_once(place: Place, payments_csv: Path) -> None:
    """The second ingest of a file finds everything known and changes nothing, whatever the size of its chunks."""
    records = place.open()
    ingest(payments_csv, records)
    before = content(records)
    report = ingest(payments_csv, records, chunk_rows=333)
    assert (report.inserted, report.known, report.rejected, report.statuses, report.labels) == (0, 1_000, 0, 0, 0)
    assert content(records) == before


def test_every_refused_row_is_in_the_rejects_file(place: Place, tmp_path: Path) -> None:
    """Bad values, ragged lines, duplicates with other content: each by its row number; all else is stored."""
    rows = [row(number) for number in range(12)]
    rows[2] = row(2, amount="-1")
    rows[4] = rows[4][:-1]
    rows[5] = row(3)
    rows[6] = row(3, amount="9.99")
    rows[8] = row(8, sender_id="")
    rows[9] = row(9, is_fraud="perhaps")
    rows[10] = row(3, is_fraud=1)
    path = write_csv(tmp_path / "p.csv", rows)
    report = ingest(path, place.open(), chunk_rows=4)
    assert rejects(path) == [
        (3, "t2", "amount"),
        (5, "", "row"),
        (7, "t3", "transaction_id"),
        (9, "t8", "sender_id"),
        (10, "t9", "is_fraud"),
        (11, "t3", "is_fraud"),
    ]
    assert (report.rows, report.inserted, report.known, report.rejected) == (12, 5, 1, 6)
    stored = place.open().read_all()
    assert stored.transactions["transaction_id"].to_pylist() == ["t0", "t1", "t3", "t7", "t11"]
    assert stored.labels.num_rows == 5


def test_a_conflict_keeps_what_was_accepted(place: Place, tmp_path: Path) -> None:
    """The same id with other content is rejected with its status and label; the first content stays."""
    records = place.open()
    ingest(write_csv(tmp_path / "a.csv", [row(1), row(2)]), records)
    before = content(records)
    path = write_csv(tmp_path / "b.csv", [row(1, amount="7", status="reversed"), row(2, receiver_id="x", is_fraud=1)])
    report = ingest(path, records)
    assert (report.rejected, report.inserted, report.statuses, report.labels) == (2, 0, 0, 0)
    assert rejects(path) == [(1, "t1", "transaction_id"), (2, "t2", "transaction_id")]
    assert "conflict" in path.with_suffix(".rejects.csv").read_text()
    assert content(records) == before


def test_a_mended_file_completes_the_state(place: Place, make_place: Callable[[], Place], tmp_path: Path) -> None:
    """After the rejects were mended, the whole file again adds just those rows, and the old rejects file goes away."""
    rows = [row(number) for number in range(10)]
    bad = [*rows[:4], row(4, amount="x"), *rows[5:]]
    path = write_csv(tmp_path / "p.csv", bad)
    assert ingest(path, place.open()).rejected == 1
    assert rejects(path) != []
    write_csv(path, rows)
    report = ingest(path, place.open())
    assert (report.inserted, report.known, report.rejected) == (1, 9, 0)
    assert not path.with_suffix(".rejects.csv").exists()
    other = make_place().open()
    ingest(path, other)
    ids = [store.read_all().transactions.sort_by("transaction_id") for store in (place.open(), other)]
    assert ids[0].drop_columns(["seq"]).equals(ids[1].drop_columns(["seq"]))


def test_labels_and_statuses_in_files_of_their_own(place: Place, payments_csv: Path, tmp_path: Path) -> None:
    """Files of labels and statuses are written, known when repeated, rejected where no transaction is."""
    records = place.open()
    ingest(payments_csv, records)
    path = tmp_path / "labels.csv"
    path.write_text(
        "transaction_id,is_fraud,label_timestamp,fraud_party\n"
        "t1,1,2026-05-01T00:00:00Z,sender\n"
        "nobody,1,2026-05-01T00:00:00Z,both\n"
        "t2,0,2026-05-01T00:00:00Z,\n"
    )
    report = ingest(path, records, kind="labels", mapping=ColumnMapping())
    assert (report.inserted, report.rejected, report.labels) == (2, 1, 2)
    assert rejects(path) == [(2, "nobody", "is_fraud")]
    assert ingest(path, records, kind="labels", mapping=ColumnMapping()).known == 2
    path = tmp_path / "statuses.csv"
    path.write_text("transaction_id,status,status_timestamp\nt1,reversed,2026-05-01T00:00:00Z\n")
    assert ingest(path, records, kind="statuses", mapping=ColumnMapping()).inserted == 1


def test_parquet_and_csv_of_the_same_rows_are_the_same(place: Place, payments_csv: Path, tmp_path: Path) -> None:
    """A Parquet file with typed columns is known after its CSV twin was ingested."""
    ingest(payments_csv, place.open())
    rows = [row(number) for number in range(1_000)]
    columns = dict(zip(HEADER, map(list, zip(*rows, strict=True)), strict=True))
    table = pa.table(
        columns
        | {
            "amount": np.array(columns["amount"], np.float64),
            "event_timestamp": pa.array(columns["event_timestamp"]).cast(pa.timestamp("s", "UTC")),
            "is_fraud": pa.array(columns["is_fraud"], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    report = ingest(tmp_path / "p.parquet", place.open())
    assert (report.known, report.inserted, report.rejected) == (1_000, 0, 0)


def test_an_error_while_marking_keeps_earlier_chunks(
    place: Place, make_place: Callable[[], Place], payments_csv: Path
) -> None:
    """When marking fails, the chunk under way is not stored; the next run completes it, as if nothing had happened."""
    calls: list[int] = []

    def fail_late(keys: list[EntityKey]) -> None:
        calls.append(len(keys))
        if len(calls) == 8:
            raise StoreUnavailableError("the online store is away")

    records = place.open()
    with pytest.raises(StoreUnavailableError, match="online store is away"):
        ingest(payments_csv, records, mark_pending=fail_late)
    assert 0 < records.read_all().transactions.num_rows < 1_000
    ingest(payments_csv, records)
    undisturbed = make_place().open()
    ingest(payments_csv, undisturbed)
    assert content(records) == content(undisturbed)


CHILD = """
import json, os, signal, sys
from pathlib import Path
from graph_features.ingest.ingest import ingest_file
from graph_features.ingest.mapping import parse_mapping
from graph_features.settings import IngestSettings, PostgresSettings, load

path, calls_left, own = Path(sys.argv[1]), int(sys.argv[2]), os.environ.get("TEST_RECORDS")
if own:
    from graph_features.sources.sqlite import SqliteRecords
    records = SqliteRecords(Path(own))
else:
    from graph_features.sources.postgres import PostgresRecords
    records = PostgresRecords(load(PostgresSettings))

def kill_self(keys):
    global calls_left
    calls_left -= 1
    if calls_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

ingest_file(
    path, kind="transactions", mapping=parse_mapping(json.loads(sys.argv[3])), records=records,
    settings=IngestSettings(), mark_pending=kill_self, rejects_path=path.with_suffix(".child.csv"), chunk_rows=150,
)
"""


@pytest.mark.parametrize("calls", [1, 5, 9])
def test_a_killed_ingest_is_completed_by_the_next(
    place: Place, make_place: Callable[[], Place], payments_csv: Path, calls: int
) -> None:
    """SIGKILL inside a write, in the middle of a file: a rerun leaves the very state of a run that was not killed."""
    mapping = json.dumps({"columns": {"label_timestamp": {"delay": "7d"}}})
    command = [sys.executable, "-c", CHILD, str(payments_csv), str(calls), mapping]
    child = subprocess.run(command, env=place.environment(), check=False, timeout=120)
    assert child.returncode == -signal.SIGKILL
    records = place.open()
    records.barrier()
    left = records.read_all()
    assert left.transactions.num_rows < 1_000
    report = ingest(payments_csv, records)
    assert report.known == left.transactions.num_rows
    undisturbed = make_place().open()
    ingest(payments_csv, undisturbed)
    assert content(records) == content(undisturbed)
    assert records.checksum() == undisturbed.checksum()


def test_ctrl_c_ends_after_a_chunk_and_the_report_is_true(
    place: Place, make_place: Callable[[], Place], payments_csv: Path
) -> None:
    """An interrupt stops between chunks; what the report counts is stored, and running again completes the file."""

    def interrupt(step: IngestProgress) -> None:
        if step.rows == 300:
            os.kill(os.getpid(), signal.SIGINT)

    records = place.open()
    handler = signal.getsignal(signal.SIGINT)
    report = ingest(payments_csv, records, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    assert report.interrupted
    assert "interrupted" in str(report)
    assert report.rows == report.inserted == records.read_all().transactions.num_rows
    assert 300 <= report.rows < 1_000
    assert not ingest(payments_csv, records).interrupted
    undisturbed = make_place().open()
    ingest(payments_csv, undisturbed)
    assert content(records) == content(undisturbed)


def test_a_second_ctrl_c_does_not_wait_for_the_chunk(place: Place, payments_csv: Path) -> None:
    """Two interrupts inside a write end it at once; that chunk is not stored and the report does not count it."""
    calls: list[int] = []

    def interrupt(keys: list[EntityKey]) -> None:
        calls.append(1)
        if len(calls) == 4:  # the second chunk's transactions: three writes per chunk
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    records = place.open()
    report = ingest(payments_csv, records, mark_pending=interrupt)
    assert report.interrupted
    assert report.rows == records.read_all().transactions.num_rows == 150


def test_two_ingests_of_one_file_at_once(place: Place, payments_csv: Path) -> None:
    """Two runs of the same file side by side store each row once and number everything without gaps."""
    start = threading.Barrier(2)

    def run(name: str) -> IngestReport:
        records = place.open()
        records.create_schema()
        start.wait(30)
        return ingest(payments_csv, records, rejects_path=payments_csv.with_name(name))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, ["one.csv", "two.csv"])
    assert first.inserted + second.inserted == 1_000
    assert first.rejected == second.rejected == 0
    transactions, statuses, labels, max_seq = content(place.open())
    numbers = [seq for table in (transactions, statuses, labels) for seq in table["seq"].to_pylist()]
    assert sorted(numbers) == list(range(1, max_seq + 1))
    assert (transactions.num_rows, statuses.num_rows, labels.num_rows) == (1_000, 200, 1_000)


def test_pending_marks_cover_what_was_written(place: Place, payments_csv: Path) -> None:
    """Every account and pair of the file is marked at least once, and a second ingest marks nothing."""
    marked: set[EntityKey] = set()
    ingest(payments_csv, place.open(), mark_pending=marked.update)
    expected = {(f"a{n % 13}",) for n in range(1_000)} | {(f"b{n % 7}",) for n in range(1_000)}
    expected |= {(f"a{n % 13}", f"b{n % 7}") for n in range(1_000)}
    assert marked == expected
    marked.clear()
    ingest(payments_csv, place.open(), mark_pending=marked.update)
    assert marked == set()


def test_what_cannot_start_changes_nothing(tmp_path: Path, payments_csv: Path) -> None:
    """A wrong kind, a bad rate, an unwritable or unwise rejects file: an error before the first row is written."""
    records = SqliteRecords(tmp_path / "r.sqlite")
    records.create_schema()
    with pytest.raises(InvalidInputError, match="kind"):
        ingest(payments_csv, records, kind="payments")
    with pytest.raises(SettingsError, match="RINGFENCE_RATES"):
        ingest(payments_csv, records, settings=IngestSettings(rates={"USD": "much"}))
    with pytest.raises(InvalidInputError, match="another file"):
        ingest(payments_csv, records, rejects_path=payments_csv)
    with pytest.raises(InvalidInputError, match="can be written"):
        ingest(payments_csv, records, rejects_path=tmp_path)
    assert records.max_seq() == 0
    records.close()
