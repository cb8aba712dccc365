"""Decision records: stored whole and once, found by payment, read once by each reader, and purged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from graph_features.errors import StoreUnavailableError
from graph_features.settings import PlatformSettings
from serving.decision_batch import DecisionBatch
from serving.decisions import DecisionLog, open_engine
from tests.decisions import Decided, decided


@pytest.fixture
def log(tmp_path: Path) -> Iterator[DecisionLog]:
    made = DecisionLog(open_engine(PlatformSettings(home=tmp_path)))
    made.create()
    yield made
    made.close()


def test_stored_is_readable_elsewhere_and_once(log: DecisionLog, tmp_path: Path) -> None:
    """Another process's connection must see the record as it was; the same segment again is nothing new."""
    batch = decided("t1", "t2")
    assert [log.store_segment("one", [batch]) for _ in range(2)] == [2, 0]
    other = DecisionLog(open_engine(PlatformSettings(home=tmp_path)))
    other.create()
    (found,) = other.find("t1")
    other.close()
    (expected, _) = batch.rows()
    assert {name: found[name] for name in expected} == expected


def test_newest_comes_first_and_limits_hold(log: DecisionLog) -> None:
    """Records of one transaction come newest first, at most as many as asked for."""
    log.store_segment("one", [decided("t", request_id=str(at)) for at in range(3)])
    assert [found["request_id"] for found in log.find("t", limit=2)] == ["2", "1"]


def test_a_refused_segment_is_stored_whole_or_not_at_all(log: DecisionLog) -> None:
    """What the database refuses must name no personal value and leave nothing behind, so that it can be sent again."""
    good = decided("t1")
    whole = decided(Decided(transaction_id="t2", sender="private"))
    bad: DecisionBatch = msgspec.structs.replace(whole, request_ids=[None])
    with pytest.raises(StoreUnavailableError, match="request_id") as caught:
        log.store_segment("one", [good, bad])
    assert "private" not in str(caught.value)
    assert log.find("t1") == []
    assert log.store_segment("one", [good]) == 1
    assert len(log.find("t1")) == 1


def test_old_records_are_purged(log: DecisionLog) -> None:
    """Purging removes what was scored before the instant, and only that."""
    log.store_segment("one", [decided("old", scored_at_ms=999), decided("new", scored_at_ms=1_000)])
    assert log.purge(before_ms=1_000) == 1
    assert (log.find("old"), len(log.find("new"))) == ([], 1)


def test_every_decision_is_read_once_whatever_order_they_are_stored_in(log: DecisionLog) -> None:
    """What was decided early and stored late must not make a reader pass over what was too new for it the last time."""
    for one, scored_at_ms in (("early", 1_000), ("new", 5_000), ("late", 2_000), ("newest", 9_000)):
        log.store_segment(one, [decided(one, scored_at_ms=scored_at_ms)])
    had: list[list[str]] = []
    for until_ms in (3_000, 6_000, 10_000):
        found = log.unlogged("reader", until_ms=until_ms, limit=100)
        had.append([row["transaction_id"] for row in found])
        log.logged("reader", up_to=found[-1]["id"])
    assert had == [["early"], ["new", "late"], ["newest"]]
    assert log.unlogged("reader", until_ms=10_000, limit=100) == []
