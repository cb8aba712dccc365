"""Beyond one machine, measured on one: `make bench-scale`.

    python -m bench.scale [--only overhead|backfill|sharing|redis] [--payments 20000000] [--partitions 16] [--days 7]

What Ray adds to a part and to a shard; a backfill by partition against the whole graph, in time and memory of a worker,
with one worker and with two; edges from files against edges from Ray's object store; Redis Cluster against one Redis.
"""

from __future__ import annotations

import argparse
import os

from bench import scale_backfill, scale_overhead, scale_redis
from bench.features_data import Payments
from bench.report import Figure, publish
from bench.scale_cluster import ray_cluster
from bench.timing import note

PARTS = ("overhead", "backfill", "sharing", "redis")
SHARED_PAYMENTS = 2_000_000
STORE_MB = 400


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--payments", type=int, default=20_000_000, help="of the backfill")
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--days", type=int, default=7, help="rows of so many last days")
    arguments = parser.parse_args()
    # What is measured is one thread per worker, as workers of one core are.
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    wanted = [part for part in PARTS if arguments.only in (None, part)]
    figures: list[Figure] = []
    if set(wanted) - {"redis"}:
        with ray_cluster(nodes=2, store_mb=STORE_MB) as settings:
            if "overhead" in wanted:
                note("overhead")
                figures += scale_overhead.figures(settings)
            if "sharing" in wanted:
                note("sharing")
                figures += scale_backfill.sharing(settings, _payments(min(arguments.payments, SHARED_PAYMENTS)))
            if "backfill" in wanted:
                note("backfill")
                figures += scale_backfill.figures(
                    settings, _payments(arguments.payments), partitions=arguments.partitions, days=arguments.days
                )
    if "redis" in wanted:
        note("redis")
        figures += scale_redis.figures()
    publish("scale", figures)


def _payments(count: int) -> Payments:
    return Payments(n_accounts=count // 10, n_payments=count, days=60, seed=7)


if __name__ == "__main__":
    main()
