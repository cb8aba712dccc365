"""All records up to one number, by account: edge tables of a few accounts, and what any account had done by an instant.

Shape letters: k queries, s rows of statuses or labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.clock import NEVER_MS
from graph_features.contracts import STATUSES as WORDS_OF_STATUS
from graph_features.edges import Changes, EdgeTable, Int32, Int64, vocabulary, word_codes
from graph_features.errors import FeatureComputationError
from graph_features.late_records import Late, out_of_order
from graph_features.search import first_not_below
from graph_features.sources.account_index import PARTIES, WORDS
from graph_features.sources.cache import KINDS, WITH_PAYMENT, OpenPart, Tables
from graph_features.sources.records import LABELS, STATUSES, TRANSACTIONS, RecordKind
from graph_features.standings import LARGEST_SUM, STANDING

COMPLETED = WORDS_OF_STATUS.index("completed")
GENUINE = 0
FIRST_MS = 4
FIRST_FRAUDS = 5
"""Positions in STANDING, whose first four are count and sum of either side."""

_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """Rows of one kind of one part: their positions there."""

    part: OpenPart
    kind: str
    rows: Int64

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Return a column of these rows, of the index or of the records."""
        return self.part.numbers(self.kind, name)[self.rows]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The parts and the tail of a records cache: everything numbered up to `max_seq`, and nothing else."""

    parts: Sequence[OpenPart]
    max_seq: int

    def tables(self, account_ids: Sequence[str], *, before_ms: int) -> Tables:
        """Return what `RecordStore.read_accounts` does of each kind, in order of seq."""
        payments, *changes = self._chosen(account_ids, before_ms)
        tables = {}
        for kind, chosen in zip(KINDS, (payments, *changes), strict=True):
            found = [one.part.tables[kind.name].take(pa.array(one.rows)) for one in chosen]
            none = WITH_PAYMENT[kind.name].empty_table()
            tables[kind.name] = pa.concat_tables([none, *found]).select(kind.stored_schema.names)
        return tables

    def edges(self, account_ids: Sequence[str], *, before_ms: int) -> EdgeTable:
        """Return what these accounts sent or received before `before_ms`, with what was known by then.

        As if by EdgeTable.from_arrow of `tables`, without device, card and ip.
        """
        payments, statuses, labels = self._chosen(account_ids, before_ms)
        ts_ms, seq, amount = (_joined(payments, name) for name in ("event_timestamp", "seq", "amount_base"))
        order = _by_time(payments, ts_ms)
        ids, sender, receiver = _accounts(payments)
        words = {name: _vocabulary(payments, name) for name in dict.fromkeys(WORDS.values())}
        coded = {name: _recoded(payments, name, listed, words[listed])[order] for name, listed in WORDS.items()}
        edge_of = np.empty(len(order), np.int64)
        edge_of[order] = np.arange(len(order))
        none = np.empty(0, np.int32)
        edges = EdgeTable(
            account_ids=ids.to_numpy(zero_copy_only=False),
            ts_ms=ts_ms[order],
            sender=sender[order],
            receiver=receiver[order],
            amount=amount[order],
            channels=tuple(words["channels"].to_pylist()),
            countries=tuple(words["countries"].to_pylist()),
            device=none,
            card=none,
            ip=none,
            seq=seq[order],
            statuses=_changes(statuses, STATUSES.time, seq, edge_of),
            labels=_changes(labels, LABELS.time, seq, edge_of),
            max_seq=self.max_seq,
            standings=self,
            **coded,
        )
        edges.memo("account_ids", lambda: ids)
        return edges

    def _chosen(self, account_ids: Sequence[str], before_ms: int) -> list[list[_Chosen]]:
        """Return per kind the rows that concern these accounts, are before `before_ms`, and their payments too."""
        places = [part.index.find(account_ids) for part in self.parts]
        found: list[list[_Chosen]] = []
        for kind in KINDS:
            chosen = []
            for part, place in zip(self.parts, places, strict=True):
                rows = part.index.rows(kind.name, place)
                if before_ms < NEVER_MS:
                    for time in {kind.time, TRANSACTIONS.time}:
                        rows = rows[part.numbers(kind.name, time)[rows] < before_ms]
                chosen.append(_Chosen(part=part, kind=kind.name, rows=rows))
            found.append(chosen)
        return found

    def knows(self, account_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return that it can tell of any account."""
        return np.ones(len(account_ids), np.bool_)

    def totals(self, account_ids: Sequence[str], account: Int64, as_of_ms: Int64) -> Int64:
        """Return the numbers of STANDING, (len(STANDING), k), of `account_ids[account]` before `as_of_ms`.

        Raises FeatureComputationError for accounts whose sums do not fit 64 bits.
        """
        places = [part.index.find(account_ids) for part in self.parts]
        self._check_sums(account_ids, places)
        out = np.zeros((len(STANDING), len(account)), np.int64)
        out[FIRST_MS] = NEVER_MS
        for part, place in zip(self.parts, places, strict=True):
            for side, party in enumerate(PARTIES):
                _add_payments(out, part, side, party, place[account], as_of_ms)
        for kind in (STATUSES.name, LABELS.name):
            chosen = [
                _Chosen(part=part, kind=kind, rows=part.index.rows(kind, place))
                for part, place in zip(self.parts, places, strict=True)
            ]
            for side, party in enumerate(PARTIES):
                owners = [_owners(one, place, party) for one, place in zip(chosen, places, strict=True)]
                steps = _Steps.of(chosen, kind, np.concatenate((_NONE, *owners)), len(account_ids))
                count, total = steps.before(account, as_of_ms)
                if kind == LABELS.name:
                    out[FIRST_FRAUDS + side] += count
                else:
                    out[2 * side] += count
                    out[2 * side + 1] += total
        return out

    def late(self, account_ids: Sequence[str], after_seq: Int64) -> Late:
        """Return what was late of accounts and ingested after the `after_seq` of each; `account` points to them."""
        found: list[tuple[Int64, Int64, Int64]] = [(_NONE, _NONE, _NONE)]
        before_ms = -1
        for part in self.parts:
            late = part.kept(("late", before_ms), partial(_OutOfOrder.of, part, before_ms))
            before_ms = max(before_ms, part.kept("newest", partial(_newest_ms, part)))
            first = np.searchsorted(late.seq, after_seq.min(initial=NEVER_MS), side="right")
            if first == len(late.seq):
                continue
            place = part.index.find(account_ids)
            account_of = np.full(len(part.index.account_ids) + 1, -1)
            account_of[place] = np.arange(len(account_ids))
            account_of[-1] = -1
            seq, ts_ms = late.seq[first:], late.ts_ms[first:]
            for party, other in zip(late.parties, (None, late.parties[0]), strict=True):
                account = account_of[party[first:]]
                chosen = (account >= 0) & (seq > np.append(after_seq, NEVER_MS)[account])
                if other is not None:
                    chosen &= other[first:] != party[first:]
                found.append((account[chosen], ts_ms[chosen], seq[chosen]))
        account, ts_ms, seq = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return Late(account=account, ts_ms=ts_ms, seq=seq)

    def last_since(self, since_ms: int) -> dict[str, int]:
        """Return the accounts that paid, were paid or had a status of either become known since, and when last."""
        last: dict[str, int] = {}
        for part in self.parts:
            if part.kept("newest", partial(_newest_ms, part)) < since_ms:
                continue
            last_ms = np.full(len(part.index.account_ids), -1)
            for kind in (TRANSACTIONS, STATUSES):
                ts_ms = _counts_from(part, kind)
                rows = np.flatnonzero(ts_ms >= since_ms)
                for party in PARTIES:
                    np.maximum.at(last_ms, part.numbers(kind.name, party)[rows], ts_ms[rows])
            places = np.flatnonzero(last_ms >= 0)
            ids = part.index.account_ids.take(pa.array(places)).to_pylist()
            for account_id, ms in zip(ids, last_ms[places].tolist(), strict=True):
                last[account_id] = max(ms, last.get(account_id, -1))
        return last

    def _check_sums(self, account_ids: Sequence[str], places: Sequence[Int64]) -> None:
        for party, side in zip(PARTIES, ("sent", "received"), strict=True):
            sums = np.zeros(len(account_ids))
            for part, place in zip(self.parts, places, strict=True):
                known = np.flatnonzero(place >= 0)
                sums[known] += part.index.numbers[f"{party}_sums"][place[known]]
            over = np.flatnonzero(sums > LARGEST_SUM)
            if len(over):
                reason = f"amounts {side} add up to more than {LARGEST_SUM} minor units"
                raise FeatureComputationError({account_ids[at]: reason for at in over.tolist()})


