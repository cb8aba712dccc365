"""Brings event rows up to date with what was ingested: the other half of the pending marks that ingest leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from graph_features.catalog import catalog
from graph_features.clock import CREATED_EPOCH_US, MAX_EVENT_MS, NEVER_MS
from graph_features.drivers import batch, on_demand
from graph_features.edges import EdgeTable
from graph_features.events import NOTHING_COVERED, Coverage, events
from graph_features.exposure import EXPOSURE
from graph_features.late import first_late_ms, last_events, late_records, touched_accounts
from graph_features.late_records import Told
from graph_features.neighbours import NEIGHBOURS
from graph_features.schema import ENTITY_KEYS, EntityKey, ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.sources.base import RecordStore
from graph_features.standings import HUB_PAYMENTS, RECEIVED_COUNT, SENT_COUNT, STANDING
from graph_features.stores.base import OfflineStore, OnlineStore
from graph_features.stores.blocks import RowBlock
from graph_features.stores.codec import header_word
from graph_features.stores.heads import HEADER_BYTES

BULK_KEYS = 2_000
"""From so many keys on, reading everything once is cheaper than reading account by account."""

READ_KEYS = 5_000
"""So many stored rows are looked at at once."""

TOO_MANY = "more than {:,} payments: `ringfence materialize` brings it up to date"

AFTER_EVERYTHING_MS = MAX_EVENT_MS + 1

Progress = Callable[[int], None]
"""Called with the number of rows written since the last call."""


@dataclass(frozen=True, kw_only=True)
class RefreshReport:
    """What a refresh did: offline rows written per view, and the keys without a row.

    `failed` keys keep their mark; `never_seen` ones have no payment, so there is no row to write.
    """

    keys: int
    rows: dict[str, int]
    never_seen: set[EntityKey] = field(default_factory=set)
    failed: dict[EntityKey, str] = field(default_factory=dict)
    max_seq: int = 0


def refresh(
    keys: Sequence[EntityKey] | None,
    *,
    records: RecordStore,
    online: OnlineStore,
    offline: OfflineStore,
    settings: FeatureSettings,
    bulk_keys: int = BULK_KEYS,
    hub_payments: int = HUB_PAYMENTS,
    on_rows: Progress | None = None,
) -> RefreshReport:
    """Compute and store the newest event rows of `keys` (None: of all that are pending) and clear their marks.

    What came late of them changes neighbour rows of counterparties too: these are renewed as well, or, where there are
    more than `bulk_keys`, marked as pending themselves.

    Offline, the rows of every event since the online row come with it, and new versions of those that a late event
    changed. A pending key without an online row gets its whole history, but not among more than `bulk_keys` keys: then
    its past is a backfill's business, as is that of a key that is not pending.

    Many keys go through the batch driver, few are computed on demand. An account with more than `hub_payments`
    payments, and the pairs that it pays, never are: named as `keys` they are in `failed` and stay pending, among all
    that is pending they send everything through the batch driver. A mark is cleared only if it has not been renewed
    since the start, and only after its rows are stored: whatever interrupts a refresh, the next one does the rest.
    `refresh_in_parts` does the same in several processes.
    """
    tokens = online.all_pending() if keys is None else online.pending(keys)
    wanted = sorted(set(tokens if keys is None else keys))
    if not wanted:
        return RefreshReport(keys=0, rows={}, max_seq=records.max_seq())
    records.barrier()
    hubs = _hubs(online, wanted, hub_payments)
    in_bulk = len(wanted) > bulk_keys or (keys is None and bool(hubs))
    put_off = {} if in_bulk else {key: TOO_MANY.format(hub_payments) for key in wanted if key[0] in hubs}
    wanted = [key for key in wanted if key not in put_off]
    writer = _Writer(online=online, offline=offline, wanted=wanted, on_rows=on_rows)
    covered = _covered(online, wanted, set() if in_bulk else tokens.keys())
    if in_bulk:
        done = _in_bulk(wanted, covered, records, online, writer, settings)
    else:
        done = _on_demand(wanted, covered, records, online, writer, settings, hub_payments, bulk_keys)
    failed = done.failed | put_off
    online.clear_pending({key: token for key, token in tokens.items() if key not in failed})
    return RefreshReport(
        keys=len(wanted) + len(put_off),
        rows=writer.rows,
        never_seen=done.never_seen,
        failed=failed,
        max_seq=done.max_seq,
    )


def _hubs(online: OnlineStore, wanted: Sequence[EntityKey], hub_payments: int) -> set[str]:
    """Return accounts of `wanted`, payers of its pairs included, whose rows count more than `hub_payments` payments."""
    accounts = sorted({key[0] for key in wanted})
    view = catalog().schema(STANDING[SENT_COUNT][0])
    hubs: set[str] = set()
    for start in range(0, len(accounts), READ_KEYS):
        some = accounts[start : start + READ_KEYS]
        (packed,) = online.read([(view, [(account,) for account in some])])
        block = RowBlock.from_packed(view, packed)
        sent, received = (block.int64(STANDING[place][1])[0] for place in (SENT_COUNT, RECEIVED_COUNT))
        hubs.update(some[at] for at in np.flatnonzero(sent + received > hub_payments).tolist())
    return hubs


def _covered(
    online: OnlineStore, wanted: Sequence[EntityKey], from_start: Set[EntityKey]
) -> dict[str, dict[EntityKey, Coverage]]:
    """Return per view what each key's online row covers; keys without one only if they are in `from_start`."""
    covered: dict[str, dict[EntityKey, Coverage]] = {}
    by_entity = _by_entity(wanted)
    for view in catalog().event_views():
        found = covered[view.name] = {}
        keys = by_entity[view.entity]
        for start in range(0, len(keys), READ_KEYS):
            some = keys[start : start + READ_KEYS]
            (packed,) = online.read([(view, some)])
            for key, value in zip(some, packed, strict=True):
                row = _coverage(view, value)
                if row is not None:
                    found[key] = row
                elif key in from_start:
                    found[key] = NOTHING_COVERED
    return covered


