"""Small random payment histories with everything that makes exactness hard; loaded by the conftest files."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import strategies as st

from graph_features.clock import DAY_MS, HOUR_MS
from graph_features.contracts import STORED_LABEL_SCHEMA, STORED_STATUS_SCHEMA, STORED_TRANSACTION_SCHEMA
from graph_features.edges import EdgeTable
from graph_features.sources.base import Records
from graph_features.sources.cache import WITH_PAYMENT, OpenPart
from graph_features.sources.snapshot import Snapshot

START_MS = 1_650_000_000_000
SPAN_MS = 45 * DAY_MS


@dataclass(frozen=True, kw_only=True)
class Payment:
    """One payment; `sender_country` and the like may be None."""

    id: str
    ts_ms: int
    sender: str
    receiver: str
    amount: int = 1_000
    channel: str | None = None
    sender_country: str | None = None
    receiver_country: str | None = None
    seq: int = 0


@dataclass(frozen=True, kw_only=True)
class Change:
    """A status, or a label (`value` is a fraud party, or None for genuine), of the payment with that id."""

    id: str
    ts_ms: int
    value: str | None
    seq: int = 0


@dataclass(frozen=True, kw_only=True)
class History:
    """Payments, statuses and labels, each in order of arrival; times need not follow it. `numbered` gives sequences."""

    payments: tuple[Payment, ...] = ()
    statuses: tuple[Change, ...] = ()
    labels: tuple[Change, ...] = ()

    @property
    def max_seq(self) -> int:
        return max((item.seq for item in (*self.payments, *self.statuses, *self.labels)), default=0)

    def numbered(self, after: int = 0) -> History:
        """The same with sequence numbers above `after`: payments, then statuses, then labels."""
        counter = itertools.count(after + 1)
        groups = [
            tuple(replace(item, seq=next(counter)) for item in group)
            for group in (self.payments, self.statuses, self.labels)
        ]
        return History(payments=groups[0], statuses=groups[1], labels=groups[2])

    def before(self, before_ms: int) -> History:
        """What had happened or become known before an instant."""
        return replace(
            self,
            payments=tuple(payment for payment in self.payments if payment.ts_ms < before_ms),
            statuses=tuple(change for change in self.statuses if change.ts_ms < before_ms),
            labels=tuple(change for change in self.labels if change.ts_ms < before_ms),
        )

    def and_then(self, later: History) -> History:
        """This history with another one arriving after it."""
        return replace(
            self,
            payments=(*self.payments, *later.payments),
            statuses=(*self.statuses, *later.statuses),
            labels=(*self.labels, *later.labels),
        )

    def accounts(self) -> list[str]:
        return sorted({end for payment in self.payments for end in (payment.sender, payment.receiver)})

    def pairs(self) -> list[tuple[str, str]]:
        return sorted({(payment.sender, payment.receiver) for payment in self.payments})

    def records(self) -> Records:
        """The history as a record store returns it, numbered if it is not."""
        if any(payment.seq == 0 for payment in self.payments):
            return self.numbered().records()
        transactions = [
            {
                **dict.fromkeys(STORED_TRANSACTION_SCHEMA.names),
                "seq": payment.seq,
                "transaction_id": payment.id,
                "event_timestamp": payment.ts_ms,
                "sender_id": payment.sender,
                "receiver_id": payment.receiver,
                "amount": payment.amount,
                "currency": "EUR",
                "amount_base": payment.amount,
                "channel": payment.channel,
                "sender_country": payment.sender_country,
                "receiver_country": payment.receiver_country,
            }
            for payment in self.payments
        ]
        statuses = [
            {"seq": change.seq, "transaction_id": change.id, "status": change.value, "status_timestamp": change.ts_ms}
            for change in self.statuses
        ]
        labels = [
            {
                "seq": change.seq,
                "transaction_id": change.id,
                "is_fraud": change.value is not None,
                "label_timestamp": change.ts_ms,
                "fraud_party": change.value or "sender",
            }
            for change in self.labels
        ]
        return Records(
            transactions=pa.Table.from_pylist(transactions, STORED_TRANSACTION_SCHEMA),
            statuses=pa.Table.from_pylist(statuses, STORED_STATUS_SCHEMA),
            labels=pa.Table.from_pylist(labels, STORED_LABEL_SCHEMA),
            max_seq=self.max_seq,
        )

    def edges(self) -> EdgeTable:
        records = self.records()
        return EdgeTable.from_arrow(records.transactions, records.statuses, records.labels, max_seq=records.max_seq)


@dataclass
class MemoryRecords:
    """RecordStore's reading side over a history, which may be replaced while it is in use."""

    history: History
    reads: int = 0
    indexed: bool = False

    def barrier(self) -> None:
        return

    def max_seq(self) -> int:
        return self.history.records().max_seq

    def read_all(self, *, before_ms: int | None = None, max_seq: int | None = None) -> Records:
        assert max_seq is None
        found = self.history if before_ms is None else self.history.before(before_ms)
        # Numbers are given once: what is left out keeps its own.
        return _only(self.history.records(), [payment.id for payment in found.payments], before_ms or 2**62)

    def snapshot(self, *, wait: bool = False) -> Snapshot | None:
        """What an indexed store has at hand, in one part or two."""
        if not self.indexed:
            return None
        self.reads += 1
        records = self.history.records()
        middle = records.max_seq * 2 // 3
        parts = [_part(records, after, up_to) for after, up_to in ((0, middle), (middle, records.max_seq))]
        return Snapshot(parts=parts, max_seq=records.max_seq)

    def read_accounts(self, account_ids: list[str], *, before_ms: int) -> Records:
        self.reads += 1
        wanted = set(account_ids)
        ids = [
            payment.id
            for payment in self.history.payments
            if payment.ts_ms < before_ms and wanted & {payment.sender, payment.receiver}
        ]
        return _only(self.history.records(), ids, before_ms)