@dataclass(frozen=True, kw_only=True)
class _OutOfOrder:
    """What is out of order in a part that follows others, by seq; accounts are places in the part's index."""

    seq: Int64
    ts_ms: Int64
    parties: Sequence[Int32]

    @classmethod
    def of(cls, part: OpenPart, after_ms: int) -> _OutOfOrder:
        seq = np.concatenate([part.numbers(kind.name, "seq") for kind in KINDS])
        ts_ms = np.concatenate([_counts_from(part, kind) for kind in KINDS])
        late = np.flatnonzero(out_of_order(seq, ts_ms, after_ms=after_ms))
        late = late[np.argsort(seq[late])]
        parties = [np.concatenate([part.numbers(kind.name, party) for kind in KINDS])[late] for party in PARTIES]
        return cls(seq=seq[late], ts_ms=ts_ms[late], parties=parties)


def _counts_from(part: OpenPart, kind: RecordKind) -> Int64:
    ts_ms = part.numbers(kind.name, kind.time)
    return np.asarray(np.maximum(ts_ms, part.numbers(kind.name, TRANSACTIONS.time)))


def _newest_ms(part: OpenPart) -> int:
    return max((int(_counts_from(part, kind).max(initial=-1)) for kind in KINDS), default=-1)


def _add_payments(out: Int64, part: OpenPart, side: int, party: str, place: Int64, as_of_ms: Int64) -> None:
    """Add one part's payments of one side, whatever became of them, and the time of the first."""
    numbers = part.index.numbers
    known = np.flatnonzero(place >= 0)
    first, end = (numbers[f"{party}_offsets"][place[known] + step] for step in (0, 1))
    ts_ms, running = numbers[f"{party}_ts_ms"], numbers[f"{party}_running"]
    at = first_not_below(ts_ms, first, end, as_of_ms[known])
    out[2 * side, known] += at - first
    out[2 * side + 1, known] += running[at] - running[first]
    some = first < end
    known, first = known[some], first[some]
    out[FIRST_MS, known] = np.minimum(out[FIRST_MS, known], ts_ms[first])


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """What changes did to the state of payments, per owner in order of time: that they count, or are frauds."""

    offsets: Int64
    known_ms: Int64
    count: Int64
    total: Int64

    @classmethod
    def of(cls, chosen: Sequence[_Chosen], kind: str, owner: Int64, n_owners: int) -> _Steps:
        of_seq, seq, amount, value = (_joined(chosen, name) for name in ("of_seq", "seq", "amount_base", "value"))
        ts_ms = _joined(chosen, STATUSES.time if kind == STATUSES.name else LABELS.time)
        order = np.lexsort((seq, ts_ms, of_seq))
        state = (value == COMPLETED) if kind == STATUSES.name else (value != GENUINE)
        now = state[order].astype(np.int64)
        before = np.roll(now, 1)
        before[np.flatnonzero(np.diff(of_seq[order], prepend=-1))] = int(kind == STATUSES.name)
        step = np.empty_like(now)
        step[order] = now - before
        known_ms = np.maximum(ts_ms, _joined(chosen, TRANSACTIONS.time))
        order = np.lexsort((known_ms, owner))
        order = order[(owner[order] >= 0) & (step[order] != 0)]
        return cls(
            offsets=np.searchsorted(owner[order], np.arange(n_owners + 1)),
            known_ms=known_ms[order],
            count=_running(step[order]),
            total=_running(step[order] * amount[order]),
        )

    def before(self, owner: Int64, as_of_ms: Int64) -> tuple[Int64, Int64]:
        """Return what the steps known before `as_of_ms` add to each owner's count and sum."""
        first = self.offsets[owner]
        at = first_not_below(self.known_ms, first, self.offsets[owner + 1], as_of_ms)
        return self.count[at] - self.count[first], self.total[at] - self.total[first]