def _coverage(view: ViewSchema, value: bytes | None) -> Coverage | None:
    """Read what a packed row covers off its head; None without a row, or with one of another feature set."""
    if value is None or len(value) < HEADER_BYTES:
        return None
    first, as_of_ms, created_us = np.frombuffer(value, "<i8", HEADER_BYTES // 8).tolist()
    if first != header_word(view):
        return None
    return Coverage(as_of_ms=as_of_ms, seq=created_us - CREATED_EPOCH_US)


class _Writer:
    """Writes tables to both stores, offline first: an online row always has its offline version."""

    def __init__(
        self, *, online: OnlineStore, offline: OfflineStore, wanted: Sequence[EntityKey], on_rows: Progress | None
    ) -> None:
        self.rows: dict[str, int] = {}
        self._online = online
        self._offline = offline
        self._on_rows = on_rows
        # The same keys at the same ingest sequence are the same piece of work.
        self._work = hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]

    def write(self, view: ViewSchema, table: pa.Table, *, max_seq: int, chunk: int = 0) -> None:
        if table.num_rows == 0:
            return
        self._offline.write(view, table, part=f"refresh-{max_seq}-{self._work}-{chunk}")
        self._online.write(view, newest_rows(view, table))
        self.rows[view.name] = self.rows.get(view.name, 0) + table.num_rows
        if self._on_rows is not None:
            self._on_rows(table.num_rows)


def newest_rows(view: ViewSchema, table: pa.Table) -> pa.Table:
    """Return the last row of each run of one entity, in a table of at least one row whose entities come in runs."""
    last = np.zeros(table.num_rows, np.bool_)
    last[-1] = True
    for name in view.keys:
        codes = table[name].combine_chunks().dictionary_encode().indices.to_numpy()
        last[:-1] |= codes[1:] != codes[:-1]
    return table.filter(pa.array(last))


def _by_entity(keys: Sequence[EntityKey]) -> dict[str, list[EntityKey]]:
    return {entity: [key for key in keys if len(key) == len(names)] for entity, names in ENTITY_KEYS.items()}


def _on_demand(
    wanted: Sequence[EntityKey],
    covered: on_demand.CoveredByView,
    records: RecordStore,
    online: OnlineStore,
    writer: _Writer,
    settings: FeatureSettings,
    hub_payments: int,
    bulk_keys: int,
) -> on_demand.OnDemandResult:
    views, keys = catalog().event_views(), _by_entity(wanted)
    done = on_demand.latest_rows(
        views,
        keys,
        records,
        before_ms=AFTER_EVERYTHING_MS,
        settings=settings,
        covered=covered,
        online=online,
        hub_payments=hub_payments,
    )
    # Others first: an account's own rows, once stored, say that all that was late of it was told.
    told = _stale(online, done.told)
    if len(told) > bulk_keys:
        online.mark_pending(sorted(told))
    elif told:
        _tell(told, records, online, writer, settings, hub_payments)
    for view in views:
        for chunk, table in enumerate(_chunks(done.tables[view.name])):
            writer.write(view, table, max_seq=done.max_seq, chunk=chunk)
    return done


