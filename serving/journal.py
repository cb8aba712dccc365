"""The journal of decisions: every score is on disk before it is answered, and in the database soon after.

A reply waits for one write and one fdatasync that all requests of the moment share, never for the database: when that
is slow or away, scoring goes on, and what was decided waits here. Segments are files of frames (length, CRC-32,
content); a closed segment is handed to a shipper (serving.shipping), which stores all of it and its name in one
transaction, so that a segment that is shipped twice is stored once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from graph_features.errors import RingfenceError, SchemaMismatchError, StoreUnavailableError
from serving.decision_batch import DecisionBatch
from serving.decisions import DecisionLog
from serving.pool import Pool

log = logging.getLogger("ringfence.serving.journal")

ROTATE_BYTES = 8 << 20
SHIP_EVERY_S = 0.2
SHIP_TIMEOUT_S = 60.0
RETRY_S = 2.0
FIND_TIMEOUT_S = 5.0
CLOSE_S = 10.0
_FRAME = struct.Struct("<II")
_BATCH = b"B"
"""The first byte of a frame's content says what it is: here `DecisionBatch.to_bytes`."""
_LARGEST_GROUP = 256

Item = tuple[bytes, Future[None]]


class DecisionJournal:
    """Decisions on their way to a DecisionLog: a write ends when it is on this machine's disk.

    `folder` may be shared by several servers: each has a folder of its own below, and takes over those of the dead.
    """

    def __init__(self, log_: DecisionLog, folder: Path, shipper: Pool, *, max_bytes: int) -> None:
        self._log = log_
        self._root = folder
        self._shipper = shipper
        self._max_bytes = max_bytes
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._lock = threading.Condition()
        self._closed_segments: list[tuple[Path, int]] = []
        """Files that nothing is written to any more, with their sizes, oldest first."""
        self._adopted: dict[Path, int] = {}
        """The locks of dead servers' folders, held until their segments are stored: two may start at once."""
        self._current: _Segment | None = None
        self._backlog = 0
        self._problem = ""
        self._created = False
        self._closing = False
        self._writer = threading.Thread(target=self._write_loop, name="journal", daemon=True)
        self._ship = threading.Thread(target=self._ship_loop, name="journal-shipper", daemon=True)
        self._wanted = threading.Event()
        """Something is to be shipped."""
        self._hurry = threading.Event()
        """Somebody waits for it."""

    def start(self) -> None:
        """Take over what dead servers left behind and begin to write."""
        self._root.mkdir(parents=True, exist_ok=True)
        self._own, self._held = _own_folder(self._root)
        self._adopt()
        self._writer.start()
        self._ship.start()

    # ------------------------------------------------------------ writing

    def write(self, batch: DecisionBatch) -> Future[None]:
        """Write decisions, all or none; the future ends when they are on disk."""
        content = _BATCH + batch.to_bytes()
        done: Future[None] = Future()
        # A request that is cancelled takes its record back no more: the writer would stumble over it.
        done.set_running_or_notify_cancel()
        if self._closing:
            done.set_exception(StoreUnavailableError("the server is stopping"))
        elif self._backlog + len(content) > self._max_bytes:
            done.set_exception(
                StoreUnavailableError(
                    f"{self._backlog} bytes of decisions wait for their database ({self._problem or 'it is slow'}); "
                    "no more are taken until it answers"
                )
            )
        else:
            self._waiting.put((content, done))
        return done

    def _write_loop(self) -> None:
        while (first := self._waiting.get()) is not None:
            group, stop = [first], False
            while len(group) < _LARGEST_GROUP and not stop:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    stop = True
                else:
                    group.append(following)
            self._write_group(group)
            if stop:
                return

    def _write_group(self, group: list[Item]) -> None:
        data = b"".join(_framed(content) for content, _ in group)
        failure: StoreUnavailableError | None = None
        with self._lock:
            try:
                if self._current is None:
                    self._current = _Segment(self._own)
                self._current.append(data)
                self._backlog += len(data)
                if self._current.size >= ROTATE_BYTES:
                    self._rotate()
            except OSError as error:
                failure = StoreUnavailableError(f"the journal of decisions cannot be written: {error.strerror}")
                if self._current is not None and self._current.torn:
                    self._rotate()
        self._wanted.set()
        for _, done in group:
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

    def _rotate(self) -> None:
        if self._current is not None:
            segment, self._current = self._current, None
            self._closed_segments.append((segment.path, segment.size))
            segment.close()

    # ------------------------------------------------------------ shipping

    def _ship_loop(self) -> None:
        while True:
            # Nothing to do until something is written; then a little time for more to come along, unless one waits.
            self._wanted.wait()
            self._wanted.clear()
            self._hurry.wait(SHIP_EVERY_S)
            self._hurry.clear()
            self._ship_all()
            if self._closing and not self._writer.is_alive():
                return

    def _ship_all(self) -> None:
        with self._lock:
            self._rotate()
        while self._closed_segments:
            segment, size = self._closed_segments[0]
            try:
                if segment.exists():
                    self._shipper.submit("ship", str(segment), timeout_s=SHIP_TIMEOUT_S).result()
                else:
                    log.warning("a segment of decisions is gone", extra={"segment": segment.name, "bytes": size})
                self._forget(segment, size)
            except (RingfenceError, OSError) as error:
                if str(error) != self._problem:
                    log.warning("decisions wait", extra={"error": str(error), "bytes": self._backlog})
                self._problem = str(error)
                if self._closing:
                    return
                time.sleep(RETRY_S)

    def _forget(self, segment: Path, size: int) -> None:
        segment.unlink(missing_ok=True)
        with self._lock:
            self._problem = ""
            self._closed_segments.pop(0)
            self._backlog -= size
            self._lock.notify_all()
        if segment.parent in self._adopted and not any(segment.parent.glob("*.journal")):
            self._let_go(segment.parent)

    def _adopt(self) -> None:
        """Segments of servers that are no more, oldest first."""
        for folder in sorted(self._root.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir() or (held := _hold(folder)) is None:
                continue
            self._adopted[folder] = held
            found = [(path, path.stat().st_size) for path in sorted(folder.glob("*.journal"))]
            self._closed_segments += found
            self._backlog += sum(size for _, size in found)
            if not found:
                self._let_go(folder)
        if self._closed_segments:
            log.info("decisions taken over", extra={"segments": len(self._closed_segments), "bytes": self._backlog})
            self._wanted.set()

    def _let_go(self, folder: Path) -> None:
        """Remove a dead server's folder that is empty now."""
        _remove(folder)
        os.close(self._adopted.pop(folder))

    # ------------------------------------------------------------ reading

    @property
    def backlog_bytes(self) -> int:
        """Bytes that are on disk here and not yet in the database."""
        return self._backlog

    def find(self, transaction_id: str, *, limit: int = 100) -> list[dict[str, Any]]:
        """Decisions on one transaction, newest first, what was written until now included."""
        with self._lock:
            self._rotate()
            mine = set(self._closed_segments)
            if mine:
                self._ship_now()
            if not self._lock.wait_for(lambda: mine.isdisjoint(self._closed_segments), FIND_TIMEOUT_S):
                raise StoreUnavailableError(f"decisions wait for their database: {self._problem or 'it is slow'}")
        if not self._created:
            self._log.create()
            self._created = True
        return self._log.find(transaction_id, limit=limit)

    def _ship_now(self) -> None:
        self._hurry.set()
        self._wanted.set()

    def purge(self, *, before_ms: int) -> int:
        """Delete decisions made before `before_ms`; return how many there were."""
        return self._log.purge(before_ms=before_ms)

    def ping(self) -> dict[str, Any]:
        """Raise StoreUnavailableError unless decisions are taken; say how much waits for the database."""
        if not (self._writer.is_alive() and self._ship.is_alive()):
            raise StoreUnavailableError("the writer of decisions has stopped; restart the server")
        if self._backlog >= self._max_bytes:
            raise StoreUnavailableError(f"the journal of decisions is full: {self._problem or 'its database is slow'}")
        return {"backlog_bytes": self._backlog, "problem": self._problem}

    def close(self) -> None:
        """Write what waits, hand it over if the database answers, and stop; the next start takes over what is left."""
        self._closing = True
        if self._writer.is_alive():
            self._waiting.put(None)
            self._writer.join(timeout=10)
            self._ship_now()
            self._ship.join(timeout=CLOSE_S)
            if not any(self._own.glob("*.journal")):
                _remove(self._own)
            for held in (self._held, *self._adopted.values()):
                os.close(held)
        self._shipper.close()
        self._log.close()


class _Segment:
    """A journal file that is being written."""

    def __init__(self, folder: Path) -> None:
        # Named by the time and a random part: the name is what tells in the database that it was stored.
        self.path = folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}.journal"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self.size = 0
        self.torn = False
        """Ends in half a frame, behind which nobody would read on."""

    def append(self, data: bytes) -> None:
        """Write and sync; what a full disk cut short is taken back, and where that fails too nothing may follow."""
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            os.fdatasync(self._file)
        except OSError:
            self.torn = True
            os.ftruncate(self._file, self.size)
            os.lseek(self._file, self.size, os.SEEK_SET)
            self.torn = False
            raise
        self.size += len(data)

    def close(self) -> None:
        os.close(self._file)


