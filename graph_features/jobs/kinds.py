"""The kinds of job that this room brings; entry points add theirs (train, evaluate) and hand all of them on."""

from __future__ import annotations

from collections.abc import Callable

from graph_features.errors import JobError
from graph_features.jobs.parameters import (
    BackfillParameters,
    MaterializeParameters,
    NoParameters,
    RecomputeParameters,
    SlicesParameters,
)
from graph_features.jobs.runner import JobContext, JobKind
from graph_features.jobs.stores import Stores


def feature_kinds(stores: Stores) -> dict[str, JobKind]:
    """Return sync_graph, verify, materialize, slices, recompute and backfill, working on `stores`."""

    def bound(run: Callable[[JobContext, Stores], None]) -> Callable[[JobContext], None]:
        return lambda context: run(context, stores)

    return {
        "sync_graph": JobKind(
            run=bound(_sync_graph), parameters=NoParameters, description="Write new transactions to the graph."
        ),
        "verify": JobKind(
            run=bound(_verify), parameters=NoParameters, description="Compare the records with the graph."
        ),
        "materialize": JobKind(
            run=bound(_materialize),
            parameters=MaterializeParameters,
            description="Bring the event rows of everything pending up to date, and the slices at as_of if asked.",
        ),
        "slices": JobKind(
            run=bound(_slices), parameters=SlicesParameters, description="Compute the slice views at one instant."
        ),
        "recompute": JobKind(
            run=bound(_recompute),
            parameters=RecomputeParameters,
            description="Compute anew the slices that late records or changed code made stale, and no others.",
        ),
        "backfill": JobKind(
            run=bound(_backfill), parameters=BackfillParameters, description="Fill a period, offline and online."
        ),
    }


# What a job needs (Numba, drivers, database clients) is imported when one runs: asking for the kinds stays cheap.


def _sync_graph(context: JobContext, stores: Stores) -> None:
    from graph_features.ingest.sync import sync_graph

    def advance(done: float, total: float | None, _text: str = "") -> None:
        context.progress(int(done), None if total is None else int(total))
        context.check()  # each batch and its watermark are one transaction: the next sync goes on from there

    sync_graph(stores.records, stores.graph, progress=advance)


def _verify(_context: JobContext, stores: Stores) -> None:
    from graph_features.ingest.verify import verify

    report = verify(stores.records, stores.graph)
    if report.difference is not None:  # a graph that lags is not wrong: its lag is measured elsewhere
        raise JobError(str(report))


def _recompute(context: JobContext, stores: Stores) -> None:
    from graph_features.jobs.backfill import run_recompute

    run_recompute(context, stores)


def _materialize(context: JobContext, stores: Stores) -> None:
    from graph_features.jobs.materialize import run_materialize

    run_materialize(context, stores)


def _slices(context: JobContext, stores: Stores) -> None:
    from graph_features.jobs.materialize import run_slices

    run_slices(context, stores)


def _backfill(context: JobContext, stores: Stores) -> None:
    from graph_features.jobs.backfill import run_backfill

    run_backfill(context, stores)