def _running(steps: Int64) -> Int64:
    return np.concatenate(([0], np.cumsum(steps)))


def _owners(chosen: _Chosen, places: Int64, party: str) -> Int64:
    """Return which of the accounts at `places` is that party of each row, -1 where none is."""
    known = np.flatnonzero(places >= 0)
    order = known[np.argsort(places[known])]
    code = chosen.numbers(party)
    at = np.searchsorted(places[order], code)
    found = np.append(places[order], -1)[at] == code
    return np.where(found, np.append(order, -1)[at], -1)


def _joined(chosen: Sequence[_Chosen], name: str) -> npt.NDArray[Any]:
    parts = [one.numbers(name) for one in chosen]
    return np.concatenate(parts) if parts else _NONE


def _by_time(payments: Sequence[_Chosen], ts_ms: Int64) -> Int64:
    """Return the order by (time, transaction id)."""
    order = np.argsort(ts_ms, kind="stable")
    equal = np.diff(ts_ms[order]) == 0
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    if len(tied):
        # Ids are looked up only where they decide.
        ends = np.cumsum([len(one.rows) for one in payments])
        at, ids = order[tied], np.empty(len(tied), np.object_)
        which = np.searchsorted(ends, at, side="right")
        for number in np.unique(which).tolist():
            here = which == number
            one = payments[number]
            rows = one.rows[at[here] - (ends[number] - len(one.rows))]
            taken = one.part.tables[one.kind]["transaction_id"].take(pa.array(rows))
            ids[here] = taken.to_numpy(zero_copy_only=False)
        keys = pa.table({"ts_ms": ts_ms[at], "id": pa.array(ids, pa.string())})
        sorting = pc.sort_indices(keys, sort_keys=[("ts_ms", "ascending"), ("id", "ascending")])
        order[tied] = at[sorting.to_numpy()]
    return order


