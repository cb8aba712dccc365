"""Which slices and ranges do not say what they would say if they were computed now: changed code, or late records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graph_features.jobs.coverage import Covered
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.records import ChunkKey
from graph_features.jobs.stores import Stores
from graph_features.jobs.work import view_hash
from graph_features.schema import ViewSchema
from graph_features.settings import FeatureSettings

BLIND_TO_LABELS = frozenset({"account_topology"})
"""Slice views that never look at a label: a late one changes nothing there."""


@dataclass(frozen=True, kw_only=True)
class Stale:
    """What is stale and why, and the chunks that mend it."""

    changed_code: tuple[Covered, ...]
    late: tuple[Covered, ...]
    keys: tuple[ChunkKey, ...]

    def by_view(self) -> dict[str, dict[str, int]]:
        """Return {view: {"code": n, "late": n}} for the views of which something is stale."""
        found: dict[str, dict[str, int]] = {}
        for reason, covered in (("code", self.changed_code), ("late", self.late)):
            for one in covered:
                counts = found.setdefault(one.view, {"code": 0, "late": 0})
                counts[reason] += 1
        return found


def find_stale(ledger: Ledger, stores: Stores, views: Sequence[ViewSchema]) -> Stale:
    """Look for late records since the last look, and compare the code of what is stored with today's."""
    look_for_late(ledger, stores, views)
    schemas = {view.name: view for view in views}
    settings = stores.feature_settings
    hashes = {view.name: view_hash(view, settings) for view in views}
    covered = ledger.coverage.list(schemas)
    changed = tuple(one for one in covered if one.view_hash != hashes[one.view])
    late = tuple(one for one in covered if one.late and one not in changed)
    keys = tuple(_keys((*changed, *late), stores, schemas, settings)) if changed or late else ()
    return Stale(changed_code=changed, late=late, keys=keys)


def look_for_late(ledger: Ledger, stores: Stores, views: Sequence[ViewSchema]) -> int:
    """Mark slices that records ingested after them change; return how many. Each record is looked at once."""
    up_to_seq = stores.records.max_seq()
    marked = 0
    for labels in (False, True):
        names = [view.name for view in views if (view.name not in BLIND_TO_LABELS) is labels]
        bounds = ledger.coverage.checked_from(names)
        if bounds is None or bounds[0] >= up_to_seq:
            continue
        after_seq, before_ms = bounds
        changes = stores.records.changes(after_seq=after_seq, up_to_seq=up_to_seq, before_ms=before_ms, labels=labels)
        marked += sum(ledger.coverage.mark_late(name, changes, up_to_seq=up_to_seq) for name in names)
    return marked


def _keys(
    stale: Sequence[Covered], stores: Stores, schemas: dict[str, ViewSchema], settings: FeatureSettings
) -> Iterator[ChunkKey]:
    """Yield one chunk per stale slice, newest first, and per event view one over all its stale ranges."""
    source_seq = stores.records.max_seq()

    def key(view: str, start_ms: int, end_ms: int, partition: int = 0, partitions: int = 1) -> ChunkKey:
        return ChunkKey(
            view=view,
            view_hash=view_hash(schemas[view], settings),
            start_ms=start_ms,
            end_ms=end_ms,
            source_seq=source_seq,
            partition=partition,
            partitions=partitions,
        )

    last_ms = (stores.records.event_range_ms() or (0, 0))[1] + 1
    for view in schemas:
        ranges = [one for one in stale if one.view == view and not one.is_slice]
        if ranges:
            # What was ingested since then has rows of its own, which the old code may have made too.
            start_ms = min(one.start_ms for one in ranges)
            end_ms = max(last_ms, *(one.end_ms for one in ranges))
            partitions = max(one.partitions for one in ranges)
            yield from (key(view, start_ms, end_ms, number, partitions) for number in range(partitions))
    slices = sorted({(-one.start_ms, one.view) for one in stale if one.is_slice})
    yield from (key(view, -negative_ms, -negative_ms) for negative_ms, view in slices)
