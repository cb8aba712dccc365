"""erase: a person's account out of every store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.console import say, table


def erase(
    account: Annotated[str, typer.Argument(help="The account's id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what each place holds.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    rejects: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Files of rejected rows outside of the home.")
    ] = None,
) -> None:
    """Remove an account with its payments, devices and cards from every store, and prove it place by place.

    The other side of its payments keeps a history without them. A run that was interrupted is finished by the same
    command. The proof is kept in RINGFENCE_HOME/erasures under a salted digest.
    """
    from graph_features.erasure import erase as run
    from graph_features.erasure import look
    from graph_features.jobs.ledger import open_ledger
    from infra.erasing import keep, places
    from infra.wiring import Platform
    from serving.decisions import DecisionLog, open_engine

    with Platform() as platform:
        ledger, engine = open_ledger(platform.settings), open_engine(platform.settings)
        try:
            where = places(platform.settings, DecisionLog(engine), rejects or [])
            found = look(account, stores=platform, ledger=ledger, places=where)
            if dry_run:
                table(account, ["place", "found"], [[name, f"{count:,}"] for name, count in found.items()])
                return
            if not yes:
                typer.confirm(f"Erase {account} for good ({sum(found.values()):,} traces)?", abort=True)
            proof = run(account, stores=platform, ledger=ledger, places=where)
        finally:
            ledger.close()
            engine.dispose()
        rows = [[finding.place, f"{finding.before:,}", f"{finding.after:,}"] for finding in proof.findings]
        table(account, ["place", "before", "after"], rows)
        path = keep(proof, platform.settings.home)
    say(f"erased; {proof.recomputed:,} accounts computed anew; proof in {path}")


def register(app: typer.Typer) -> None:
    app.command()(erase)
