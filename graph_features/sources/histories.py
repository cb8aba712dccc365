"""Histories of accounts out of the records cache: mapped parts, and in memory what was ingested since.

A store that is asked for accounts follows its own ingest sequence: of each record it asks the database once, and the
records of an account are a look-up, however many there are. The answers are those of the database: nothing that is
stored ever changes, and everything up to the newest number is in a part or in the tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import pyarrow as pa

from graph_features.clock import NEVER_MS
from graph_features.sources.cache import (
    KINDS,
    WITH_PAYMENT,
    OpenPart,
    Part,
    ReadBetween,
    RecordsCache,
    Tables,
    chosen,
    end_of,
)
from graph_features.sources.snapshot import Snapshot

TAIL_RECORDS: Final = 5_000
"""So many are kept in memory, and looked through, before they become a part."""

PIECE_RECORDS: Final = 50_000
"""So many at most are read while a caller waits. Who is further behind asks the database, and catches up by a piece."""

MOST_JOINED: Final = 200_000
"""Parts are not joined to more while a caller waits: half a second. A reader of everything joins the rest."""


@dataclass(frozen=True, kw_only=True)
class _Tail:
    """What has start < seq <= end of one store, and the newest row of all of each kind, to know the store by."""

    identity: str
    start: int
    end: int
    tables: Tables
    last: Tables

    def between(self, after_seq: int, up_to_seq: int) -> Tables:
        return {
            kind.name: chosen(self.tables[kind.name], kind, up_to_seq, NEVER_MS, after_seq).combine_chunks()
            for kind in KINDS
        }

    @cached_property
    def part(self) -> OpenPart:
        return OpenPart.of(self.tables)


class Histories:
    """The reader of one cache folder in this process. Threads may share it: each leaves a whole tail behind."""

    def __init__(self, cache: RecordsCache) -> None:
        self._cache = cache
        self._tail: _Tail | None = None
        self._open: dict[str, OpenPart] = {}

    def snapshot(self, *, up_to_seq: int, identity: str, read: ReadBetween, wait: bool = False) -> Snapshot | None:
        """Return everything numbered up to `up_to_seq`, or to more where another process has read further.

        None where the parts lag behind so far that the database had better be asked; with `wait` they are brought up
        to date instead.
        """
        while True:
            parts = self._cache.parts(identity)
            try:
                tail = self._followed(identity, parts, up_to_seq, read)
                if tail is None:
                    if wait:
                        continue
                    return None
                opened = self._opened(parts)
            except FileNotFoundError:  # joined with others since the manifest was read
                continue
            return Snapshot(parts=opened if tail.start == tail.end else [*opened, tail.part], max_seq=tail.end)

    def _followed(self, identity: str, parts: list[Part], up_to_seq: int, read: ReadBetween) -> _Tail | None:
        """Return the tail behind `parts`, brought up to `up_to_seq`; None if that takes too long now."""
        tail = self._tail_behind(identity, parts)
        if up_to_seq == tail.end and tail is self._tail:
            return tail
        up_to_seq = max(up_to_seq, tail.end)
        if up_to_seq - tail.end <= PIECE_RECORDS:
            new = read(tail.end - 1, up_to_seq)
            if _begins_with(new, tail):
                self._tail = tail = _longer(tail, new, up_to_seq)
                if tail.end - tail.start > TAIL_RECORDS:
                    self._cache.extend(identity, tail.end, _from_tail(tail, read), most_joined=MOST_JOINED)
                return tail
        # Far behind, or of another store or one that was set back: `extend` notices the same and begins anew.
        self._tail = None
        piece = min(up_to_seq, end_of(parts) + PIECE_RECORDS)
        self._cache.extend(identity, piece, read, most_joined=MOST_JOINED)
        return None

    def _tail_behind(self, identity: str, parts: list[Part]) -> _Tail:
        """Return the tail behind `parts`, as far as it is known."""
        tail, start = self._tail, end_of(parts)
        if tail is None or tail.identity != identity or not tail.start <= start <= tail.end:
            none = {name: schema.empty_table() for name, schema in WITH_PAYMENT.items()}
            last = none if start == 0 else _numbered(self._opened(parts)[-1].tables, start)
            return _Tail(identity=identity, start=start, end=start, tables=none, last=last)
        if tail.start == start:
            return tail
        return _Tail(identity=identity, start=start, end=tail.end, tables=tail.between(start, tail.end), last=tail.last)

    def _opened(self, parts: list[Part]) -> list[OpenPart]:
        known = self._open
        self._open = {part.name: known.get(part.name) or self._cache.open(part) for part in parts}
        return list(self._open.values())


def _from_tail(tail: _Tail, read: ReadBetween) -> ReadBetween:
    return lambda after, up_to: tail.between(after, up_to) if after >= tail.start else read(after, up_to)


def _numbered(tables: Tables, seq: int) -> Tables:
    return {kind.name: chosen(tables[kind.name], kind, seq, NEVER_MS, seq - 1) for kind in KINDS}


def _begins_with(new: Tables, tail: _Tail) -> bool:
    first = _numbered(new, tail.end)
    return all(first[name].equals(table) for name, table in tail.last.items())


def _longer(tail: _Tail, new: Tables, end: int) -> _Tail:
    if end == tail.end:
        return tail
    tables = {}
    for kind in KINDS:
        added = chosen(new[kind.name], kind, end, NEVER_MS, tail.end)
        tables[kind.name] = pa.concat_tables([tail.tables[kind.name], added]).combine_chunks()
    return _Tail(identity=tail.identity, start=tail.start, end=end, tables=tables, last=_numbered(new, end))
