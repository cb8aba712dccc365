"""apply, backfill, materialize, features: from records to feature rows."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from infra.console import fail, instant_option, say, table
from infra.jobs import resume_job, run_job

if TYPE_CHECKING:
    from graph_features.schema import FeatureSchema, ViewSchema
    from graph_features.stores.blocks import RowBlock

Views = Annotated[
    list[str] | None, typer.Option("--features", "--views", help="Feature views; repeatable, all by default.")
]


def apply() -> None:
    """Create the stores' tables and register every Feast object. Safe to repeat (the same as `feast apply`)."""
    import feature_repo
    from infra.wiring import Platform

    with Platform() as platform:
        feature_repo.apply(platform.settings)
    say("applied")


def backfill(
    from_: Annotated[datetime | None, instant_option("--from", help="Start; all by default.")] = None,
    to: Annotated[datetime | None, instant_option("--to", help="End, excluded.")] = None,
    every: Annotated[str, typer.Option(help="Distance of slices: 6h, 1d, ...")] = "1d",
    views: Views = None,
    partitions: Annotated[int, typer.Option(min=1, help="Pieces that event views are split into.")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, each with chunks of its own.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the chunks and an estimate.")] = False,
    stale: Annotated[bool, typer.Option("--stale", help="Instead: what late records or new code made stale.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Start anew even if the same backfill was interrupted.")] = False,
    resume: Annotated[UUID | None, typer.Option(help="Go on with a job that failed or was stopped.")] = None,
) -> None:
    """Fill a period with feature rows, offline and, where newer, online.

    Run again after an interruption it does what is missing; the schedule is left alone.
    """
    if resume is not None:
        say(resume_job(resume))
        return
    parameters: dict[str, Any] = {"workers": workers}
    if views:
        parameters["views"] = list(dict.fromkeys(name.partition(":")[0] for name in views))
    if not stale:
        parameters |= {"every": every, "partitions": partitions}
        parameters |= {name: at.isoformat() for name, at in (("from", from_), ("to", to)) if at is not None}
    kind = "recompute" if stale else "backfill"
    if dry_run:
        _dry_run(kind, parameters, workers)
        return
    say(run_job(kind, parameters, take_up=not new))


def _dry_run(kind: str, parameters: dict[str, Any], workers: int) -> None:
    from graph_features.jobs.estimates import estimate
    from infra.jobs import job_runner, planned_chunks

    with job_runner() as runner:
        keys = planned_chunks(runner, kind, parameters)
        about = estimate(runner.ledger, keys, workers=workers)
    for key in keys:
        say(f"{key}  code {key.view_hash}")
    say(f"{len(keys):,} chunks; {about}; nothing was written")


def materialize(
    as_of: Annotated[datetime | None, instant_option("--as-of", help="Also compute slices at this instant.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that refresh pending rows.")] = 1,
) -> None:
    """Bring the online rows of everything that ingest touched up to date."""
    parameters: dict[str, Any] = {"workers": workers}
    if as_of is not None:
        parameters["as_of"] = as_of.isoformat()
    say(run_job("materialize", parameters))


def features(
    ids: Annotated[list[str] | None, typer.Argument(help="Account ids; none lists the catalogue.")] = None,
    views: Views = None,
) -> None:
    """Show accounts' newest online features, or list the catalogue."""
    from graph_features.catalog import catalog

    known = catalog()
    chosen = [known.schema(name) for name in views or known.schemas]
    if not ids:
        for schema in chosen:
            rows = [[f.name, f.dtype, f.unit, " ".join(f.description.split())] for f in schema.features]
            table(f"{schema.name} ({schema.cadence})", ["feature", "type", "unit", "meaning"], rows)
        return
    missing = _show_online([schema for schema in chosen if schema.entity == "account"], ids)
    if missing:
        fail(f"no online row for {', '.join(missing)}: never seen, or not materialized yet")


def _show_online(schemas: list[ViewSchema], ids: list[str]) -> list[str]:
    from graph_features.clock import from_ms
    from graph_features.stores.blocks import RowBlock
    from infra.wiring import Platform

    with Platform() as platform:
        packed = platform.online.read([(schema, [(account_id,) for account_id in ids]) for schema in schemas])
    missing = set(ids)
    for schema, values in zip(schemas, packed, strict=True):
        block = RowBlock.from_packed(schema, values)
        for row in block.present.nonzero()[0]:
            missing.discard(ids[row])
            as_of = from_ms(block.as_of_ms[row]).isoformat(timespec="milliseconds")
            cells = [[f.name, _cell(block, f, int(row)), f.unit] for f in schema.features]
            table(f"{ids[row]} · {schema.name} · as of {as_of}", ["feature", "value", "unit"], cells)
    return sorted(missing)


def _cell(block: RowBlock, feature: FeatureSchema, row: int) -> str | None:
    from graph_features.clock import from_ms
    from graph_features.schema import DType

    if not block.valid(feature.name)[row]:
        return None
    if feature.dtype.is_list:
        offsets, values = block.lists(feature.name)
        items = values[offsets[row] : offsets[row + 1]].tolist()
        return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)
    if feature.dtype is DType.FLOAT64:
        return f"{block.float64(feature.name)[row]:,.6g}"
    value = int(block.int64(feature.name)[0][row])
    return from_ms(value).isoformat(timespec="milliseconds") if feature.dtype is DType.TIMESTAMP else f"{value:,}"


def register(app: typer.Typer) -> None:
    for command in (apply, backfill, materialize, features):
        app.command()(command)
