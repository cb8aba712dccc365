"""What Ray adds to a part of feature work and to a shard, against the pools of processes, with no work in either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

from bench.report import Figure
from bench.timing import alternately, note
from graph_features.executor import Executor, ProcessPool, open_executor
from graph_features.settings import ExecutorSettings
from graph_features.tuples import TransactionColumns
from serving.pool import Pool
from serving.pool import ProcessPool as Workers
from serving.ray_pool import RayPool
from serving.scorer import Shard, ShardScores
from serving.worker import HandlerSpec

SHARD_ROWS = 200
SHARDS = 5
"""Of a request with 1000 transactions."""
VIEWS = 9
CALLS = 200
PARTS = 200
ROUNDS = 7
SHARD_GOAL_MS = 5.0
REQUEST_GOAL_MS = 15.0


class Echo:
    """A handler that scores nothing: its answer has the size of a shard's."""

    def __init__(self) -> None:
        rows = (VIEWS, 2 * SHARD_ROWS)
        self._answer = ShardScores(
            score=np.zeros(SHARD_ROWS, np.float32),
            as_of_ms=np.zeros(rows, np.int64),
            created_us=np.zeros(rows, np.int64),
            state=np.zeros(rows, np.int8),
            read_ms=0.0,
            build_ms=0.0,
            infer_ms=0.0,
        )

    def score(self, shard: Shard) -> ShardScores:
        """Return the same for any shard."""
        assert len(shard.transactions.event_ms) == SHARD_ROWS
        return self._answer


def shard() -> Shard:
    """Return a shard of the usual size."""
    columns = {
        "sender_id": [f"a{at:08d}" for at in range(SHARD_ROWS)],
        "receiver_id": [f"b{at:08d}" for at in range(SHARD_ROWS)],
        "event_timestamp": np.full(SHARD_ROWS, 1_700_000_000_000, np.int64),
        "amount_base": np.full(SHARD_ROWS, 10_000, np.int64),
    }
    return Shard(transactions=TransactionColumns.from_mapping(columns))


def figures(settings: ExecutorSettings) -> list[Figure]:
    """Measure both, in turn, with two workers each."""
    return [*_parts(settings), *_shards(settings)]


def _parts(settings: ExecutorSettings) -> list[Figure]:
    sides: list[Executor] = [open_executor(2, settings), ProcessPool(2)]
    for side in sides:
        list(side.map(abs, range(10)))
    note(f"  {PARTS} parts without work")
    on_ray, in_processes = alternately(ROUNDS, *(lambda side=side: _all(side) for side in sides))
    for side in sides:
        side.close()
    return [
        Figure(
            name="a part without work, on Ray",
            value=on_ray / PARTS * 1e3,
            unit="ms",
            peer="process pool",
            peer_value=in_processes / PARTS * 1e3,
            conditions=f"{PARTS} parts, 2 workers, median of {ROUNDS}",
        )
    ]


def _all(executor: Executor) -> None:
    assert [result.get() for result in executor.map(abs, range(PARTS))] == list(range(PARTS))


def _shards(settings: ExecutorSettings) -> list[Figure]:
    spec, work = HandlerSpec(target="bench.scale_overhead:Echo"), shard()
    with _pools(spec, settings) as pools:
        for pool in pools:
            _asked(pool, work, 50)
        note(f"  {CALLS} shards one by one, then requests of {SHARDS}")
        taken = [[_asked(pool, work, CALLS) for pool in pools] for _ in range(ROUNDS)]
        one = np.median(taken, axis=0)
        taken = [[_requests(pool, work, CALLS // SHARDS) for pool in pools] for _ in range(ROUNDS)]
        request = np.median(taken, axis=0)
    conditions = f"{SHARD_ROWS} transactions a shard, answers of {VIEWS} views, 2 workers, p50, median of {ROUNDS}"
    return [
        Figure(
            name=name,
            value=float(on_ray),
            unit="ms",
            peer="process pool",
            peer_value=float(in_processes),
            goal=goal,
            conditions=conditions,
        )
        for name, goal, (on_ray, in_processes) in (
            ("a shard without work, actor on Ray", SHARD_GOAL_MS, one),
            ("1000 transactions in 5 shards without work, actors on Ray", REQUEST_GOAL_MS, request),
        )
    ]


@contextmanager
def _pools(spec: HandlerSpec, settings: ExecutorSettings) -> Iterator[Sequence[Pool]]:
    pools: tuple[RayPool, Workers] = (
        RayPool(name="ray", size=2, spec=spec, settings=settings),
        Workers(name="processes", size=2, spec=spec),
    )
    try:
        for pool in pools:
            pool.wait_ready()
        yield pools
    finally:
        for pool in pools:
            pool.close()


def _asked(pool: Pool, work: Shard, calls: int) -> float:
    """Return the median milliseconds of shards, one after the other."""
    taken = []
    for _ in range(calls):
        started = perf_counter()
        pool.submit("score", work, timeout_s=60).result()
        taken.append(perf_counter() - started)
    return float(np.median(taken)) * 1e3


def _requests(pool: Pool, work: Shard, requests: int) -> float:
    taken = []
    for _ in range(requests):
        started = perf_counter()
        futures: list[Future[Any]] = [pool.submit("score", work, timeout_s=60) for _ in range(SHARDS)]
        for future in futures:
            future.result()
        taken.append(perf_counter() - started)
    return float(np.median(taken)) * 1e3
