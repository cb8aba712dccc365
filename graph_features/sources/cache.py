"""Everything that a record store holds, once more as Arrow files: a reader fetches only what is new.

Beside each part lies an index of its rows by account, so that the history of an account is looked up and not asked for:
see `histories`. Statuses and labels are kept with number, time, parties and amount of their payments.

Records are append-only and numbered, so what is stored up to a sequence number never changes, and files that hold it
never grow stale; they only lack what came later. They are not used for a store of another identity, nor for one that
was set back to an earlier state, which shows in the newest row that they hold.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.clock import NEVER_MS
from graph_features.contracts import TIMESTAMP
from graph_features.sources.account_index import AccountIndex, index_of
from graph_features.sources.filelock import file_lock
from graph_features.sources.records import LABELS, STATUSES, TRANSACTIONS, RecordKind

T = TypeVar("T")

FORMAT: Final = 2
LOCK_WAIT_S: Final = 600.0
KINDS: Final = (TRANSACTIONS, STATUSES, LABELS)
INDEX: Final = "accounts"
"""A part's file beside those of its kinds."""

_OF_PAYMENT = [
    pa.field("of_seq", pa.int64(), nullable=False),
    *(
        TRANSACTIONS.stored_schema.field(name)
        for name in ("event_timestamp", "sender_id", "receiver_id", "amount_base")
    ),
]
WITH_PAYMENT: Final = {
    kind.name: kind.stored_schema if kind is TRANSACTIONS else pa.schema([*kind.stored_schema, *_OF_PAYMENT])
    for kind in KINDS
}
"""What a part holds of each kind."""

Tables = dict[str, pa.Table]
"""By name of the kind, rows in order of seq."""

ReadBetween = Callable[[int, int], Tables]
"""Reads what has after_seq < seq <= up_to_seq from the store itself, columns WITH_PAYMENT."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files `name.<kind>.arrow` with everything in (after_seq, up_to_seq]."""

    name: str
    after_seq: int
    up_to_seq: int


