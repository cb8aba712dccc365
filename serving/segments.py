"""The journal's files: frames (length, CRC-32, content) in segments, in a folder that the server writing them holds."""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from graph_features.errors import SchemaMismatchError
from serving.decision_batch import DecisionBatch

SEGMENT, REFUSED = ".journal", ".refused"
"""What ends the name of a file that is to be shipped, and of one that this version cannot read, for another to ship."""
_FRAME = struct.Struct("<II")
_BATCH = b"B"
"""The first byte of a frame's content says what it is: here `DecisionBatch.to_bytes`."""


class Segment:
    """A journal file that is being written."""

    def __init__(self, folder: Path) -> None:
        # Named by the time and a random part: the name is what tells in the database that it was stored.
        self.path = folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}{SEGMENT}"
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


def segments_of(folder: Path) -> list[Path]:
    """What is to be shipped from a folder, oldest first."""
    return sorted(folder.glob(f"*{SEGMENT}"))


def framed(batch: DecisionBatch) -> bytes:
    """A batch as a segment holds it."""
    content = _BATCH + batch.to_bytes()
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
        "start the version that wrote them once: it takes the file over"
    )


def hold(folder: Path) -> int | None:
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


def own_folder(root: Path) -> tuple[Path, int]:
    """Make a folder and return it with its lock; others see it only when it is held."""
    name = secrets.token_hex(8)
    hidden = root / f".{name}"
    hidden.mkdir()
    held = hold(hidden)
    assert held is not None, f"{hidden} is known to nobody else"
    return hidden.rename(root / name), held


def remove_folder(folder: Path) -> None:
    """Remove a held folder if nothing is left in it but its lock."""
    (folder / "lock").unlink(missing_ok=True)
    with suppress(OSError):  # another server has just come upon it: it removes the folder, or the next one does
        folder.rmdir()
