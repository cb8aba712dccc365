"""The journal of decisions: on disk before the reply, in the database once, whatever is killed or away in between."""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from graph_features.errors import StoreUnavailableError
from graph_features.settings import PlatformSettings
from serving import journal
from serving.decisions import DecisionLog, open_engine
from serving.journal import DecisionJournal
from serving.pool import InlinePool
from serving.segments import framed, read_segment
from serving.shipping import DecisionShipper
from tests.decisions import decided


class Shipper(DecisionShipper):
    """The real one, that can be told that its database is away, or to die after it has stored everything."""

    def __init__(self, platform: PlatformSettings) -> None:
        super().__init__(platform, {})
        self.away = threading.Event()
        self.forgetful = False

    def ship(self, segment: str) -> int:
        if self.away.is_set():
            raise StoreUnavailableError("the database is away")
        stored = super().ship(segment)
        if self.forgetful:
            self.forgetful = False
            raise StoreUnavailableError("the answer was lost")
        return stored


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[DecisionJournal, Shipper]]]:
    """make(max_bytes=...): a journal and its shipper over one folder and one database."""
    monkeypatch.setattr(journal, "RETRY_S", 0.02)
    platform = PlatformSettings(home=tmp_path)
    made: list[tuple[DecisionJournal, Shipper]] = []

    def start(*, max_bytes: int = 1 << 20) -> tuple[DecisionJournal, Shipper]:
        shipper = Shipper(platform)
        pool = InlinePool(name="decisions", size=1, build=lambda: shipper)
        one = DecisionJournal(DecisionLog(open_engine(platform)), tmp_path / "decisions", pool, max_bytes=max_bytes)
        one.start()
        made.append((one, shipper))
        return one, shipper

    yield start
    for one, shipper in made:
        shipper.away.clear()
        one.close()


Make = Callable[..., tuple[DecisionJournal, Shipper]]


def frame(transaction_id: str) -> bytes:
    """As a server leaves it on disk."""
    return framed(decided(transaction_id))


def of_another_version(first: bytes, content: bytes) -> bytes:
    """A whole frame, whose checksum is right."""
    content = first + content
    return struct.pack("<II", len(content), zlib.crc32(content)) + content


