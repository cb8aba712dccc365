"""One payment a request under load, and what another process brings."""

from __future__ import annotations

import json

import numpy as np

from bench.http_load import Load, closed_loop, once, open_loop, post
from bench.report import Figure
from bench.serving_world import Process, World, serving
from bench.timing import note

SHARE = 0.7
CONNECTIONS = 32
LARGE = 1_000


def requests(world: World, count: int, size: int, seed: int) -> list[bytes]:
    """Different requests of `size` payments each."""
    rows = world.transactions(count * size, seed)
    groups = (rows[first : first + size] for first in range(0, len(rows), size))
    return [post("/predict", json.dumps({"transactions": group}).encode()) for group in groups]


def load(world: World, *, seconds: float, rounds: int) -> list[Figure]:
    """Part `load`: capacity with one payment a request, then p50 and p99 at 70 % of it, requests coming at random."""
    sent = requests(world, 2_000, 1, seed=41)
    with serving(world, max_in_flight=4 * CONNECTIONS) as server:
        once(server.url, sent[0])
        capacity = _median(_closed(server, sent, seconds, rounds))
        calm = closed_loop(server.url, sent, connections=1, seconds=seconds)
        loads = [
            open_loop(server.url, sent, rate=SHARE * capacity, seconds=2 * seconds, seed=at) for at in range(rounds)
        ]
    failed = sum(one.failed for one in loads)
    late = [round(one.quantile_ms(0.99)) for one in loads]
    note(f"  {capacity:.0f} requests/s; p99 at {SHARE:.0%} of it: {late} ms, {failed} failed")
    shown = f"1 payment a request, at random, {SHARE:.0%} of the capacity measured before; latency from when it was due"
    at_load = {share: float(np.median([one.quantile_ms(share) for one in loads])) for share in (0.5, 0.99)}
    return [
        Figure(
            name="/predict of 1: capacity", value=capacity, unit="requests/s", better="higher",
            conditions=f"{CONNECTIONS} connections, 2 workers, client on the same cores",
        ),
        Figure(name="/predict of 1: p50", value=calm.quantile_ms(0.5), unit="ms", conditions="1 connection"),
        Figure(name="/predict of 1 under load: p50", value=at_load[0.5], unit="ms", conditions=shown),
        Figure(name="/predict of 1 under load: p99", value=at_load[0.99], unit="ms", conditions=shown),
        Figure(name="/predict of 1 under load: failed", value=failed, unit="requests", goal=0, conditions=shown),
    ]  # fmt: skip


def scaling(world: World, *, seconds: float, rounds: int) -> list[Figure]:
    """Part `scaling`: from one worker to two, with processes and with threads."""
    sent = requests(world, 8, LARGE, seed=42)
    rates: dict[tuple[str, int], float] = {}
    for pool in ("process", "thread"):
        for workers in (1, 2):
            with serving(world, workers=workers, pool=pool) as server:
                once(server.url, sent[0])
                rates[pool, workers] = _median(_closed(server, sent, seconds, rounds, connections=4))
            note(f"  {workers} {pool}: {rates[pool, workers]:.1f} requests/s")
    shown = f"{LARGE} payments a request, 4 connections, client on the same two cores; one after the other"
    return [
        Figure(
            name="/predict of 1000, two processes", value=rates["process", 2], unit="requests/s", better="higher",
            peer="one process", peer_value=rates["process", 1], conditions=shown,
        ),
        Figure(
            name="/predict of 1000, two processes", value=rates["process", 2], unit="requests/s", better="higher",
            peer="two threads", peer_value=rates["thread", 2], conditions=shown,
        ),
        Figure(
            name="/predict of 1000, two threads", value=rates["thread", 2], unit="requests/s", better="higher",
            peer="one thread", peer_value=rates["thread", 1], conditions=shown,
        ),
    ]  # fmt: skip


def _closed(
    server: Process, sent: list[bytes], seconds: float, rounds: int, *, connections: int = CONNECTIONS
) -> list[Load]:
    return [closed_loop(server.url, sent, connections=connections, seconds=seconds) for _ in range(rounds)]


def _median(loads: list[Load]) -> float:
    return float(np.median([one.per_second for one in loads]))
