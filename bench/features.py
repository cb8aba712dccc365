"""What the feature engine costs, beside what a user could take instead; see docs/benchmarks.md.

    python -m bench.features [--accounts 200000 --payments 2000000 --days 180 --seed 7] [--only PART ...] [--with-20m]

Starts PostgreSQL, Redis and Neo4j of its own where a part needs them, and removes them at the end.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from bench import gds
from bench.features_catalogue import catalogue_figures, compile_kernels, event_figures
from bench.features_data import Payments
from bench.features_gds import gds_figures
from bench.features_large import large_figures
from bench.features_on_demand import on_demand_figures
from bench.features_reading import reading_figures
from bench.features_windows import window_figures
from bench.homes import guarded_home
from bench.report import Figure, publish
from bench.timing import note
from graph_features.edges import EdgeTable
from graph_features.sources.neo4j import Neo4jGraph
from infra.local import servers
from infra.local.servers import Services


class Bench:
    """What the parts share, made when first asked for."""

    def __init__(self, payments: Payments, home: Path) -> None:
        self.payments = payments
        self._home = home

    @cached_property
    def edges(self) -> EdgeTable:
        note(f"generating {self.payments.conditions}")
        return self.payments.edges()

    @cached_property
    def services(self) -> Services:
        """The three servers, Neo4j with the graph and GDS."""
        kinds = {**servers.SERVERS, "neo4j": gds.server(self.payments.transactions, note)}
        running = servers.up(
            self._home, durable=False, progress=lambda name, text: note(f"{name}: {text}"), kinds=kinds
        )
        graph = Neo4jGraph(running.neo4j)
        graph.create_schema()
        graph.close()
        return running

    def catalogue(self) -> list[Figure]:
        return catalogue_figures(self.payments, self.edges)

    def gds(self) -> list[Figure]:
        graph = Neo4jGraph(self.services.neo4j)
        try:
            return gds_figures(self.payments, self.services.neo4j, graph)
        finally:
            graph.close()

    def windows(self) -> list[Figure]:
        return window_figures(self.payments, self.edges, os.cpu_count() or 1)

    def events(self) -> list[Figure]:
        return event_figures(self.payments, self.edges, self.services.postgres)

    def reading(self) -> list[Figure]:
        return reading_figures(self.payments, self.services.neo4j)

    def on_demand(self) -> list[Figure]:
        running = self.services
        return on_demand_figures(self.payments, self.edges, running.postgres, running.redis, running.neo4j)

    def large(self) -> list[Figure]:
        return large_figures(self.payments)


PARTS: dict[str, Callable[[Bench], list[Figure]]] = {
    "catalogue": Bench.catalogue,
    "gds": Bench.gds,
    "windows": Bench.windows,
    "events": Bench.events,
    "reading": Bench.reading,
    "on-demand": Bench.on_demand,
    "20m": Bench.large,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=200_000)
    parser.add_argument("--payments", type=int, default=2_000_000)
    parser.add_argument("--days", type=int, default=180, help="length of the history, 70 at least")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--with-20m", action="store_true", help="also ten times the payments; takes long")
    arguments = parser.parse_args()
    chosen = arguments.only or [name for name in PARTS if name != "20m" or arguments.with_20m]
    payments = Payments(
        n_accounts=arguments.accounts, n_payments=arguments.payments, days=arguments.days, seed=arguments.seed
    )
    found: list[Figure] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the home is removed all the same
    with guarded_home() as home:
        bench = Bench(payments, home)
        note("compiling")
        compile_kernels()
        try:
            for name in chosen:
                note(name)
                found += PARTS[name](bench)
        finally:
            publish("features", found)


if __name__ == "__main__":
    main()
