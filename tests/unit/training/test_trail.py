"""The trail of promotions on SQLite; tests/integration/test_promotion.py runs the same on PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from graph_features.errors import ModelError, StoreUnavailableError
from graph_features.settings import PlatformSettings
from training.trail import Entry, Trail


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Trail]:
    with Trail.open(PlatformSettings(home=tmp_path)) as opened:
        yield opened


def entry(version: str, previous: str | None = None, decision: str = "promoted") -> Entry:
    return Entry(
        decided_by="ann",
        decision=decision,  # type: ignore[arg-type]
        model="m",
        alias="champion",
        version=version,
        previous=previous,
        reasons=("every gate holds",),
        figures={"average_precision": None},
        gates={"window_days": 7.0},
    )


def test_a_move_is_recorded_with_its_time(trail: Trail) -> None:
    """A decision whose block ends has a moment at which the alias had moved, and all of its fields come back."""
    with trail.moving(entry("1")):
        assert others_wait(trail)
    (found,) = trail.newest("m")
    assert found.moved_at is not None
    assert found.decided_at is not None
    assert (found.version, found.previous, found.reasons) == ("1", None, ("every gate holds",))
    assert (found.figures, found.gates) == ({"average_precision": None}, {"window_days": 7.0})
    assert found.to_json()["moved_at"] == found.moved_at.isoformat()
    assert trail.newest("other") == []


def others_wait(trail: Trail) -> bool:
    """Whether somebody else could begin to write now; reading is always allowed."""
    with trail._engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.execute("PRAGMA busy_timeout = 1")
        try:
            raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            return "locked" in str(error)
        raw.execute("ROLLBACK")
        return False


def test_a_move_that_fails_is_interrupted(trail: Trail) -> None:
    """An error while the alias moves leaves a row that says so and counts as no move."""
    with trail.moving(entry("1")):
        pass
    with pytest.raises(ModelError, match="meanwhile"), trail.moving(entry("2", "1")):
        raise ModelError("moved meanwhile")
    newest = trail.newest("m")[0]
    assert (newest.decision, newest.moved_at, newest.reasons[-1]) == (
        "interrupted",
        None,
        "ModelError: moved meanwhile",
    )
    last = trail.last_moved("m", "champion")
    assert last is not None
    assert last.version == "1"


@pytest.mark.parametrize(("current", "decision"), [("2", "promoted"), ("1", "interrupted")])
def test_what_a_killed_process_left_is_settled(trail: Trail, current: str, decision: str) -> None:
    """A decision without an end is a move if the alias points to its version, and else an interruption."""
    trail.record(entry("2", "1"))
    trail.settle("m", "champion", current)
    (found,) = trail.newest("m")
    assert (found.decision, found.moved_at is not None) == (decision, decision == "promoted")


def test_two_moves_at_once_come_one_after_the_other(trail: Trail, tmp_path: Path) -> None:
    """While one alias moves, another decision waits for it."""
    order: list[str] = []

    def second() -> None:
        with Trail.open(PlatformSettings(home=tmp_path)) as other, other.moving(entry("2")):
            order.append("second")

    with trail.moving(entry("1")):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.3)
        order.append("first")
    thread.join(timeout=30)
    assert order == ["first", "second"]


def test_the_database_refuses_what_cannot_be(trail: Trail) -> None:
    """An unknown decision, or a refusal that moved something, is refused by the table itself."""
    with pytest.raises(StoreUnavailableError, match="promotions_decision_is_known"):
        trail.record(entry("1", decision="perhaps"))
    with trail._engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM promotions")) == 0
