"""The newest rows of a few entities, from what concerns them alone: the same rows that the batch driver would give."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import pyarrow as pa

from graph_features.catalog import catalog
from graph_features.compute import Entities
from graph_features.drivers import batch
from graph_features.drivers.counterparties import Counterparties, with_counterparties
from graph_features.edges import EdgeTable
from graph_features.errors import FeatureComputationError
from graph_features.events import Coverage
from graph_features.executor import Executor
from graph_features.kernels.timeline import pair_index
from graph_features.neighbours import NEIGHBOURS
from graph_features.schema import ENTITY_KEYS, EntityKey, ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.sources.base import RecordStore
from graph_features.stores.base import OnlineStore

PART_KEYS = 200
"""How many keys of each entity a worker gets at once."""

KeysByEntity = Mapping[str, Sequence[EntityKey]]
CoveredByView = Mapping[str, Mapping[EntityKey, Coverage]]
OpenRecords = Callable[[], RecordStore]


@dataclass(frozen=True, kw_only=True)
class OnDemandResult:
    """Rows per view name, in no order; keys without any event; keys whose rows could not be had, with the reason.

    Every asked key is in one of the three. `max_seq` is the ingest sequence that all rows include.
    """

    tables: dict[str, pa.Table]
    never_seen: set[EntityKey] = field(default_factory=set)
    failed: dict[EntityKey, str] = field(default_factory=dict)
    max_seq: int = 0


def latest_rows(
    views: Sequence[ViewSchema],
    keys_by_entity: KeysByEntity,
    records: RecordStore,
    *,
    before_ms: int,
    settings: FeatureSettings,
    covered: CoveredByView | None = None,
    online: OnlineStore | None = None,
) -> OnDemandResult:
    """Compute the newest row before `before_ms` of every key in every event view of its entity.

    Reads the payments of the accounts (for a pair, of its sender) and, where the neighbours view is asked for, those of
    the counterparties in its rows, as far as their own rows in `online` do not tell enough. `covered`, per view name,
    is that of `batch.latest_rows`. Errors of the stores are raised.
    """
    accounts = sorted({key[0] for keys in keys_by_entity.values() for key in keys})
    own = records.read_accounts(accounts, before_ms=before_ms)
    edges = EdgeTable.from_arrow(own.transactions, own.statuses, own.labels, max_seq=own.max_seq)
    tables: dict[str, pa.Table] = {}
    failed: dict[EntityKey, str] = {}
    for view in views:
        keys = sorted(set(keys_by_entity.get(view.entity, ())))
        wanted = _Wanted(view=view, before_ms=before_ms, settings=settings, covered=(covered or {}).get(view.name, {}))
        known = edges
        if view.name == NEIGHBOURS.name and keys:
            others = wanted.counterparties(edges, keys, besides=accounts)
            known = with_counterparties(edges, own, others, records, online, before_ms=before_ms)
        parts = list(wanted.rows(known, keys, failed))
        tables[view.name] = pa.concat_tables([view.arrow_schema.empty_table(), *parts])
    return OnDemandResult(
        tables=tables, never_seen=never_seen(edges, keys_by_entity), failed=failed, max_seq=edges.max_seq
    )


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """The rows of one view that are asked for, whatever the keys."""

    view: ViewSchema
    before_ms: int
    settings: FeatureSettings
    covered: Mapping[EntityKey, Coverage]

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
        account, as_of_ms = batch.latest(self.view, edges, keys, before_ms=self.before_ms, covered=self.covered)
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


@dataclass(frozen=True, kw_only=True)
class OnDemandPart:
    """Keys that any process can compute: it opens the record store itself, once."""

    views: tuple[str, ...]
    keys_by_entity: dict[str, list[EntityKey]]
    open_records: OpenRecords
    before_ms: int
    settings: FeatureSettings
    covered: dict[str, dict[EntityKey, Coverage]]
    online: OnlineStore | None = None


def latest_rows_by(
    executor: Executor,
    views: Sequence[ViewSchema],
    keys_by_entity: KeysByEntity,
    open_records: OpenRecords,
    *,
    before_ms: int,
    settings: FeatureSettings,
    covered: CoveredByView | None = None,
    online: OnlineStore | None = None,
    part_keys: int = PART_KEYS,
) -> OnDemandResult:
    """Do `latest_rows` in parts on an executor. A part that fails puts all its keys into `failed` with the reason.

    `open_records` and `online` are picklable; each worker opens the records once and keeps them.
    """
    names = tuple(view.name for view in views)
    parts = [
        OnDemandPart(
            views=names,
            keys_by_entity={entity: keys},
            open_records=open_records,
            before_ms=before_ms,
            settings=settings,
            covered=_covered_of(covered or {}, keys),
            online=online,
        )
        for entity, wanted in keys_by_entity.items()
        for keys in _pieces(sorted(set(wanted)), part_keys)
    ]
    tables: dict[str, list[pa.Table]] = {view.name: [view.arrow_schema.empty_table()] for view in views}
    strangers: set[EntityKey] = set()
    failed: dict[EntityKey, str] = {}
    max_seqs = []
    for result in executor.map(_compute_part, parts):
        if result.error is not None:
            reason = f"{type(result.error).__name__}: {result.error}"
            failed.update((key, reason) for keys in result.part.keys_by_entity.values() for key in keys)
            continue
        done = result.get()
        for name, table in done.tables.items():
            tables[name].append(table)
        strangers |= done.never_seen
        failed |= done.failed
        max_seqs.append(done.max_seq)
    return OnDemandResult(
        tables={name: pa.concat_tables(found) for name, found in tables.items()},
        never_seen=strangers,
        failed=failed,
        max_seq=min(max_seqs, default=0),
    )


def _covered_of(covered: CoveredByView, keys: Sequence[EntityKey]) -> dict[str, dict[EntityKey, Coverage]]:
    return {view: {key: by_key[key] for key in keys if key in by_key} for view, by_key in covered.items()}


def _pieces(keys: list[EntityKey], size: int) -> Iterator[list[EntityKey]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _compute_part(part: OnDemandPart) -> OnDemandResult:
    schemas = [catalog().schema(name) for name in part.views]
    records = _opened(pickle.dumps(part.open_records))
    return latest_rows(
        schemas,
        part.keys_by_entity,
        records,
        before_ms=part.before_ms,
        settings=part.settings,
        covered=part.covered,
        online=part.online,
    )


@lru_cache(maxsize=4)
def _opened(pickled_open_records: bytes) -> RecordStore:
    # Keyed by what it opens: equal callables arrive as different objects with every part.
    opened: RecordStore = pickle.loads(pickled_open_records)()  # noqa: S301  came from the parent process just now
    return opened
