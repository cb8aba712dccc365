"""Everything that a record store holds, once more as Arrow files: a reader of it all fetches only what is new.

Records are append-only and numbered, so what is stored up to a sequence number never changes, and files that hold it
never grow stale; they only lack what came later. They are not used for a store of another identity, nor for one that
was set back to an earlier state, which shows in the newest row that they hold.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.clock import NEVER_MS
from graph_features.contracts import TIMESTAMP
from graph_features.sources.filelock import file_lock
from graph_features.sources.records import LABELS, STATUSES, TRANSACTIONS, RecordKind

FORMAT: Final = 1
LOCK_WAIT_S: Final = 600.0
KINDS: Final = (TRANSACTIONS, STATUSES, LABELS)

Tables = dict[str, pa.Table]
"""By name of the kind, rows in order of seq."""

ReadBetween = Callable[[int, int], Tables]
"""Reads what has after_seq < seq <= up_to_seq from the store itself."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files `name.<kind>.arrow` with everything in (after_seq, up_to_seq]."""

    name: str
    after_seq: int
    up_to_seq: int


@dataclass(frozen=True, kw_only=True)
class RecordsCache:
    """A folder of parts, each ending where the next begins, and a manifest that names them.

    Parts are written under a lock and never change. Neighbours of about one size become one, so that there are few.
    """

    folder: Path

    def tables(self, identity: str, up_to_seq: int, before_ms: int, read: ReadBetween) -> Tables:
        """Return all that is numbered up to `up_to_seq` and happened before `before_ms`, each kind by its own time.

        `read` asks the store with that identity for what is not here yet, which is kept.
        """
        while True:
            # Another process may have joined parts, and removed them, since the manifest was read.
            with suppress(FileNotFoundError):
                parts = self._up_to_date(identity, up_to_seq, read)
                return {kind.name: _chosen(self._mapped(parts, kind), kind, up_to_seq, before_ms) for kind in KINDS}

    def _up_to_date(self, identity: str, up_to_seq: int, read: ReadBetween) -> list[Part]:
        parts = self._manifest(identity)
        if _end(parts) >= up_to_seq and self._is_of(parts, read):
            return parts
        with file_lock(self.folder / "lock", wait_s=LOCK_WAIT_S):
            # Without the lock, after all this time, two may write the same rows: into files of their own.
            parts = self._manifest(identity)
            if not self._is_of(parts, read):
                parts = []
            if _end(parts) < up_to_seq:
                parts = self._joined([*parts, self._write(_end(parts), up_to_seq, read(_end(parts), up_to_seq))])
                self._commit(identity, parts)
        return parts

    def _is_of(self, parts: list[Part], read: ReadBetween) -> bool:
        """Whether the store still has the newest row of the parts."""
        end = _end(parts)
        stored = read(end - 1, end)
        return all(
            _chosen(self._mapped(parts[-1:], kind), kind, end, NEVER_MS, end - 1) == stored[kind.name] for kind in KINDS
        )

    def _joined(self, parts: list[Part]) -> list[Part]:
        """Make one of the last two parts while the last is at least half as long as the one before."""
        while len(parts) > 1 and 2 * _length(parts[-1]) >= _length(parts[-2]):
            tables = {kind.name: self._mapped(parts[-2:], kind) for kind in KINDS}
            parts = [*parts[:-2], self._write(parts[-2].after_seq, parts[-1].up_to_seq, tables)]
        return parts

    def _write(self, after_seq: int, up_to_seq: int, tables: Mapping[str, pa.Table]) -> Part:
        part = Part(name=f"{up_to_seq}-{uuid.uuid4().hex[:8]}", after_seq=after_seq, up_to_seq=up_to_seq)
        for name, table in tables.items():
            with pa.OSFile(str(self._path(part, name)), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        return part

    def _mapped(self, parts: list[Part], kind: RecordKind) -> pa.Table:
        tables = [pa.ipc.open_file(pa.memory_map(str(self._path(part, kind.name)))).read_all() for part in parts]
        return pa.concat_tables([kind.stored_schema.empty_table(), *tables])

    def _path(self, part: Part, kind: str) -> Path:
        return self.folder / f"{part.name}.{kind}.arrow"

    def _manifest(self, identity: str) -> list[Part]:
        """Return the parts; none without a manifest, or where it is broken, of another store, or lacks files."""
        try:
            found = json.loads((self.folder / "manifest.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return []
        if (found.get("format"), found.get("identity")) != (FORMAT, identity):
            return []
        parts = [Part(**part) for part in found["parts"]]
        return parts if all(self._path(part, kind.name).exists() for part in parts for kind in KINDS) else []

    def _commit(self, identity: str, parts: list[Part]) -> None:
        draft = self.folder / f"{uuid.uuid4().hex}.draft"
        draft.write_text(json.dumps({"format": FORMAT, "identity": identity, "parts": [*map(asdict, parts)]}))
        draft.replace(self.folder / "manifest.json")
        named = {self._path(part, kind.name) for part in parts for kind in KINDS}
        for path in self._files():
            if path not in named:
                path.unlink(missing_ok=True)  # who has it mapped keeps it

    def _files(self) -> Iterator[Path]:
        yield from self.folder.glob("*.arrow")
        yield from self.folder.glob("*.draft")


def _chosen(table: pa.Table, kind: RecordKind, up_to_seq: int, before_ms: int, after_seq: int = 0) -> pa.Table:
    """Return rows of a table in order of seq; where all are wanted they stay mapped, else they are copied."""
    first, end = np.searchsorted(table["seq"].to_numpy(), [after_seq, up_to_seq], side="right").tolist()
    table = table.slice(first, end - first)
    if before_ms == NEVER_MS:
        return table
    return table.filter(pc.field(kind.time) < pa.scalar(before_ms, pa.int64()).cast(TIMESTAMP))


def _end(parts: list[Part]) -> int:
    return parts[-1].up_to_seq if parts else 0


def _length(part: Part) -> int:
    return part.up_to_seq - part.after_seq
