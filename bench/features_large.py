"""Ten times the payments: whether it runs, in what memory, and how time grows.

`python -m bench.features_large ACCOUNTS PAYMENTS DAYS SEED FOLDER` is the process that is measured: it maps the table
that FOLDER holds, or builds it first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from bench.features_catalogue import compile_kernels, view_by_view
from bench.features_data import Payments
from bench.report import Figure
from bench.steps import MB, Peak
from bench.timing import note
from graph_features.edge_files import load_edges, save_edges

GOAL_GB = 12.0
TIMES = 10


def measured(payments: Payments, folder: Path) -> tuple[dict[str, float], float]:
    """Run the catalogue in a process of its own; return seconds per view and peak memory in GB."""
    sizes = (payments.n_accounts, payments.n_payments, payments.days, payments.seed)
    command = [sys.executable, "-m", "bench.features_large", *map(str, sizes), str(folder)]
    subprocess.run(command, check=True, env=dict(os.environ), stdout=subprocess.DEVNULL)  # builds and leaves
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    peak.start()
    output, _ = process.communicate()
    peak.stop()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    taken: dict[str, float] = json.loads(output.splitlines()[-1])
    return taken, peak.mb * MB / 1e9


def large_figures(payments: Payments) -> list[Figure]:
    """Part `20m`: TIMES as many accounts and payments as the others have."""
    large = Payments(
        n_accounts=TIMES * payments.n_accounts,
        n_payments=TIMES * payments.n_payments,
        days=payments.days,
        seed=payments.seed,
    )
    with TemporaryDirectory() as folder:
        few, few_gb = measured(payments, Path(folder) / "few")
        many, many_gb = measured(large, Path(folder) / "many")
    growth = sum(many.values()) / sum(few.values())
    note(f"  {sum(few.values()):.1f} s and {few_gb:.1f} GB, {sum(many.values()):.1f} s and {many_gb:.1f} GB")
    size = f"{large.n_payments:,} payments"
    figures = [
        Figure(name=f"{size}: peak memory", value=many_gb, unit="GB", goal=GOAL_GB, conditions=large.conditions),
        Figure(name=f"{payments.n_payments:,} payments: peak memory", value=few_gb, unit="GB"),
        Figure(name=f"{size}: catalogue", value=sum(many.values()), unit="s", conditions=large.conditions),
        Figure(name=f"time for {TIMES} times the payments", value=growth, unit="times", conditions="1 run each"),
    ]
    for view, spent in many.items():
        told = f"{few[view]:.2f} s for {payments.n_payments:,}"
        figures.append(Figure(name=f"{size}: {view}", value=spent, unit="s", conditions=told))
    return figures


def main() -> None:
    """Build the table and end, or map it and run the whole catalogue at its end."""
    n_accounts, n_payments, days, seed = map(int, sys.argv[1:5])
    folder = Path(sys.argv[5])
    payments = Payments(n_accounts=n_accounts, n_payments=n_payments, days=days, seed=seed)
    if not folder.exists():
        started = perf_counter()
        save_edges(payments.edges(), folder)
        note(f"  built {n_payments:,} payments in {perf_counter() - started:.0f} s")
        return
    compile_kernels()
    print(json.dumps(view_by_view(load_edges(folder), payments.end_ms)))


if __name__ == "__main__":
    main()
