"""Brings rows up to date: event rows of everything that is pending, and slices of the whole graph."""

from __future__ import annotations

from collections.abc import Mapping

from graph_features.catalog import catalog
from graph_features.clock import to_ms
from graph_features.errors import FeatureComputationError
from graph_features.executor import open_executor
from graph_features.jobs.backfill import slice_keys
from graph_features.jobs.crew import run_chunks
from graph_features.jobs.parameters import MaterializeParameters, SlicesParameters
from graph_features.jobs.runner import JobContext
from graph_features.jobs.stores import Stores
from graph_features.jobs.work import chosen_views
from graph_features.refresh import refresh
from graph_features.refresh_parts import refresh_in_parts
from graph_features.schema import Cadence, ViewSchema
from graph_features.settings import ExecutorKind, ExecutorSettings, load


def run_materialize(context: JobContext, stores: Stores) -> None:
    """Refresh the event rows of all pending accounts and pairs; with `as_of`, the slice views at that instant too.

    Raises FeatureComputationError naming what could not be computed: it stays pending, the rest is stored. Resuming
    goes on where it stopped, since what is stored is no longer pending.
    """
    parameters = context.parameters(MaterializeParameters)
    refresh_pending(context, stores, workers=parameters.workers)
    if parameters.as_of is not None:
        _run_slices(context, stores, as_of_ms=to_ms(parameters.as_of), schemas=catalog().schemas)


def run_slices(context: JobContext, stores: Stores) -> None:
    """Compute the slice views at `as_of`, or at the instant when the job was due."""
    parameters = context.parameters(SlicesParameters)
    schemas = {schema.name: schema for schema in chosen_views(catalog().schemas, parameters.views)}
    _run_slices(context, stores, as_of_ms=to_ms(parameters.as_of or context.due_at), schemas=schemas)


def refresh_pending(context: JobContext, stores: Stores, *, workers: int = 1) -> None:
    """Refresh everything that is pending, with `workers` at once (see RINGFENCE_EXECUTOR); its progress counts rows."""
    for view in catalog().event_views():
        stores.offline.create_view(view)
    n_rows = 0

    def advance(rows: int) -> None:
        nonlocal n_rows
        n_rows += rows
        context.progress(n_rows, None)
        context.check()  # a mark is cleared only at the end, so stopping between two writes loses nothing

    if workers == 1 and load(ExecutorSettings).executor is ExecutorKind.PROCESS:
        report = refresh(
            None,
            records=stores.records,
            online=stores.online,
            offline=stores.offline,
            settings=stores.feature_settings,
            on_rows=advance,
        )
    else:
        pool = open_executor(workers)
        try:
            report = refresh_in_parts(pool, None, stores, on_rows=advance)
        finally:
            pool.close()
    if report.failed:
        raise FeatureComputationError({" → ".join(key): reason for key, reason in report.failed.items()})


def _run_slices(context: JobContext, stores: Stores, *, as_of_ms: int, schemas: Mapping[str, ViewSchema]) -> None:
    if not any(context.ledger.chunks.counts(context.job.id).values()):
        views = [schema for schema in schemas.values() if schema.cadence is Cadence.SLICE]
        keys = slice_keys(
            views, as_of_ms=as_of_ms, source_seq=stores.records.max_seq(), settings=stores.feature_settings
        )
        context.ledger.chunks.plan(context.job.id, keys)
    run_chunks(context, stores, schemas)
