"""The newest rows of a few entities, from what concerns them alone: the same rows that the batch driver would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from graph_features.clock import NEVER_MS
from graph_features.compute import Entities
from graph_features.drivers import batch
from graph_features.drivers.counterparties import Counterparties, with_counterparties
from graph_features.edges import EdgeTable
from graph_features.errors import FeatureComputationError
from graph_features.events import NOTHING_COVERED, Coverage
from graph_features.exposure import EXPOSURE
from graph_features.kernels.timeline import pair_index
from graph_features.late import touched_accounts
from graph_features.late_records import NOBODY_TOLD, NOTHING_LATE, Late, Told
from graph_features.neighbours import NEIGHBOURS
from graph_features.schema import ENTITY_KEYS, EntityKey, ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.sources.base import Indexed, Records, RecordStore
from graph_features.sources.snapshot import Snapshot
from graph_features.standings import HUB_PAYMENTS
from graph_features.stores.base import OnlineStore

KeysByEntity = Mapping[str, Sequence[EntityKey]]
CoveredByView = Mapping[str, Mapping[EntityKey, Coverage]]


@dataclass(frozen=True, kw_only=True)
class OnDemandResult:
    """Rows per view name, in no order; keys without any event; keys whose rows could not be had, with the reason.

    Every asked key is in one of the three. `max_seq` is the ingest sequence that all rows include. `told` has what was
    late of the accounts that were asked, and other accounts whose neighbour rows may lack it.
    """

    tables: dict[str, pa.Table]
    never_seen: set[EntityKey] = field(default_factory=set)
    failed: dict[EntityKey, str] = field(default_factory=dict)
    max_seq: int = 0
    told: Told = NOBODY_TOLD


def latest_rows(
    views: Sequence[ViewSchema],
    keys_by_entity: KeysByEntity,
    records: RecordStore,
    *,
    before_ms: int,
    settings: FeatureSettings,
    covered: CoveredByView | None = None,
    online: OnlineStore | None = None,
    hub_payments: int = HUB_PAYMENTS,
) -> OnDemandResult:
    """Compute the newest row before `before_ms` of every key in every event view of its entity.

    Reads the payments of the accounts (for a pair, of its sender) and, where the neighbours view is asked for, those of
    the counterparties in its rows, as far as their own rows in `online` do not tell enough (see `with_counterparties`).
    `covered`, per view name, is that of `batch.latest_rows`. Errors of the stores are raised.
    """
    accounts = sorted({key[0] for keys in keys_by_entity.values() for key in keys})
    # Stored rows are renewed with what is late of counterparties too, which only the index of all records can tell.
    histories = _Histories.of(records, accounts, before_ms, wait=covered is not None)
    edges = histories.edges
    tables: dict[str, pa.Table] = {}
    failed: dict[EntityKey, str] = {}
    for view in views:
        keys = sorted(set(keys_by_entity.get(view.entity, ())))
        wanted = _Wanted(view=view, before_ms=before_ms, settings=settings, covered=(covered or {}).get(view.name, {}))
        known = edges
        if view.name == NEIGHBOURS.name and keys:
            wanted = replace(wanted, late=histories.late(wanted.covered))
            if histories.own is not None:
                others = wanted.counterparties(edges, keys, besides=accounts)
                known = with_counterparties(
                    edges, histories.own, others, records, online, before_ms=before_ms, hub_payments=hub_payments
                )
        parts = list(wanted.rows(known, keys, failed))
        tables[view.name] = pa.concat_tables([view.arrow_schema.empty_table(), *parts])
    told = NOBODY_TOLD
    if covered is not None and EXPOSURE.name in covered:
        # Those that are here for their pairs alone have rows of their own, which say what of them was told.
        named = sorted({key[0] for key in keys_by_entity.get("account", ())})
        told = histories.told(named, covered[EXPOSURE.name])
    return OnDemandResult(
        tables=tables,
        never_seen=never_seen(edges, keys_by_entity),
        failed=failed,
        max_seq=edges.max_seq,
        told=told,
    )


@dataclass(frozen=True, kw_only=True)
class _Histories:
    """What accounts sent and received. `own` is None where `edges` can tell of their counterparties by itself."""

    edges: EdgeTable
    own: Records | None
    snapshot: Snapshot | None

    @classmethod
    def of(cls, records: RecordStore, accounts: Sequence[str], before_ms: int, *, wait: bool) -> _Histories:
        snapshot = records.snapshot(wait=wait) if isinstance(records, Indexed) else None
        if snapshot is not None:
            return cls(edges=snapshot.edges(accounts, before_ms=before_ms), own=None, snapshot=snapshot)
        own = records.read_accounts(accounts, before_ms=before_ms)
        edges = EdgeTable.from_arrow(own.transactions, own.statuses, own.labels, max_seq=own.max_seq)
        return cls(edges=edges, own=own, snapshot=None)

    def late(self, covered: Mapping[EntityKey, Coverage]) -> Late:
        """Return what was late of all parties of these payments and may not be in the rows that are covered."""
        if self.snapshot is None or not covered:
            return NOTHING_LATE
        after_seq = min(bound.seq for bound in covered.values())
        ids = self.edges.account_ids.tolist()
        return self.snapshot.late(ids, np.full(len(ids), after_seq))

    def told(self, accounts: Sequence[str], covered: Mapping[EntityKey, Coverage]) -> Told:
        """Return what was late of accounts since their rows, and counterparties that have rows since then."""
        if self.snapshot is None or not accounts:
            return NOBODY_TOLD
        after_seq = np.array([covered.get((account,), NOTHING_COVERED).seq for account in accounts], np.int64)
        late = self.snapshot.late(accounts, after_seq)
        if not len(late.seq):
            return NOBODY_TOLD
        since_ms = np.full(len(accounts), NEVER_MS)
        np.minimum.at(since_ms, late.account, late.ts_ms)
        last_of = self.snapshot.last_since(int(since_ms.min()))
        last_ms = np.array([last_of.get(account_id, -1) for account_id in self.edges.account_ids.tolist()], np.int64)
        codes = self.edges.codes(list(accounts))
        touched = touched_accounts(self.edges, codes[codes >= 0], since_ms[codes >= 0], last_ms)
        others = self.edges.account_ids[np.setdiff1d(touched, codes)].tolist()
        return Told.of(others, late.seq, late.ts_ms)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """The rows of one view that are asked for, whatever the keys."""

    view: ViewSchema
    before_ms: int
    settings: FeatureSettings
    covered: Mapping[EntityKey, Coverage]
    late: Late = NOTHING_LATE

    def rows(self, edges: EdgeTable, keys: Sequence[EntityKey], failed: dict[EntityKey, str]) -> Iterator[pa.Table]:
        """Yield tables of rows; keys that cannot be computed are found by halving and put into `failed`."""
        try:
            tables = list(
                batch.latest_rows(
                    self.view,
                    edges,
                    keys,
                    before_ms=self.before_ms,
                    settings=self.settings,
                    covered=self.covered,
                    late=self.late,
                )
            )
        except FeatureComputationError as error:
            if len(keys) == 1:
                failed.setdefault(keys[0], str(error))
                return
            middle = len(keys) // 2
            for half in (keys[:middle], keys[middle:]):
                yield from self.rows(edges, half, failed)
        else:
            yield from tables

    def counterparties(self, edges: EdgeTable, keys: Sequence[EntityKey], besides: Sequence[str]) -> Counterparties:
        """Return the accounts that the neighbour rows of `keys` describe, but for those `besides`."""
        account, as_of_ms = batch.latest(
            self.view, edges, keys, before_ms=self.before_ms, covered=self.covered, late=self.late
        )
        return Counterparties.of(edges, account, as_of_ms, besides=besides)


def never_seen(edges: EdgeTable, keys_by_entity: KeysByEntity) -> set[EntityKey]:
    """Return those keys that have no payment in `edges`."""
    never: set[EntityKey] = set()
    for entity, keys in keys_by_entity.items():
        if not keys:
            continue
        codes = Entities.of_keys(edges, keys).codes
        groups = codes[0] if len(ENTITY_KEYS[entity]) == 1 else pair_index(edges).codes(*codes)
        never.update(key for key, group in zip(keys, groups, strict=True) if group < 0)
    return never
