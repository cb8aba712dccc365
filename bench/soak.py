"""Twenty minutes at half of capacity: memory, open files and p99 must stay where they were.

    python -m bench.soak [--minutes 20] [--accounts 20000 --payments 100000] [--home FOLDER]

The server scores, takes payments and labels, and is looked at every few seconds. The first fifth is warm-up; what is
compared is the middle of the second fifth and of the last.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from bench.features_data import Payments
from bench.homes import guarded_home
from bench.http_load import Load, closed_loop, once, open_loop
from bench.report import Figure, publish
from bench.serving_load import requests
from bench.serving_world import Process, World, serving
from bench.serving_writes import Writer
from bench.timing import note

SHARE = 0.5
EVERY_S = 5.0
STRETCH_S = 10.0
SIZE, WRITTEN = 20, 1_000
MB = 1_000_000
MEMORY_GOAL, FILES_GOAL, P99_GOAL = 1.05, 1.05, 1.5
"""Most that the last fifth may be of the second."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The server's process tree at one moment."""

    at_s: float
    memory_mb: float
    files: int


def look(pid: int, began: float) -> Look:
    """Proportional memory and open files of a process and its children."""
    memory, files = 0, 0
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            memory += process.memory_full_info().pss
            files += process.num_fds()
        except psutil.NoSuchProcess:
            continue
    return Look(at_s=time.monotonic() - began, memory_mb=memory / MB, files=files)


class Watch(threading.Thread):
    """Looks at the server until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.looks: list[Look] = []
        self._pid = pid
        self._done = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        while not self._done.wait(EVERY_S):
            self.looks.append(look(self._pid, began))

    def stop(self) -> None:
        self._done.set()
        self.join()


def soak(world: World, server: Process, minutes: float) -> list[Figure]:
    """The load, and how the end compares with the beginning."""
    sent = requests(world, 400, SIZE, seed=71)
    once(server.url, sent[0])
    capacity = closed_loop(server.url, sent, connections=4, seconds=STRETCH_S).per_second
    watch = Watch(server.process.pid)
    watch.start()
    loads: list[Load] = []
    end = time.monotonic() + 60 * minutes
    writer = Writer(world, server.url, world.transactions(WRITTEN, seed=90))
    writer.start()
    while time.monotonic() < end:
        loads.append(open_loop(server.url, sent, rate=SHARE * capacity, seconds=STRETCH_S, seed=len(loads)))
        note(f"  {len(loads)}: p99 {loads[-1].quantile_ms(0.99):.0f} ms, {loads[-1].failed} failed")
    writer.stop()
    watch.stop()
    return compared(capacity, loads, watch.looks, writer.statuses)


def compared(capacity: float, loads: list[Load], looks: list[Look], written: dict[int, int]) -> list[Figure]:
    """The last fifth against the second."""
    shown = (
        f"{SHARE:.0%} of {capacity:.0f} requests/s of {SIZE} payments, a payment and a label a second "
        f"({json.dumps(written)}); medians of the last fifth against the second"
    )
    figures = []
    series = {
        "memory": ("MB", [one.memory_mb for one in looks], MEMORY_GOAL),
        "open files": ("files", [float(one.files) for one in looks], FILES_GOAL),
        "p99": ("ms", [one.quantile_ms(0.99) for one in loads], P99_GOAL),
    }
    for name, (unit, values, goal) in series.items():
        fifth = max(1, len(values) // 5)
        before, after = float(np.median(values[fifth : 2 * fifth])), float(np.median(values[-fifth:]))
        note(f"  {name}: {before:.1f} to {after:.1f} {unit}")
        figures.append(
            Figure(
                name=f"soak: {name}, end against beginning", value=after, unit=unit, peer="beginning",
                peer_value=before, goal=1 / goal, goal_on="ratio", conditions=shown,
            )
        )  # fmt: skip
    failed = sum(one.failed for one in loads)
    figures.append(Figure(name="soak: failed", value=failed, unit="requests", goal=0, conditions=shown))
    return figures


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--accounts", type=int, default=20_000)
    parser.add_argument("--payments", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--home", type=Path, help="keep the servers and what is in them here")
    given = parser.parse_args()
    with guarded_home() if given.home is None else nullcontext(given.home) as home:
        payments = Payments(n_accounts=given.accounts, n_payments=given.payments, days=60, seed=given.seed)
        world = World(home=home.resolve(), payments=payments)
        world.fill()
        try:
            with serving(world) as server:
                publish("soak", soak(world, server, given.minutes))
        finally:
            world.close()


if __name__ == "__main__":
    main()