def _tell(
    told: Mapping[EntityKey, Coverage],
    records: RecordStore,
    online: OnlineStore,
    writer: _Writer,
    settings: FeatureSettings,
    hub_payments: int,
) -> None:
    """Renew neighbour rows of counterparties that lack something."""
    view = catalog().schema(NEIGHBOURS.name)
    others = on_demand.latest_rows(
        [view],
        {view.entity: sorted(told)},
        records,
        before_ms=AFTER_EVERYTHING_MS,
        settings=settings,
        covered={view.name: told},
        online=online,
        hub_payments=hub_payments,
    )
    for chunk, table in enumerate(_chunks(others.tables[view.name])):
        writer.write(view, table, max_seq=others.max_seq, chunk=batch.CHUNK_ROWS + chunk)


def _stale(online: OnlineStore, told: Told) -> dict[EntityKey, Coverage]:
    """Return what neighbour rows of accounts cover, where they may lack something that came late."""
    covered: dict[EntityKey, Coverage] = {}
    view = catalog().schema(NEIGHBOURS.name)
    for start in range(0, len(told.others), READ_KEYS):
        some: list[EntityKey] = [(account,) for account in told.others[start : start + READ_KEYS]]
        (packed,) = online.read([(view, some)])
        for key, value in zip(some, packed, strict=True):
            row = _coverage(view, value)
            if row is not None and row.as_of_ms > told.since_ms(row.seq):
                covered[key] = row
    return covered


def _chunks(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, batch.CHUNK_ROWS):
        yield table.slice(start, batch.CHUNK_ROWS).combine_chunks()


def _in_bulk(
    wanted: Sequence[EntityKey],
    covered: on_demand.CoveredByView,
    records: RecordStore,
    online: OnlineStore,
    writer: _Writer,
    settings: FeatureSettings,
) -> on_demand.OnDemandResult:
    found = records.read_all()
    edges = EdgeTable.from_arrow(found.transactions, found.statuses, found.labels, max_seq=found.max_seq)
    del found
    keys = _by_entity(wanted)
    told = _stale(online, _told(edges, keys["account"], covered[EXPOSURE.name]))
    # Neighbour rows, those of others among them, come first: see `_on_demand`.
    for view in sorted(catalog().event_views(), key=lambda view: view.name != NEIGHBOURS.name):
        others = told if view.name == NEIGHBOURS.name else {}
        tables = batch.latest_rows(
            view,
            edges,
            sorted({*keys[view.entity], *others}),
            before_ms=AFTER_EVERYTHING_MS,
            settings=settings,
            covered={**others, **covered[view.name]},
        )
        for chunk, table in enumerate(tables):
            writer.write(view, table, max_seq=edges.max_seq, chunk=chunk)
    return on_demand.OnDemandResult(tables={}, never_seen=on_demand.never_seen(edges, keys), max_seq=edges.max_seq)


def _told(edges: EdgeTable, keys: Sequence[EntityKey], covered: Mapping[EntityKey, Coverage]) -> Told:
    """Return what was late of `keys`, and other accounts whose neighbour rows may lack it."""
    codes = edges.codes([key[0] for key in keys]).astype(np.int64)
    known = codes >= 0
    after_seq = np.full(edges.n_accounts, NEVER_MS)
    after_seq[codes[known]] = np.array([covered.get(key, NOTHING_COVERED).seq for key in keys], np.int64)[known]
    late = late_records(edges)
    new = late.seq > after_seq[late.account]
    since_ms = first_late_ms(edges, codes[known], after_seq[codes[known]], late)
    last_ms = last_events(events(edges, catalog().schema(NEIGHBOURS.name)))
    others = np.setdiff1d(touched_accounts(edges, codes[known], since_ms, last_ms), codes)
    return Told.of(edges.account_ids[others].tolist(), late.seq[new], late.ts_ms[new])