def _accounts(payments: Sequence[_Chosen]) -> tuple[pa.StringArray, Int32, Int32]:
    """Return the sorted ids of all parties, and the codes of senders and receivers."""
    used, ids = [], []
    for one in payments:
        everyone = one.part.index.account_ids
        here = np.zeros(len(everyone), np.bool_)
        for party in PARTIES:
            here[one.numbers(party)] = True
        used.append(np.flatnonzero(here))
        ids.append(everyone.take(pa.array(used[-1])))
    together = pc.unique(pa.chunked_array(ids, pa.string()))
    if sum(len(some) > 0 for some in ids) > 1:
        together = together.take(pc.sort_indices(together))
    codes: dict[str, list[Int32]] = {party: [np.empty(0, np.int32)] for party in PARTIES}
    for one, places, names in zip(payments, used, ids, strict=True):
        code_of = np.full(len(one.part.index.account_ids), -1, np.int32)
        code_of[places] = word_codes(names, together)
        for party in PARTIES:
            codes[party].append(code_of[one.numbers(party)])
    sender, receiver = (np.concatenate(codes[party]) for party in PARTIES)
    return together, sender, receiver


def _vocabulary(payments: Sequence[_Chosen], listed: str) -> pa.Array:
    return vocabulary(*(pa.chunked_array([one.part.index.words(listed)], pa.string()) for one in payments))


def _recoded(payments: Sequence[_Chosen], name: str, listed: str, words: pa.Array) -> Int32:
    parts = [np.empty(0, np.int32)]
    for one in payments:
        # One place more than there are words: the code of null, -1, falls on it.
        code_of = np.append(word_codes(one.part.index.words(listed), words), -1).astype(np.int32)
        parts.append(code_of[one.numbers(name)])
    return np.concatenate(parts)


def _changes(chosen: Sequence[_Chosen], time: str, seq: Int64, edge_of: Int64) -> Changes:
    """Return statuses or labels of payments numbered `seq`, ascending, whose edges are `edge_of`."""
    ts_ms, number, value, of_seq = (_joined(chosen, name) for name in (time, "seq", "value", "of_seq"))
    order = np.lexsort((number, ts_ms))
    return Changes(
        edge=edge_of[np.searchsorted(seq, of_seq[order])],
        ts_ms=ts_ms[order],
        value=value[order].astype(np.int8),
        seq=number[order],
    )