def _framed(content: bytes) -> bytes:
    return _FRAME.pack(len(content), zlib.crc32(content)) + content


def read_segment(path: Path) -> Iterator[DecisionBatch]:
    """Yield what was written to a segment; ends before a frame that a crash cut short.

    Raises SchemaMismatchError for what another version has written: it must be neither lost nor misread.
    """
    data = path.read_bytes()
    at = 0
    while at + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, at)
        content = data[at + _FRAME.size : at + _FRAME.size + length]
        if len(content) < length or zlib.crc32(content) != checksum:
            return
        yield _batch_of(content, path)
        at += _FRAME.size + length


def _batch_of(content: bytes, path: Path) -> DecisionBatch:
    try:
        if content[:1] == _BATCH:
            return DecisionBatch.from_bytes(content[1:])
    except msgspec.DecodeError:
        pass
    raise SchemaMismatchError(
        f"{path}: expected decisions that this version writes, got those of another (kind {content[:1]!r}); "
        "start the version that wrote them once, or move the file elsewhere"
    )


def _hold(folder: Path) -> int | None:
    """Hold the folder's lock until the descriptor is closed or this process ends.

    None where another process does, or has just removed the folder.
    """
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _own_folder(root: Path) -> tuple[Path, int]:
    """Make a folder and return it with its lock; others see it only when it is held."""
    name = secrets.token_hex(8)
    hidden = root / f".{name}"
    hidden.mkdir()
    held = _hold(hidden)
    assert held is not None, f"{hidden} is known to nobody else"
    return hidden.rename(root / name), held


def _remove(folder: Path) -> None:
    (folder / "lock").unlink(missing_ok=True)
    with suppress(OSError):  # another server has just come upon it: it removes the folder, or the next one does
        folder.rmdir()
