"""`ringfence`: the console command. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from infra import cli_services
from infra.commands import data, features, jobs, keys, models, privacy, service

app = typer.Typer(
    name="ringfence",
    help="Graph fraud scoring: from transactions to features, a model and scores.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cli_services.app, name="services")
for commands in (data, features, jobs, models, privacy, service, keys):
    commands.register(app)


@app.callback()
def prepare(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False) -> None:
    """Graph fraud scoring: from transactions to features, a model and scores."""
    from graph_features.settings import export_services_environment
    from infra.console import setup_logging

    setup_logging(verbose)
    export_services_environment()


def main() -> None:
    """Run the command line; a RingfenceError becomes one line on standard error and exit code 1, Ctrl-C 130."""
    from graph_features.errors import RingfenceError

    try:
        app()
    except RingfenceError as error:
        typer.echo(f"ringfence: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("ringfence: interrupted; what was committed stays, run the same command again to go on", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
