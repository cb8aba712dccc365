"""Fills a period: the rows that the views would have had, offline in every version and online where they are newer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graph_features.catalog import catalog
from graph_features.clock import SECOND_MS
from graph_features.jobs.crew import run_chunks
from graph_features.jobs.parameters import BackfillParameters, RecomputeParameters
from graph_features.jobs.records import ChunkKey
from graph_features.jobs.runner import JobContext
from graph_features.jobs.stale import find_stale
from graph_features.jobs.stores import Stores
from graph_features.jobs.work import chosen_views, view_hash
from graph_features.schema import Cadence, ViewSchema
from graph_features.settings import FeatureSettings


def run_backfill(context: JobContext, stores: Stores, *, schemas: Mapping[str, ViewSchema] | None = None) -> None:
    """Do a backfill job (see BackfillParameters), or what is left of it.

    The chunks are planned once, with the ingest sequence of that moment: a job that is resumed computes from the same
    records, and late data is the refresh's business. Raises JobError when chunks failed; the others are done.
    """
    schemas = schemas if schemas is not None else catalog().schemas
    parameters = context.parameters(BackfillParameters)
    if not any(context.ledger.chunks.counts(context.job.id).values()):
        period = parameters.period_ms(context.due_at)
        context.ledger.chunks.plan(context.job.id, planned(parameters, period, stores, schemas))
    run_chunks(context, stores, schemas, workers=parameters.workers)
    _settle(context, schemas)


def run_recompute(context: JobContext, stores: Stores, *, schemas: Mapping[str, ViewSchema] | None = None) -> None:
    """Compute anew the slices and ranges that are stale, because of late records or of changed code, and no others."""
    schemas = schemas if schemas is not None else catalog().schemas
    parameters = context.parameters(RecomputeParameters)
    if not any(context.ledger.chunks.counts(context.job.id).values()):
        stale = find_stale(context.ledger, stores, chosen_views(schemas, parameters.views))
        context.ledger.chunks.plan(context.job.id, stale.keys)
    run_chunks(context, stores, schemas, workers=parameters.workers)
    _settle(context, schemas)


def _settle(context: JobContext, schemas: Mapping[str, ViewSchema]) -> None:
    """Forget earlier ranges that the job's ranges contain: their rows have all been written anew."""
    ranges = {
        (key.view, key.start_ms, key.end_ms, key.partitions)
        for key in (chunk.key for chunk in context.ledger.chunks.list(context.job.id))
        if not key.is_slice and key.view in schemas
    }
    for view, start_ms, end_ms, partitions in sorted(ranges):
        context.ledger.coverage.replace_ranges(view, start_ms=start_ms, end_ms=end_ms, partitions=partitions)


def planned(
    parameters: BackfillParameters,
    period: tuple[int, int] | None,
    stores: Stores,
    schemas: Mapping[str, ViewSchema],
) -> list[ChunkKey]:
    """Return the chunks that a backfill has to do now; `period` None stands for the whole history."""
    views = chosen_views(schemas, parameters.views)
    every_ms = int(parameters.every.total_seconds()) * SECOND_MS
    period = period or whole_history(stores, every_ms)
    if period is None:
        return []
    return plan_backfill(
        views,
        from_ms=period[0],
        to_ms=period[1],
        every_ms=every_ms,
        partitions=parameters.partitions,
        source_seq=stores.records.max_seq(),
        settings=stores.feature_settings,
    )


def whole_history(stores: Stores, every_ms: int) -> tuple[int, int] | None:
    """Return the period of all payments, widened to multiples of `every_ms`; None without payments."""
    found = stores.records.event_range_ms()
    if found is None:
        return None
    first_ms, last_ms = found
    return first_ms // every_ms * every_ms, (last_ms // every_ms + 1) * every_ms


def plan_backfill(
    views: Sequence[ViewSchema],
    *,
    from_ms: int,
    to_ms: int,
    every_ms: int,
    partitions: int,
    source_seq: int,
    settings: FeatureSettings,
) -> list[ChunkKey]:
    """Return the chunks of [from_ms, to_ms): event views by partition, then the slices, newest first.

    The newest slice is what serving reads; once it is online, older ones have nothing to add there.
    """
    keys = [
        ChunkKey(
            view=view.name,
            view_hash=view_hash(view, settings),
            start_ms=from_ms,
            end_ms=to_ms,
            source_seq=source_seq,
            partition=partition,
            partitions=partitions,
        )
        for view in views
        if view.cadence is Cadence.EVENT
        for partition in range(partitions)
    ]
    for as_of_ms in reversed(range(from_ms, to_ms, every_ms)):
        keys.extend(slice_keys(views, as_of_ms=as_of_ms, source_seq=source_seq, settings=settings))
    return keys


def slice_keys(
    views: Sequence[ViewSchema], *, as_of_ms: int, source_seq: int, settings: FeatureSettings
) -> list[ChunkKey]:
    """Return the chunks of one slice."""
    return [
        ChunkKey(
            view=view.name,
            view_hash=view_hash(view, settings),
            start_ms=as_of_ms,
            end_ms=as_of_ms,
            source_seq=source_seq,
        )
        for view in views
        if view.cadence is Cadence.SLICE
    ]
