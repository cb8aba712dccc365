"""A SQLite ledger, a clock to turn, and stores in memory that can be told to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from graph_features.clock import DAY_MS, from_ms
from graph_features.contracts import STORED_LABEL_SCHEMA, STORED_STATUS_SCHEMA, STORED_TRANSACTION_SCHEMA
from graph_features.jobs.engine import sqlite_engine
from graph_features.jobs.ledger import Ledger
from graph_features.schema import ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.sources.base import Records
from graph_features.sources.records import CHANGES_SCHEMA
from graph_features.stores.base import OnWritten, Written

MILLISECOND = timedelta(milliseconds=1)
EPOCH_DAY = 19_000  # 2022-01-08
Key = tuple[Any, ...]


@dataclass
class Clock:
    """Operational time for tests."""

    now: datetime = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    opened = Ledger(sqlite_engine(tmp_path / "ledger.sqlite"), clock=clock)
    opened.create_schema()
    yield opened
    opened.close()


@dataclass
class MemoryRecords:
    """Payments around a small ring for some days, with a status and a label."""

    days: int = 4
    extra: list[dict[str, Any]] = field(default_factory=list)

    def _transactions(self) -> list[dict[str, Any]]:
        rows = [
            {
                **dict.fromkeys(STORED_TRANSACTION_SCHEMA.names),
                "seq": position + 1,
                "transaction_id": f"t{position:04d}",
                "event_timestamp": from_ms(EPOCH_DAY * DAY_MS + position * DAY_MS // 6 + 1),
                "sender_id": f"a{position % 5}",
                "receiver_id": f"a{(position + 1 + position % 3) % 5}",
                "amount": 1_000 + position,
                "currency": "EUR",
                "amount_base": 1_000 + position,
            }
            for position in range(self.days * 6)
        ]
        return [*rows, *self.extra]

    def max_seq(self) -> int:
        return max(row["seq"] for row in self._transactions())

    def event_range_ms(self) -> tuple[int, int] | None:
        times = [row["event_timestamp"] for row in self._transactions()]
        start = datetime(1970, 1, 1, tzinfo=UTC)
        return (min(times) - start) // timedelta(milliseconds=1), (max(times) - start) // timedelta(milliseconds=1)

    def barrier(self) -> None:
        return

    def read_all(self, *, before_ms: int | None = None, max_seq: int | None = None) -> Records:
        limit, seq = before_ms or 2**62, max_seq or 2**62
        found = [
            row
            for row in self._transactions()
            if row["event_timestamp"] < from_ms(min(limit, 10**14)) and row["seq"] <= seq
        ]
        label = {
            "seq": 1,
            "transaction_id": "t0001",
            "is_fraud": True,
            "label_timestamp": from_ms(EPOCH_DAY * DAY_MS + DAY_MS),
            "fraud_party": "sender",
        }
        return Records(
            transactions=pa.Table.from_pylist(found, STORED_TRANSACTION_SCHEMA),
            statuses=STORED_STATUS_SCHEMA.empty_table(),
            labels=pa.Table.from_pylist([label], STORED_LABEL_SCHEMA),
            max_seq=min(seq, self.max_seq()),
        )

    def read_accounts(self, account_ids: Sequence[str], *, before_ms: int) -> Records:
        found = self.read_all(before_ms=before_ms)
        chosen = pa.array(list(account_ids), pa.string())
        sent, received = (pc.is_in(found.transactions[name], value_set=chosen) for name in ("sender_id", "receiver_id"))
        return replace(found, transactions=found.transactions.filter(pc.or_(sent, received)))

    def changes(self, *, after_seq: int, up_to_seq: int, before_ms: int, labels: bool) -> pa.Table:
        found = [
            {"seq": row["seq"], "known_ms": (row["event_timestamp"] - datetime(1970, 1, 1, tzinfo=UTC)) // MILLISECOND}
            for row in self._transactions()
            if after_seq < row["seq"] <= up_to_seq
        ]
        found = [row for row in found if row["known_ms"] < before_ms]
        return pa.Table.from_pylist(sorted(found, key=lambda row: row["seq"]), CHANGES_SCHEMA)

    def known_accounts(self, account_ids: Sequence[str], *, before_ms: int) -> set[str]:
        found = self.read_all(before_ms=before_ms).transactions
        return set(account_ids) & {*found["sender_id"].to_pylist(), *found["receiver_id"].to_pylist()}


@dataclass
class MemoryStore:
    """Both sides of a feature store: the rows by version, and the parts that were written. `fail` may raise."""

    fail: Callable[[ViewSchema, str], None] = lambda view, part: None
    rows: dict[str, dict[Key, dict[str, Any]]] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    views: set[str] = field(default_factory=set)
    newest_only: bool = False
    life: str = ""

    def create_view(self, view: ViewSchema) -> None:
        self.views.add(view.name)

    def ping(self) -> None:
        return

    def epoch(self) -> str:
        return self.life

    def write_all(self, view: ViewSchema, tables: Iterable[pa.Table], *, part: str, on_written: OnWritten) -> int:
        count = sum(self.write(view, table, part=f"{part}-{position}") for position, table in enumerate(tables))
        on_written(Written(rows=count, name=part))
        return count

    def write(self, view: ViewSchema, table: pa.Table, *, part: str = "") -> int:
        self.fail(view, part)
        if not self.newest_only:
            assert view.name in self.views, "create_view comes first"
            self.parts.append(part)
        stored = self.rows.setdefault(view.name, {})
        count = 0
        for row in view.check(table).to_pylist():
            key: Key = tuple(row[name] for name in view.keys)
            version = (row["event_timestamp"], row["created_timestamp"])
            if self.newest_only:
                if key in stored and (stored[key]["event_timestamp"], stored[key]["created_timestamp"]) > version:
                    continue
            else:
                key = (*key, *version)
            stored[key] = row
            count += 1
        return count


@dataclass
class MemoryStores:
    """Everything a feature job works on."""

    records: Any = field(default_factory=MemoryRecords)
    offline: Any = field(default_factory=MemoryStore)
    online: Any = field(default_factory=lambda: MemoryStore(newest_only=True))
    graph: Any = None
    feature_settings: FeatureSettings = field(default_factory=FeatureSettings)


@pytest.fixture
def make_stores() -> type[MemoryStores]:
    """make_stores(): empty stores over the same records each time."""
    return MemoryStores


@pytest.fixture
def period() -> dict[str, str]:
    """The days that the records span."""
    return {"from": from_ms(EPOCH_DAY * DAY_MS).isoformat(), "to": from_ms((EPOCH_DAY + 4) * DAY_MS).isoformat()}


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """Set at the end of the test, so that no scheduler outlives it."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def column() -> Callable[[MemoryStore, str], dict[Key, Any]]:
    """column(store, view): every stored row without created_timestamp, by key."""

    def read(store: MemoryStore, view: str) -> dict[Key, Any]:
        rows = store.rows.get(view, {})
        return {key: {n: v for n, v in row.items() if n != "created_timestamp"} for key, row in rows.items()}

    return read
