"""The journal of decisions: every score is on disk before it is answered, and in the database soon after.

A reply waits for one write and one fdatasync that all requests of the moment share, never for the database: when that
is slow or away, scoring goes on, and what was decided waits here. A closed segment is handed to a shipper
(serving.shipping), which stores all of it and its name in one transaction, so that a segment that is shipped twice is
stored once.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from graph_features.errors import RingfenceError, SchemaMismatchError, StoreUnavailableError
from serving.decision_batch import DecisionBatch
from serving.decisions import DecisionLog
from serving.pool import Pool
from serving.segments import REFUSED, SEGMENT, Segment, framed, hold, own_folder, remove_folder, segments_of

log = logging.getLogger("ringfence.serving.journal")

ROTATE_BYTES = 8 << 20
SHIP_EVERY_S = 0.2
SHIP_TIMEOUT_S = 60.0
RETRY_S = 2.0
FIND_TIMEOUT_S = 5.0
CLOSE_S = 10.0
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
        self._current: Segment | None = None
        self._backlog = 0
        self._problem = ""
        self._refused = ""
        """Why a segment waits for a server of another version to take it over."""
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
        self._own, self._held = own_folder(self._root)
        self._adopt()
        self._writer.start()
        self._ship.start()

    # ------------------------------------------------------------ writing

    def write(self, batch: DecisionBatch) -> Future[None]:
        """Write decisions, all or none; the future ends when they are on disk."""
        frame = framed(batch)
        done: Future[None] = Future()
        # A request that is cancelled takes its record back no more: the writer would stumble over it.
        done.set_running_or_notify_cancel()
        if self._closing:
            done.set_exception(StoreUnavailableError("the server is stopping"))
        elif self._backlog + len(frame) > self._max_bytes:
            done.set_exception(
                StoreUnavailableError(
                    f"{self._backlog} bytes of decisions wait for their database ({self._problem or 'it is slow'}); "
                    "no more are taken until it answers"
                )
            )
        else:
            self._waiting.put((frame, done))
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
        data = b"".join(frame for frame, _ in group)
        failure: StoreUnavailableError | None = None
        with self._lock:
            try:
                if self._current is None:
                    self._current = Segment(self._own)
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
            try:
                self._ship_first()
            except (RingfenceError, OSError) as error:
                if str(error) != self._problem:
                    log.warning("decisions wait", extra={"error": str(error), "bytes": self._backlog})
                self._problem = str(error)
                if self._closing:
                    return
                time.sleep(RETRY_S)

    def _ship_first(self) -> None:
        """Store the oldest segment; what cannot be read is set aside, so that nothing waits behind it."""
        segment, size = self._closed_segments[0]
        if segment.exists():
            try:
                self._shipper.submit("ship", str(segment), timeout_s=SHIP_TIMEOUT_S).result()
            except SchemaMismatchError as error:
                self._refused = str(error)
                log.error("a segment of decisions is set aside", extra={"error": str(error), "bytes": size})
                segment.rename(segment.with_suffix(REFUSED))
        else:
            log.warning("a segment of decisions is gone", extra={"segment": segment.name, "bytes": size})
        self._forget(segment, size)

    def _forget(self, segment: Path, size: int) -> None:
        segment.unlink(missing_ok=True)
        with self._lock:
            self._problem = ""
            self._closed_segments.pop(0)
            self._backlog -= size
            self._lock.notify_all()
        if segment.parent in self._adopted and not segments_of(segment.parent):
            self._let_go(segment.parent)

    def _adopt(self) -> None:
        """Segments of servers that are no more, oldest first."""
        for folder in sorted(self._root.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir() or (held := hold(folder)) is None:
                continue
            self._adopted[folder] = held
            for path in folder.glob(f"*{REFUSED}"):
                path.rename(path.with_suffix(SEGMENT))
            found = [(path, path.stat().st_size) for path in segments_of(folder)]
            self._closed_segments += found
            self._backlog += sum(size for _, size in found)
            if not found:
                self._let_go(folder)
        if self._closed_segments:
            log.info("decisions taken over", extra={"segments": len(self._closed_segments), "bytes": self._backlog})
            self._wanted.set()

    def _let_go(self, folder: Path) -> None:
        """Remove a dead server's folder that is empty now."""
        remove_folder(folder)
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
        return {"backlog_bytes": self._backlog, "problem": self._problem or self._refused}

    def close(self) -> None:
        """Write what waits, hand it over if the database answers, and stop; the next start takes over what is left."""
        self._closing = True
        if self._writer.is_alive():
            self._waiting.put(None)
            self._writer.join(timeout=10)
            self._ship_now()
            self._ship.join(timeout=CLOSE_S)
            if not segments_of(self._own):
                remove_folder(self._own)
            for held in (self._held, *self._adopted.values()):
                os.close(held)
        self._shipper.close()
        self._log.close()