def segments(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.journal"))


def test_written_is_found_and_leaves_no_file(make: Make, tmp_path: Path) -> None:
    """A record is found right after its write, once, and its segment is removed."""
    one, _ = make()
    futures = [one.write(decided(f"t{at}")) for at in range(50)]
    for future in futures:
        future.result(timeout=10)
    (found,) = one.find("t7")
    (expected,) = decided("t7").rows()
    assert {name: found[name] for name in expected} == expected
    assert one.find("t50") == []
    assert segments(tmp_path) == []
    assert one.backlog_bytes == 0


def test_who_looks_for_a_record_does_not_wait_for_others(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up, and closing, must ship at once what else waits for more to come along."""
    monkeypatch.setattr(journal, "SHIP_EVERY_S", 3_600.0)
    one, _ = make()
    for name in ("t1", "t2"):
        one.write(decided(name)).result(timeout=10)
        assert len(one.find(name)) == 1
    one.write(decided("last")).result(timeout=10)
    one.close()
    assert one.backlog_bytes == 0


def test_closing_writes_what_waits(make: Make, tmp_path: Path) -> None:
    """Records that wait when the server stops are in the database when it has; then none are taken any more."""
    one, _ = make()
    futures = [one.write(decided(f"t{at}")) for at in range(50)]
    one.close()
    assert all(future.done() and future.exception() is None for future in futures)
    log = DecisionLog(open_engine(PlatformSettings(home=tmp_path)))
    assert [len(log.find(f"t{at}")) for at in range(50)] == [1] * 50
    log.close()
    with pytest.raises(StoreUnavailableError, match="has stopped"):
        one.ping()
    with pytest.raises(StoreUnavailableError, match="is stopping"):
        one.write(decided("late")).result(timeout=10)


@pytest.mark.parametrize(("first", "content"), [(b"C", decided("t").to_bytes()), (b"B", b"\x81\xa1a\x01")])  # {"a": 1}
def test_what_another_version_wrote_is_set_aside(make: Make, tmp_path: Path, first: bytes, content: bytes) -> None:
    """A segment that this version cannot read must hold up nothing, be neither stored nor lost, and be told of."""
    dead = tmp_path / "decisions" / "dead"
    dead.mkdir(parents=True)
    name, other = "00000000000000000001-ab", of_another_version(first, content)
    (dead / f"{name}.journal").write_bytes(frame("before") + other)
    (dead / "00000000000000000002-ab.journal").write_bytes(frame("behind"))
    one, _ = make()
    one.write(decided("t1")).result(timeout=10)
    assert [len(one.find(transaction)) for transaction in ("before", "behind", "t1")] == [0, 1, 1]
    assert one.ping()["backlog_bytes"] == 0
    assert "those of another" in one.ping()["problem"]
    one.close()
    assert (dead / f"{name}.refused").read_bytes() == frame("before") + other
    # Who can read it finds it where it was.
    (dead / f"{name}.refused").write_bytes(frame("before"))
    following, _ = make()
    assert len(following.find("before")) == 1
    assert following.ping() == {"backlog_bytes": 0, "problem": ""}
    following.close()
    assert list((tmp_path / "decisions").iterdir()) == []


def test_writes_go_on_while_the_database_is_away(make: Make) -> None:
    """Without its database the journal takes records and says so; when it is back, all are there."""
    one, shipper = make()
    shipper.away.set()
    for at in range(5):
        one.write(decided(f"t{at}")).result(timeout=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "FIND_TIMEOUT_S", 0.3)
        with pytest.raises(StoreUnavailableError, match="the database is away"):
            one.find("t1")
    assert one.ping()["backlog_bytes"] > 0
    shipper.away.clear()
    assert [len(one.find(f"t{at}")) for at in range(5)] == [1] * 5
    assert one.ping() == {"backlog_bytes": 0, "problem": ""}


def test_a_segment_shipped_twice_is_stored_once(make: Make) -> None:
    """When the answer of the database is lost, the segment is sent again, and its records are there once."""
    one, shipper = make()
    shipper.forgetful = True
    one.write(decided("t1")).result(timeout=10)
    assert len(one.find("t1")) == 1
    assert not shipper.forgetful


def test_what_a_dead_server_left_is_taken_over(make: Make, tmp_path: Path) -> None:
    """Segments whose server is gone are stored by the next one, a last frame that was cut short excepted."""
    dead = tmp_path / "decisions" / "dead"
    dead.mkdir(parents=True)
    (dead / "00000000000000000001-ab.journal").write_bytes(frame("kept") + frame("cut")[:-3])
    one, _ = make()
    assert len(one.find("kept")) == 1
    assert one.find("cut") == []
    one.close()
    assert list((tmp_path / "decisions").iterdir()) == []


def test_of_two_servers_one_takes_over(make: Make, tmp_path: Path) -> None:
    """Two that start beside what a dead one left must not both store it: the second would wait for it for ever."""
    dead = tmp_path / "decisions" / "dead"
    dead.mkdir(parents=True)
    (dead / "00000000000000000001-ab.journal").write_bytes(frame("kept"))
    one, shipper = make()
    shipper.away.set()
    two, _ = make()
    assert (one.backlog_bytes, two.backlog_bytes) == (len(frame("kept")), 0)
    two.write(decided("own")).result(timeout=10)
    assert len(two.find("own")) == 1
    shipper.away.clear()
    assert len(one.find("kept")) == 1


def test_a_segment_that_is_gone_holds_up_nothing(make: Make, tmp_path: Path) -> None:
    """A segment that somebody else has removed must not keep those behind it from their database."""
    one, shipper = make()
    shipper.away.set()
    one.write(decided("lost")).result(timeout=10)
    while not one.ping()["problem"]:
        time.sleep(0.01)
    (first,) = segments(tmp_path)
    first.unlink()
    one.write(decided("later")).result(timeout=10)
    shipper.away.clear()
    assert len(one.find("later")) == 1
    assert one.ping() == {"backlog_bytes": 0, "problem": ""}


def test_a_cancelled_request_stops_nobody(make: Make) -> None:
    """Whoever waits for a write may be cancelled, as a client that is gone; the writer must go on."""
    one, _ = make()
    for at in range(50):
        one.write(decided(f"t{at}")).cancel()
    one.write(decided("last")).result(timeout=10)
    assert len(one.find("last")) == 1
    one.ping()


def test_a_living_server_keeps_its_own(make: Make, tmp_path: Path) -> None:
    """A second server must leave alone what the first one still writes."""
    one, shipper = make()
    shipper.away.set()
    one.write(decided("t1")).result(timeout=10)
    two, _ = make()
    assert two.backlog_bytes == 0
    assert two.find("t1") == []
    shipper.away.clear()
    assert len(one.find("t1")) == 1


def test_a_full_journal_refuses(make: Make) -> None:
    """Beyond its limit the journal takes nothing more, instead of filling the disk."""
    one, shipper = make(max_bytes=10 * len(frame("t00")))
    shipper.away.set()
    outcomes = [one.write(decided(f"t{at}")).exception(timeout=10) for at in range(100)]
    refused = [str(error) for error in outcomes if error is not None]
    assert 0 < len(refused) < 100
    assert "no more are taken" in refused[0]
    shipper.away.clear()
    one.find("t0")
    one.write(decided("later")).result(timeout=10)
    assert len(one.find("later")) == 1


def test_a_full_disk_costs_one_write(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the disk refuses half way fails alone: what was cut short is taken back."""
    one, shipper = make()
    shipper.away.set()
    one.write(decided("before")).result(timeout=10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _no_space)
        future: Future[None] = one.write(decided("refused"))
        with pytest.raises(StoreUnavailableError, match="No space left"):
            future.result(timeout=10)
    one.write(decided("after")).result(timeout=10)
    (ids,) = [
        [row["transaction_id"] for batch in read_segment(path) for row in batch.rows()] for path in segments(tmp_path)
    ]
    assert ids in (["before", "after"], ["after"])
    shipper.away.clear()
    assert [len(one.find(name)) for name in ("before", "refused", "after")] == [1, 0, 1]


def test_nothing_follows_half_a_frame(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what was cut short cannot be taken back either, later records go to another file that is read."""
    one, shipper = make()
    shipper.away.set()
    one.write(decided("before")).result(timeout=10)
    write, cut = os.write, [3]

    def half(descriptor: int, data: memoryview) -> int:
        if cut:
            return write(descriptor, data[: cut.pop()])
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        patch.setattr(os, "ftruncate", lambda *_: _no_space(0))
        with pytest.raises(StoreUnavailableError, match="No space left"):
            one.write(decided("refused")).result(timeout=10)
    one.write(decided("after")).result(timeout=10)
    shipper.away.clear()
    assert [len(one.find(name)) for name in ("before", "refused", "after")] == [1, 0, 1]


def _no_space(descriptor: int) -> None:
    raise OSError(28, os.strerror(28))