@dataclass(frozen=True, kw_only=True)
class OpenPart:
    """A part's rows in order of seq, one chunk per column, and their index."""

    tables: Tables
    index: AccountIndex
    known: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, tables: Tables) -> OpenPart:
        """Return the same of rows in memory."""
        return cls(
            tables={name: table.combine_chunks() for name, table in tables.items()},
            index=AccountIndex(table=index_of(tables)),
        )

    def numbers(self, kind: str, name: str) -> npt.NDArray[Any]:
        """Return a column of the index or of the records of a kind; times are epoch milliseconds."""
        place = f"{kind}_{name}"
        if place in self.index.numbers:
            return self.index.numbers[place]
        return self.kept(place, lambda: self.tables[kind][name].cast(pa.int64()).to_numpy())

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept under `key`, making it the first time: a part never changes."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]  # type: ignore[no-any-return]


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
                return {
                    kind.name: chosen(self._mapped(parts, kind), kind, up_to_seq, before_ms).select(
                        kind.stored_schema.names
                    )
                    for kind in KINDS
                }

    def extend(self, identity: str, up_to_seq: int, read: ReadBetween, *, most_joined: int) -> None:
        """Have parts up to `up_to_seq`, unless another process is about to; join none to more than `most_joined`."""
        with file_lock(self.folder / "lock") as held:
            if held:
                parts = self.parts(identity)
                parts = parts if self._is_of(parts, read) else []
                if end_of(parts) < up_to_seq:
                    self._append(identity, parts, up_to_seq, read, most_joined)

    def open(self, part: Part) -> OpenPart:
        """Map a part; raises FileNotFoundError where it has been joined with others meanwhile."""
        tables = {kind.name: self._read(part, kind.name).combine_chunks() for kind in KINDS}
        return OpenPart(tables=tables, index=AccountIndex(table=self._read(part, INDEX)))

    def _up_to_date(self, identity: str, up_to_seq: int, read: ReadBetween) -> list[Part]:
        parts = self.parts(identity)
        if end_of(parts) >= up_to_seq and self._is_of(parts, read):
            return parts
        with file_lock(self.folder / "lock", wait_s=LOCK_WAIT_S):
            # Without the lock, after all this time, two may write the same rows: into files of their own.
            parts = self.parts(identity)
            if not self._is_of(parts, read):
                parts = []
            if end_of(parts) < up_to_seq:
                parts = self._append(identity, parts, up_to_seq, read, NEVER_MS)
        return parts

    def _append(
        self, identity: str, parts: list[Part], up_to_seq: int, read: ReadBetween, most_joined: int
    ) -> list[Part]:
        start = end_of(parts)
        parts = self._joined([*parts, self._write(start, up_to_seq, read(start, up_to_seq))], most_joined)
        self._commit(identity, parts)
        return parts

    def _is_of(self, parts: list[Part], read: ReadBetween) -> bool:
        """Whether the store still has the newest row of the parts."""
        end = end_of(parts)
        stored = read(end - 1, end)
        return all(
            chosen(self._mapped(parts[-1:], kind), kind, end, NEVER_MS, end - 1) == stored[kind.name] for kind in KINDS
        )

    def _joined(self, parts: list[Part], most_joined: int) -> list[Part]:
        """Make one of the last two parts while the last is at least half as long as the one before."""
        while (
            len(parts) > 1
            and 2 * _length(parts[-1]) >= _length(parts[-2])
            and _length(parts[-1]) + _length(parts[-2]) <= most_joined
        ):
            tables = {kind.name: self._mapped(parts[-2:], kind) for kind in KINDS}
            parts = [*parts[:-2], self._write(parts[-2].after_seq, parts[-1].up_to_seq, tables)]
        return parts

    def _write(self, after_seq: int, up_to_seq: int, tables: Mapping[str, pa.Table]) -> Part:
        part = Part(name=f"{up_to_seq}-{uuid.uuid4().hex[:8]}", after_seq=after_seq, up_to_seq=up_to_seq)
        for name, table in {**tables, INDEX: index_of(tables)}.items():
            with pa.OSFile(str(self._path(part, name)), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                # One batch, so that every column comes back as one mapped array.
                writer.write_table(table.combine_chunks(), max_chunksize=max(table.num_rows, 1))
        return part

    def _mapped(self, parts: list[Part], kind: RecordKind) -> pa.Table:
        tables = [self._read(part, kind.name) for part in parts]
        return pa.concat_tables([WITH_PAYMENT[kind.name].empty_table(), *tables])

    def _read(self, part: Part, name: str) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(self._path(part, name)))).read_all()

    def _path(self, part: Part, kind: str) -> Path:
        return self.folder / f"{part.name}.{kind}.arrow"

    def parts(self, identity: str) -> list[Part]:
        """Return the parts; none without a manifest, or where it is broken, of another store, or lacks files."""
        try:
            found = json.loads((self.folder / "manifest.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return []
        if (found.get("format"), found.get("identity")) != (FORMAT, identity):
            return []
        parts = [Part(**part) for part in found["parts"]]
        return parts if all(path.exists() for path in self._named(parts)) else []

    def _commit(self, identity: str, parts: list[Part]) -> None:
        draft = self.folder / f"{uuid.uuid4().hex}.draft"
        draft.write_text(json.dumps({"format": FORMAT, "identity": identity, "parts": [*map(asdict, parts)]}))
        draft.replace(self.folder / "manifest.json")
        named = set(self._named(parts))
        for path in self._files():
            if path not in named:
                path.unlink(missing_ok=True)  # who has it mapped keeps it

    def _named(self, parts: list[Part]) -> Iterator[Path]:
        return (self._path(part, name) for part in parts for name in (*(kind.name for kind in KINDS), INDEX))

    def _files(self) -> Iterator[Path]:
        yield from self.folder.glob("*.arrow")
        yield from self.folder.glob("*.draft")


def chosen(table: pa.Table, kind: RecordKind, up_to_seq: int, before_ms: int, after_seq: int = 0) -> pa.Table:
    """Return rows of a table in order of seq; where all are wanted they stay mapped, else they are copied."""
    first, end = np.searchsorted(table["seq"].to_numpy(), [after_seq, up_to_seq], side="right").tolist()
    table = table.slice(first, end - first)
    if before_ms == NEVER_MS:
        return table
    return table.filter(pc.field(kind.time) < pa.scalar(before_ms, pa.int64()).cast(TIMESTAMP))


def end_of(parts: list[Part]) -> int:
    return parts[-1].up_to_seq if parts else 0


def _length(part: Part) -> int:
    return part.up_to_seq - part.after_seq
