"""Removes one account from every store, and proves it: what each place held before, and that it holds nothing after.

Others keep their own history without the erased payments: event rows of accounts that paid or were paid are removed and
computed anew, and slices since the first erased payment count as overtaken. A run that dies is finished by running it
again: the records, which say what to look for, go last, and accounts whose rows are to be computed anew are pending
until they are.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import pyarrow as pa

from graph_features.catalog import catalog
from graph_features.clock import MAX_EVENT_MS
from graph_features.drivers.batch import event_rows
from graph_features.edges import EdgeTable
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.stores import Stores
from graph_features.refresh import newest_rows
from graph_features.schema import DType, EntityKey, ViewSchema
from graph_features.sources.base import Traces
from graph_features.stores.blocks import RowBlock


class Place(Protocol):
    """Somewhere that may hold something of an account, beside the four stores."""

    @property
    def name(self) -> str: ...

    def count(self, traces: Traces) -> int:
        """How many things there speak of the account."""

    def erase(self, traces: Traces) -> None:
        """Remove them."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one place held before the erasure, and after."""

    place: str
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was erased when, place by place. `account` is a salted digest: who knows the id can recognise it."""

    account: str
    salt: str
    erased_at: datetime
    findings: tuple[Finding, ...]
    recomputed: int

    @property
    def is_complete(self) -> bool:
        return all(finding.after == 0 for finding in self.findings)

    def speaks_of(self, account_id: str) -> bool:
        """Whether this is the proof of that account."""
        return _digest(account_id, self.salt) == self.account

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "account": self.account,
            "salt": self.salt,
            "erased_at": self.erased_at.isoformat(),
            "complete": self.is_complete,
            "recomputed_accounts": self.recomputed,
            "places": [vars(finding) for finding in self.findings],
        }


def erase(account_id: str, *, stores: Stores, ledger: Ledger, places: Sequence[Place]) -> Proof:
    """Erase an account from the stores, the ledger and `places`; return the proof, complete or not."""
    return _Erasure(stores=stores, ledger=ledger, places=places, traces=stores.records.traces(account_id)).run()


def look(account_id: str, *, stores: Stores, ledger: Ledger, places: Sequence[Place]) -> dict[str, int]:
    """Count what every place holds of an account, and change nothing."""
    erasure = _Erasure(stores=stores, ledger=ledger, places=places, traces=stores.records.traces(account_id))
    return erasure.counts()


@dataclass(kw_only=True)
class _Erasure:
    stores: Stores
    ledger: Ledger
    places: Sequence[Place]
    traces: Traces
    views: tuple[ViewSchema, ...] = field(default_factory=lambda: tuple(catalog().stored.values()))

    def run(self) -> Proof:
        before = self.counts()
        traces = self.traces
        for place in self.places:
            place.erase(traces)
        self.stores.graph.erase_account(traces.account_id, devices=traces.devices, cards=traces.cards)
        self._forget_rows()
        self.stores.records.erase(traces, self._mark)
        # Once more: until the records were gone, a refresh could have written its rows again.
        self._forget_rows()
        recomputed = self._recompute_partners()
        self.ledger.forget_text(_words(traces))
        after = self.counts()
        salt = secrets.token_hex(8)
        return Proof(
            account=_digest(traces.account_id, salt),
            salt=salt,
            erased_at=self.ledger.clock(),
            findings=tuple(Finding(place=name, before=before[name], after=after[name]) for name in before),
            recomputed=recomputed,
        )

    def counts(self) -> dict[str, int]:
        traces, stores = self.traces, self.stores
        records = stores.records.count_traces(traces)
        found = {f"records: {kind}": count for kind, count in records.items()}
        found["graph: payments, account, devices, cards"] = stores.graph.count_account(
            traces.account_id, devices=traces.devices, cards=traces.cards
        )
        for view in self.views:
            found[f"offline rows: {view.name}"] = stores.offline.count_entity(view, traces.account_id)
        for view in self.views:
            found[f"online rows: {view.name}"] = self._online(view)
        found["online marks"] = len(stores.online.pending(self._keys(2) + self._keys(1)))
        found["job ledger: parameters and errors"] = self.ledger.count_text(_words(traces))
        return found | {place.name: place.count(traces) for place in self.places}

    def _keys(self, parts: int) -> list[EntityKey]:
        return [(self.traces.account_id,)] if parts == 1 else list(self.traces.pairs)

    def _online(self, view: ViewSchema) -> int:
        """Rows of the account, and rows of its partners that name it in a list."""
        (own,) = self.stores.online.read([(view, self._keys(len(view.keys)))])
        count = sum(row is not None for row in own)
        lists = [feature.name for feature in view.features if feature.dtype is DType.STRING_LIST]
        if lists and self.traces.partners:
            (others,) = self.stores.online.read([(view, [(partner,) for partner in self.traces.partners])])
            block = RowBlock.from_packed(view, others)
            count += sum(int((block.lists(name)[1] == self.traces.account_id).sum()) for name in lists)
        return count

    def _forget_rows(self) -> None:
        """Remove every row of the account and of its pairs, and its marks; rows of partners that name it too."""
        partners = [(partner,) for partner in self.traces.partners]
        for view in self.views:
            self.stores.online.delete(view, self._keys(len(view.keys)))
            self.stores.offline.delete_entities(view, [self.traces.account_id])
            if view.renewed_by and len(view.keys) == 1:
                self.stores.online.delete(view, partners)
                self.stores.offline.delete_entities(view, self.traces.partners)
        marks = self.stores.online.pending([*self._keys(1), *self._keys(2)])
        self.stores.online.clear_pending(marks)

    def _mark(self, partners: list[EntityKey]) -> None:
        self.stores.online.mark_pending(partners)

    def _recompute_partners(self) -> int:
        """Compute the whole history of the accounts on the other side anew; return how many there are."""
        partners, stores = self.traces.partners, self.stores
        if not partners:
            return 0
        tokens = stores.online.pending([(partner,) for partner in partners])
        stores.records.barrier()
        for view, table, number in self._rows_of(partners):
            stores.offline.write(view, table, part=f"erasure-{self._token}-{number}")
            stores.online.write(view, newest_rows(view, table))
        stores.online.clear_pending(tokens)
        if self.traces.first_ms is not None:
            slices = [view.name for view in catalog().slice_views()]
            self.ledger.coverage.touch(slices, after_ms=self.traces.first_ms)
        return len(partners)

    def _rows_of(self, partners: Sequence[str]) -> Iterator[tuple[ViewSchema, pa.Table, int]]:
        found = self.stores.records.read_all()
        edges = EdgeTable.from_arrow(found.transactions, found.statuses, found.labels, max_seq=found.max_seq)
        for view in catalog().event_views():
            if len(view.keys) > 1:
                continue  # a pair of two others has not lost a payment
            tables = event_rows(
                view,
                edges,
                from_ms=0,
                to_ms=MAX_EVENT_MS + 1,
                settings=self.stores.feature_settings,
                accounts=partners,
            )
            for number, table in enumerate(tables):
                yield view, table, number

    @property
    def _token(self) -> str:
        return hashlib.sha256(repr(self.traces.partners).encode()).hexdigest()[:16]


def _words(traces: Traces) -> tuple[str, ...]:
    return (traces.account_id, *traces.devices, *traces.cards)


def _digest(account_id: str, salt: str) -> str:
    return hashlib.sha256(f"{salt}:{account_id}".encode()).hexdigest()
