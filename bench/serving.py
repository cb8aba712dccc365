"""Serving on real servers, against its peers and against its own limit, all in one run.

    python -m bench.serving [--only PART ...] [--accounts 200000 --payments 400000] [--seconds 4] [--home FOLDER]

PostgreSQL, Redis and Neo4j hold the history of so many accounts; the model reads all their features and real
neighbours. `--home` keeps the filled servers for the next run. Peers that are no dependency of Ringfence (LitServe, Ray
Serve) are installed from requirements/peers.lock into bench/out/peers on first use.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

from bench.features_data import Payments
from bench.homes import guarded_home
from bench.report import Figure, publish
from bench.serving_world import World
from bench.timing import note

PARTS = {
    "features": "bench.serving_features",
    "limit": "bench.serving_predict",
    "chain": "bench.serving_predict",
    "peers": "bench.serving_predict",
    "load": "bench.serving_load",
    "scaling": "bench.serving_load",
    "cold": "bench.serving_fresh",
    "freshness": "bench.serving_fresh",
}
DAYS = 60


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--accounts", type=int, default=200_000)
    parser.add_argument("--payments", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measured stretch of load")
    parser.add_argument("--rounds", type=int, default=5, help="stretches per side, in turn")
    parser.add_argument("--home", type=Path, help="keep the servers and what is in them here")
    return parser.parse_args()


@contextmanager
def filled(given: argparse.Namespace) -> Iterator[World]:
    """The servers with their history; ended with the run unless a home was given."""
    if given.home is not None:
        given.home.mkdir(parents=True, exist_ok=True)
    place = guarded_home() if given.home is None else nullcontext(given.home)
    with place as home:
        payments = Payments(n_accounts=given.accounts, n_payments=given.payments, days=DAYS, seed=given.seed)
        world = World(home=home.resolve(), payments=payments)
        note(f"filling: {payments.conditions}")
        world.fill()
        try:
            yield world
        finally:
            world.close()


def main() -> None:
    """Measure and publish."""
    given = options()
    figures: list[Figure] = []
    with filled(given) as world:
        for part, module in PARTS.items():
            if given.only is None or part in given.only:
                note(f"part {part}")
                measure = getattr(import_module(module), part)
                figures += measure(world, seconds=given.seconds, rounds=given.rounds)
    publish("serving", figures)


if __name__ == "__main__":
    main()
