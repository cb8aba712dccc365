"""Decision records: durable, in groups, and never silently lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from graph_features.errors import StoreUnavailableError
from graph_features.settings import PlatformSettings
from serving.decisions import DecisionLog, open_engine


def record(transaction_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "transaction_id": transaction_id,
        "request_id": "r",
        "scored_at_ms": 1_000,
        "event_timestamp_ms": 500,
        "model_name": "ringfence",
        "model_version": "1",
        "model_alias": "champion",
        "feature_hash": "h",
        "fraud_score": 0.25,
        "threshold": 0.5,
        "decision": "pass",
        "inputs": {"sender_id": "a"},
        "rows": {"sender": {"activity": [1, 2]}},
        "unseen": [],
        "degraded": [],
        **changes,
    }


@pytest.fixture
def log(tmp_path: Path) -> Iterator[DecisionLog]:
    made = DecisionLog(open_engine(PlatformSettings(home=tmp_path)))
    made.start()
    yield made
    made.close()


def test_written_is_readable_elsewhere(log: DecisionLog, tmp_path: Path) -> None:
    """When a write's future is done, another process's connection must see the record as it was."""
    log.write([record("t1"), record("t2")]).result(timeout=10)
    other = DecisionLog(open_engine(PlatformSettings(home=tmp_path)))
    other.start()
    (found,) = other.find("t1")
    other.close()
    assert {name: found[name] for name in record("t1")} == record("t1")


def test_newest_comes_first_and_limits_hold(log: DecisionLog) -> None:
    """Records of one transaction come newest first, at most as many as asked for."""
    for at in range(3):
        log.write([record("t", request_id=str(at))]).result(timeout=10)
    assert [found["request_id"] for found in log.find("t", limit=2)] == ["2", "1"]


def test_many_writers_lose_nothing(log: DecisionLog) -> None:
    """Writes that arrive together are committed in groups, every one of them."""
    futures = [log.write([record(f"t{at}")]) for at in range(500)]
    for future in futures:
        future.result(timeout=30)
    with log._engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(log.table)) == 500


def test_failed_write_fails_its_future(log: DecisionLog) -> None:
    """A write that the database refuses must fail, name no personal value, and leave the writer at work."""
    with pytest.raises(StoreUnavailableError) as caught:
        log.write([record("t1", request_id=None, inputs={"sender_id": "private"})]).result(timeout=10)
    assert "private" not in str(caught.value)
    log.write([record("t2")]).result(timeout=10)
    assert log.find("t1") == []
    log.ping()


def test_old_records_are_purged(log: DecisionLog) -> None:
    """Purging removes what was scored before the instant, and only that."""
    log.write([record("old", scored_at_ms=999), record("new", scored_at_ms=1_000)]).result(timeout=10)
    assert log.purge(before_ms=1_000) == 1
    assert (log.find("old"), len(log.find("new"))) == ([], 1)


def test_close_writes_what_waits(tmp_path: Path) -> None:
    """Records that wait when the server stops are still written."""
    log = DecisionLog(open_engine(PlatformSettings(home=tmp_path)))
    log.start()
    futures = [log.write([record(f"t{at}")]) for at in range(50)]
    log.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(StoreUnavailableError, match="has stopped"):
        log.ping()


def test_bad_batch_does_not_take_others_along(log: DecisionLog) -> None:
    """A refused batch in a group must leave the other batches of the group written."""
    bad = [index % 7 == 0 for index in range(60)]
    futures = [log.write([record(f"t{at}", **({"request_id": None} if wrong else {}))]) for at, wrong in enumerate(bad)]
    failed = [future.exception(timeout=30) is not None for future in futures]
    assert failed == bad
    assert [bool(log.find(f"t{at}")) for at in range(60)] == [not wrong for wrong in bad]


def test_every_decision_is_read_once_whatever_order_they_are_stored_in(log: DecisionLog) -> None:
    """What was decided early and stored late must not make a reader pass over what was too new for it the last time."""
    for one, scored_at_ms in (("early", 1_000), ("new", 5_000), ("late", 2_000), ("newest", 9_000)):
        log.write([record(one, scored_at_ms=scored_at_ms)]).result(timeout=10)
    had: list[list[str]] = []
    for until_ms in (3_000, 6_000, 10_000):
        found = log.unlogged("reader", until_ms=until_ms, limit=100)
        had.append([row["transaction_id"] for row in found])
        log.logged("reader", up_to=found[-1]["id"])
    assert had == [["early"], ["new", "late"], ["newest"]]
    assert log.unlogged("reader", until_ms=10_000, limit=100) == []