def _part(records: Records, after_seq: int, up_to_seq: int) -> OpenPart:
    payments = {row["transaction_id"]: row for row in records.transactions.to_pylist()}
    names = [name for name in WITH_PAYMENT["labels"].names if name in STORED_TRANSACTION_SCHEMA.names]
    tables = {}
    for kind, schema in WITH_PAYMENT.items():
        rows = getattr(records, kind).to_pylist()
        if kind != "transactions":
            rows = [
                {**{name: payments[row["transaction_id"]][name] for name in names}, **row}
                | {"of_seq": payments[row["transaction_id"]]["seq"]}
                for row in rows
            ]
        kept = sorted((row for row in rows if after_seq < row["seq"] <= up_to_seq), key=lambda row: row["seq"])
        tables[kind] = pa.Table.from_pylist(kept, schema)
    return OpenPart.of(tables)


def _only(records: Records, ids: Iterable[str], before_ms: int) -> Records:
    chosen = pa.array(list(ids), pa.string())

    def keep(table: pa.Table, time: str) -> pa.Table:
        known = np.asarray(table[time].cast(pa.int64())) < before_ms
        return table.filter(pc.and_(pc.is_in(table["transaction_id"], value_set=chosen), pa.array(known, pa.bool_())))

    return replace(
        records,
        transactions=keep(records.transactions, "event_timestamp"),
        statuses=keep(records.statuses, "status_timestamp"),
        labels=keep(records.labels, "label_timestamp"),
    )


# Offsets around the ends of the windows, so that payments lie just inside and just outside of them, and often tie.
_OFFSETS = [days * DAY_MS + hours * HOUR_MS + ms for days in (0, 1, 7, 30) for hours in (0, 1) for ms in (-1, 0, 1)]

# Likewise around whole minutes, hours and days, where windows begin.
_rounded = st.builds(
    lambda ms, grain, step: ms // grain * grain + step,
    st.integers(START_MS + DAY_MS, START_MS + SPAN_MS),
    st.sampled_from([HOUR_MS // 60, HOUR_MS, DAY_MS]),
    st.integers(-1, 1),
)
instants = st.one_of(
    st.sampled_from([START_MS + max(offset, 0) for offset in _OFFSETS]),
    _rounded,
    st.integers(START_MS, START_MS + SPAN_MS),
)
_AMOUNTS = [1, 100, 1_000, 9_499, 9_500, 9_999, 10_000, 47_500, 50_000, 10**15 - 1, 10**15]
amounts = st.one_of(st.sampled_from(_AMOUNTS), st.integers(1, 10**6))


def _payments(accounts: str, prefix: str, times: st.SearchStrategy[int], max_size: int) -> Any:
    one = st.builds(
        dict,
        ts_ms=times,
        sender=st.sampled_from(accounts),
        receiver=st.sampled_from(accounts),
        amount=amounts,
        channel=st.sampled_from([None, "card", "web", "atm"]),
        sender_country=st.sampled_from([None, "FR", "IR"]),
        receiver_country=st.sampled_from([None, "FR", "DE"]),
    )
    # Ids that do not follow arrival: ties in time are broken by them.
    return st.lists(one, max_size=max_size).map(
        lambda found: tuple(
            Payment(id=f"{prefix}{position * 37 % 101:03d}", **values) for position, values in enumerate(found)
        )
    )


@st.composite
def histories(
    draw: st.DrawFn,
    *,
    accounts: str = "abcd",
    max_payments: int = 24,
    times: st.SearchStrategy[int] = instants,
    max_changes: int = 18,
    prefix: str = "t",
    of: History | None = None,
) -> History:
    """Histories with ties, payments to oneself, reversals, restorations and changed labels, in any order of arrival.

    Statuses and labels may come before their payment's own time. With `of`, they also concern its payments.
    """
    found = draw(_payments(accounts, prefix, times, max_payments))
    ids = [payment.id for payment in (*(of.payments if of else ()), *found)]
    if not ids:
        return History()
    some = st.sampled_from(ids)
    status = st.builds(Change, id=some, ts_ms=times, value=st.sampled_from(["completed", "failed", "reversed"]))
    label = st.builds(Change, id=some, ts_ms=times, value=st.sampled_from([None, "sender", "receiver", "both"]))
    return History(
        payments=found,
        statuses=tuple(draw(st.lists(status, max_size=max_changes))),
        labels=tuple(draw(st.lists(label, max_size=max_changes))),
    )
