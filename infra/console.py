"""How commands speak to people: progress, tables, errors without tracebacks, instants from arguments."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from time import monotonic
from typing import Any, NoReturn

import typer

LOG_EVERY_S = 10.0

Advance = Callable[[float, float | None, str], None]
"""advance(done, total or None, text)"""


def say(text: str, *, err: bool = False) -> None:
    """Write a line to standard output, or to standard error."""
    typer.echo(text, err=err)


def fail(text: str, code: int = 1) -> NoReturn:
    """Write a line to standard error and end the command."""
    typer.secho(f"ringfence: {text}", err=True, fg=typer.colors.RED if sys.stderr.isatty() else None)
    raise typer.Exit(code)


def setup_logging(verbose: bool) -> None:
    """Log lines on standard error; libraries only from warnings up."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for name in ("ringfence", "graph_features", "feature_repo", "training", "serving", "infra"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """A progress bar in a terminal, a log line now and then elsewhere, on standard error in both cases."""
    if sys.stderr.isatty():
        yield from _bar(title)
    else:
        yield from _lines(title)


def _bar(title: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)


def _lines(title: str) -> Iterator[Advance]:
    last = monotonic()

    def advance(done: float, total: float | None, text: str) -> None:
        nonlocal last
        if monotonic() - last >= LOG_EVERY_S:
            last = monotonic()
            share = f"{done:,.0f} of {total:,.0f}" if total else f"{done:,.0f}"
            typer.echo(f"{title}: {share} {text}".rstrip(), err=True)

    yield advance


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print rows under headings."""
    from rich.console import Console
    from rich.table import Table

    view = Table(title=title, title_justify="left")
    for column in columns:
        view.add_column(column, overflow="fold")
    for row in rows:
        view.add_row(*("" if cell is None else str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 140).print(view)


def instant(text: str) -> datetime:
    """Parse `2026-03-01` (midnight UTC) or an ISO 8601 instant with a zone, for instance `2026-03-01T06:00:00Z`."""
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"expected a date or an ISO 8601 instant with a zone, got {text!r}") from None
    if moment.tzinfo is None:
        raise typer.BadParameter(f"expected a zone (for instance a trailing Z), got {text!r}")
    return moment.astimezone(UTC)


def instant_option(*names: str, help: str) -> Any:
    """An option that takes an instant; see `instant`."""
    return typer.Option(*names, parser=instant, metavar="INSTANT", help=help)
