"""Histories of accounts out of the records cache: mapped parts, and in memory what was ingested since.

A store that is asked for accounts follows its own ingest sequence: of each record it asks the database once, and the
records of an account are a look-up, however many there are. The answers are those of the database: nothing that is
stored ever changes, and everything up to the newest number is in a part or in the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from graph_features.clock import NEVER_MS
from graph_features.sources.account_index import PARTIES
from graph_features.sources.cache import KINDS, WITH_PARTIES, OpenPart, Part, ReadBetween, RecordsCache, Tables, chosen
from graph_features.sources.cache import end_of as end_of_parts
from graph_features.sources.records import TRANSACTIONS, RecordKind

TAIL_RECORDS: Final = 20_000
"""So many are kept in memory, and looked through, before they become a part."""

PIECE_RECORDS: Final = 50_000
"""So many at most are read while a caller waits. Who is further behind asks the database, and catches up by a piece."""

MOST_JOINED: Final = 200_000
"""Parts are not joined to more while a caller waits: half a second. A reader of everything joins the rest."""


@dataclass(frozen=True, kw_only=True)
class _Tail:
    """What has start < seq <= end of one store; `last` has the newest rows of all, to know the store by."""

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


class Histories:
    """The reader of one cache folder in this process. Threads may share it: each leaves a whole tail behind."""

    def __init__(self, cache: RecordsCache) -> None:
        self._cache = cache
        self._tail: _Tail | None = None
        self._open: dict[str, OpenPart] = {}

    def read(
        self, account_ids: Sequence[str], *, before_ms: int, up_to_seq: int, identity: str, read: ReadBetween
    ) -> Tables | None:
        """Return what `RecordStore.read_accounts` does of each kind, all numbered up to `up_to_seq`, in order of seq.

        None where the parts lag behind so far that the database had better be asked.
        """
        while True:
            parts = self._cache.parts(identity)
            tail = self._followed(identity, parts, up_to_seq, read)
            if tail is None:
                return None
            try:
                opened = self._opened(parts)
            except FileNotFoundError:  # joined with others since the manifest was read
                continue
            return _of_accounts(opened, tail.tables, account_ids, before_ms=before_ms, up_to_seq=up_to_seq)

    def _followed(self, identity: str, parts: list[Part], up_to_seq: int, read: ReadBetween) -> _Tail | None:
        """Return the tail behind `parts`, brought up to `up_to_seq`; None if that takes too long now."""
        tail = self._tail_behind(identity, end_of_parts(parts))
        if tail is None or up_to_seq - tail.end > PIECE_RECORDS:
            self._tail = None
            piece = min(up_to_seq, end_of_parts(parts) + PIECE_RECORDS)
            self._cache.extend(identity, piece, read, most_joined=MOST_JOINED)
            return None
        new = read(tail.end - 1, max(up_to_seq, tail.end))
        if not _begins_with(new, tail):
            # Another store, or one that was set back: `extend` notices the same and begins anew.
            self._tail = None
            self._cache.extend(identity, min(up_to_seq, PIECE_RECORDS), read, most_joined=MOST_JOINED)
            return None
        self._tail = tail = _longer(tail, new, max(up_to_seq, tail.end))
        if tail.end - tail.start > TAIL_RECORDS:
            self._cache.extend(
                identity,
                tail.end,
                lambda after, up_to: tail.between(after, up_to) if after >= tail.start else read(after, up_to),
                most_joined=MOST_JOINED,
            )
        return tail

    def _tail_behind(self, identity: str, start: int) -> _Tail | None:
        """Return the tail as far as it is known, from `start` on; None where nothing is known at all."""
        tail = self._tail
        if tail is None or tail.identity != identity or not tail.start <= start <= tail.end:
            return self._empty_tail(identity, start)
        if tail.start == start:
            return tail
        return _Tail(identity=identity, start=start, end=tail.end, tables=tail.between(start, tail.end), last=tail.last)

    def _empty_tail(self, identity: str, start: int) -> _Tail | None:
        none = {name: schema.empty_table() for name, schema in WITH_PARTIES.items()}
        if start == 0:
            return _Tail(identity=identity, start=0, end=0, tables=none, last=none)
        try:
            (newest,) = self._opened(self._cache.parts(identity)[-1:])
        except (FileNotFoundError, ValueError):
            return None
        return _Tail(identity=identity, start=start, end=start, tables=none, last=_numbered(newest.tables, start))

    def _opened(self, parts: list[Part]) -> list[OpenPart]:
        known = self._open
        opened = {part.name: known.get(part.name) or self._cache.open(part) for part in parts}
        self._open = {**known, **opened} if len(parts) == 1 else opened
        return list(opened.values())


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
        both = pa.concat_tables([tail.tables[kind.name], added])
        tables[kind.name] = both.combine_chunks() if both.column(0).num_chunks > 8 else both
    return _Tail(identity=tail.identity, start=tail.start, end=end, tables=tables, last=_numbered(new, end))


def _of_accounts(
    parts: list[OpenPart], tail: Tables, account_ids: Sequence[str], *, before_ms: int, up_to_seq: int
) -> Tables:
    wanted = pa.array(account_ids, pa.string())
    places = [part.index.find(account_ids) for part in parts]

    def rows(kind: RecordKind) -> pa.Table:
        names = kind.stored_schema.names
        found = [
            part.tables[kind.name].select(names).take(pa.array(part.index.rows(kind.name, place)))
            for part, place in zip(parts, places, strict=True)
        ]
        table = tail[kind.name]
        sender, receiver = (pc.is_in(table[party], value_set=wanted) for party in PARTIES)
        found.append(table.filter(pc.or_(sender, receiver)).select(names))
        return pa.concat_tables(found)

    tables = {}
    for kind in KINDS:
        everything = rows(kind)
        table = tables[kind.name] = chosen(everything, kind, up_to_seq, before_ms)
        if kind is TRANSACTIONS:
            all_there = table.num_rows == everything.num_rows
        elif not all_there:
            # What became known of payments that are not before `before_ms` themselves.
            ids = tables[TRANSACTIONS.name]["transaction_id"].combine_chunks()
            tables[kind.name] = table.filter(pc.is_in(table["transaction_id"], value_set=ids))
    return tables
