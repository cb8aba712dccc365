"""The table behind `ringfence evaluate --ladder`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from infra.console import progress, say, table


def show_ladder(
    from_: datetime, to: datetime, *, version: str | None, label_cut: datetime | None, protocol: str, json_: bool
) -> None:
    """Fit and measure every rung, print the table, and say which MLflow run holds it."""
    from graph_features.settings import PlatformSettings, load
    from training.evaluate import protocol_named
    from training.ladder_run import FIGURES, evaluate_ladder

    with progress("ladder") as advance:
        report = evaluate_ladder(
            load(PlatformSettings),
            test_from=from_,
            test_to=to,
            version=version,
            label_cut=label_cut,
            protocol=protocol_named(protocol),
            progress=advance,
        )
    if json_:
        rungs = {rung: {name: getattr(found, name) for name in FIGURES} for rung, found in report.results.items()}
        say(json.dumps({"version": report.version, "run_id": report.run_id, "ladder": rungs}))
        return
    rows: list[list[Any]] = [
        [rung, *(f"{getattr(found, name):.4f}" for name in FIGURES)] for rung, found in report.results.items()
    ]
    title = f"as {report.name} {report.version}, on {report.payments:,} payments, {report.frauds:,} of them fraudulent"
    table(title, ["rung", *FIGURES], rows)
    say(f"MLflow run {report.run_id}")
