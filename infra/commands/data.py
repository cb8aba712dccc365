"""simulate, ingest, sync, verify: transactions into the record store and the graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.console import fail, progress, say

if TYPE_CHECKING:
    from infra.wiring import Platform

EXIT_REJECTS = 3


def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    accounts: Annotated[int, typer.Option(min=50, help="Accounts of customers.")] = 2_000,
    days: Annotated[int, typer.Option(min=2, help="Days to simulate.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 7,
) -> None:
    """Write a simulated payment history with planted fraud: transactions, statuses, labels, and the truth apart."""
    from infra.simulator import simulate as run

    with progress("simulate") as advance:
        report = run(accounts=accounts, days=days, seed=seed, out=out, progress=advance)
    say(f"{report.transactions:,} transactions, {report.frauds:,} of them fraudulent, in {out}")


def ingest(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A CSV or Parquet file.")],
    kind: Annotated[str, typer.Option(help="transactions, statuses or labels.")] = "transactions",
    mapping: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="YAML file of columns.")] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", help="target=source; wins over the file.")] = None,
    rejects: Annotated[Path | None, typer.Option(help="Rejected rows; PATH.rejects.csv by default.")] = None,
    chunk_rows: Annotated[int, typer.Option(min=1, help="Rows per database transaction.")] = 50_000,
    graph: Annotated[bool, typer.Option(help="Bring the graph up to date afterwards.")] = True,
) -> None:
    """Load a file into the record store, then the graph. Running it twice changes nothing; exit code 3 says rejects."""
    from graph_features.ingest.ingest import IngestProgress, ingest_file
    from graph_features.ingest.mapping import load_mapping
    from graph_features.settings import IngestSettings, load
    from infra.wiring import Platform

    rejects_path = rejects or path.with_name(f"{path.name}.rejects.csv")
    with Platform() as platform, progress(f"ingest {path.name}") as advance:

        def show(step: IngestProgress) -> None:
            advance(step.rows, step.total, f"{step.inserted:,} new, {step.rejected:,} rejected")

        report = ingest_file(
            path,
            kind=kind,
            mapping=load_mapping(mapping, map_ or []),
            records=platform.records,
            settings=load(IngestSettings),
            mark_pending=platform.online.mark_pending,
            rejects_path=rejects_path,
            chunk_rows=chunk_rows,
            progress=show,
        )
        if graph and not report.interrupted:
            _sync(platform)
    say(str(report))
    if report.interrupted:
        raise KeyboardInterrupt
    if report.rejected:
        fail(f"{report.rejected:,} rows were rejected: see {rejects_path}", code=EXIT_REJECTS)


def sync() -> None:
    """Bring the graph up to date with the record store. Resumes where it stopped."""
    from infra.wiring import Platform

    with Platform() as platform:
        say(_sync(platform))


def _sync(platform: Platform) -> str:
    from graph_features.ingest.sync import sync_graph

    with progress("graph") as advance:
        return str(sync_graph(platform.records, platform.graph, progress=advance))


def verify() -> None:
    """Compare the record store with the graph: counts, checksums, and the first difference by name."""
    from graph_features.ingest.verify import verify as run
    from infra.wiring import Platform

    with Platform() as platform:
        report = run(platform.records, platform.graph)
    say(str(report))
    if not report.equal:
        fail("the graph differs from the record store; `ringfence sync` completes a graph that lags")


def register(app: typer.Typer) -> None:
    for command in (simulate, ingest, sync, verify):
        app.command()(command)
