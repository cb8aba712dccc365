"""Immutable files and the one manifest that says which of them count: what several processes may read while one writes.

A reader opens the manifest and then the files that it names. A writer holds the folder's lock, writes new files,
flushes them, and replaces the manifest in one atomic step; a writer that is killed leaves files that nobody names.
Files that a manifest no longer names stay for a while, so that a reader who holds the older manifest finishes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import time
from typing import Final
from urllib.parse import quote

from graph_features.errors import StoreUnavailableError
from graph_features.sources.filelock import file_lock

FORMAT: Final = 1
KEEP_UNNAMED_S: Final = 600.0
MERGE_WIDTH: Final = 8
"""So many segments of one size class at the end become one."""
SMALLEST_CLASS_ROWS: Final = 4_096
LARGEST_SEGMENT_ROWS: Final = SMALLEST_CLASS_ROWS * MERGE_WIDTH**3
"""About two million. A merge never makes more: it bounds its memory."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One piece of the payments: two files whose names start with `name`."""

    name: str
    rows: int
    min_seq: int
    max_seq: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole state of the folder: segments in the order in which they were written."""

    watermark: int = 0
    next_segment: int = 1
    segments: tuple[Segment, ...] = ()


class SegmentFolder:
    """Names, manifest, lock and clean-up of a folder of segments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = folder / "manifest.json"
        self._segments = folder / "segments"

    def create(self) -> None:
        """Create the folder; raise StoreUnavailableError where that is impossible."""
        try:
            self._segments.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(
                f"graph folder {self.folder}: {error.strerror}; is it a writable folder?"
            ) from None

    def manifest(self) -> Manifest:
        """The current manifest, empty before the first write; raise StoreUnavailableError when it cannot be read."""
        try:
            data = json.loads(self._manifest.read_bytes())
        except FileNotFoundError:
            return Manifest()
        except (OSError, ValueError) as error:
            raise StoreUnavailableError(f"{self._manifest}: {error}; delete {self.folder} and sync again") from None
        if data.get("format") != FORMAT:
            raise StoreUnavailableError(
                f"{self._manifest}: expected format {FORMAT}, got {data.get('format')}; "
                f"delete {self.folder} and sync again"
            )
        segments = tuple(Segment(**segment) for segment in data["segments"])
        return Manifest(watermark=data["watermark"], next_segment=data["next_segment"], segments=segments)

    def commit(self, manifest: Manifest) -> None:
        """Make `manifest` the current one. Its files must be flushed; the caller holds the lock."""
        draft = self._manifest.with_suffix(".draft")
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **asdict(manifest)}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._manifest)
        _flush(self.folder)

    def payments_path(self, name: str) -> Path:
        """Payments by sequence number."""
        return self._segments / f"{name}.payments.parquet"

    def accounts_path(self, name: str) -> Path:
        """Both ends of every payment, by account and time."""
        return self._segments / f"{name}.accounts.parquet"

    def flush(self, name: str) -> None:
        """Put a segment's files on the disk."""
        for path in (self.payments_path(name), self.accounts_path(name), self._segments):
            _flush(path)

    def retire(self, segments: Sequence[Segment]) -> None:
        """Start the waiting time of files that the manifest no longer names."""
        for segment in segments:
            self.payments_path(segment.name).touch()
            self.accounts_path(segment.name).touch()

    def sweep(self, manifest: Manifest, *, keep_s: float = KEEP_UNNAMED_S) -> None:
        """Delete files that were left unnamed for more than `keep_s`. The caller holds the lock."""
        named = {segment.name for segment in manifest.segments}
        for path in self._segments.iterdir():
            if path.name.partition(".")[0] not in named and time() - path.stat().st_mtime > keep_s:
                path.unlink()

    def lock(self, name: str, *, wait_s: float) -> AbstractContextManager[bool]:
        """Hold a lock between processes and threads; yields whether it was had in time. Ends with its holder."""
        self.create()
        return file_lock(self.folder / f"{quote(name, safe='')}.lock", wait_s=wait_s)


def segments_to_merge(segments: Sequence[Segment]) -> int:
    """How many segments at the end are to become one: MERGE_WIDTH of one size class, or 0.

    Sizes grow by MERGE_WIDTH from class to class, so n payments lie in at most MERGE_WIDTH log(n) segments and each was
    written log(n) times.
    """
    tail = segments[-MERGE_WIDTH:]
    if len(tail) < MERGE_WIDTH or sum(segment.rows for segment in tail) > LARGEST_SEGMENT_ROWS:
        return 0
    return MERGE_WIDTH if max(map(_size_class, tail)) <= _size_class(tail[-1]) else 0


def _size_class(segment: Segment) -> int:
    size_class, limit = 0, SMALLEST_CLASS_ROWS
    while segment.rows >= limit:
        size_class, limit = size_class + 1, limit * MERGE_WIDTH
    return size_class


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
