"""`ringfence services`: PostgreSQL, Redis and Neo4j on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from infra.local.base import Progress
    from infra.local.servers import ServerStatus

app = typer.Typer(
    help="PostgreSQL, Redis and Neo4j for development and tests, started on this machine without Docker.",
    no_args_is_help=True,
)

PackagedOption = Annotated[bool, typer.Option("--packaged", help="Ignore installed servers, take Python packages'.")]
PurgeOption = Annotated[bool, typer.Option("--purge", help="Remove data and passwords too.")]


@app.command()
def up(packaged: PackagedOption = False) -> None:
    """Start what is not running, wait until each answers, print the environment to use."""
    from infra.local import environment, servers

    services = servers.up(_home(), packaged=packaged, progress=_reporter())
    typer.echo(environment.lines(services.environment), nl=False)
    typer.echo(f"Written to {services.env_file}: `. {services.env_file}` takes it into a shell.", err=True)


@app.command()
def down(purge: PurgeOption = False) -> None:
    """Stop every server; data and passwords stay for the next start."""
    from infra.local import servers

    home = _home()
    servers.down(home, purge=purge, progress=_reporter())
    typer.echo(f"No server of {home} is running{'; data and passwords are removed' if purge else ''}.", err=True)


@app.command()
def status() -> None:
    """Ask every server; exit code 0 only when all answer."""
    from infra.local import servers

    found = servers.status(_home())
    for server in found:
        typer.echo(_line(server))
    if not all(server.answers for server in found):
        raise typer.Exit(1)


@app.command()
def env() -> None:
    """Print the environment of the servers as shell lines."""
    from infra.local import environment, servers

    typer.echo(environment.lines(servers.existing(_home()).environment), nl=False)


def _home() -> Path:
    from graph_features.settings import PlatformSettings, load

    return load(PlatformSettings).home.resolve()


def _line(server: ServerStatus) -> str:
    if server.state is None or server.state.process is None:
        where = ""
    else:
        where = (
            f"port {server.state.port}, pid {server.state.process.pid}, {server.state.origin} {server.state.version}"
        )
    how = "answers" if server.answers else server.problem
    return f"{server.name:<9}{how}{f' ({where})' if where else ''}"


def _reporter() -> Progress:
    def report(server: str, text: str) -> None:
        typer.echo(f"{server:<9}{text}", err=True)

    return report
