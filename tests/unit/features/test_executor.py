"""Parts, their failures and the loss of workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pebble import ProcessExpired

from graph_features.executor import Executor, InProcess, ProcessPool


@pytest.fixture(params=["in process", "pool"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    opened: Executor = InProcess() if request.param == "in process" else ProcessPool(2)
    yield opened
    opened.close()


def test_results_come_in_order_with_failures_beside_their_parts(executor: Executor, tmp_path: Path) -> None:
    """A failed part is reported with its error and the others have their values."""
    parts = [str(tmp_path), str(tmp_path / "absent"), str(tmp_path)]
    results = list(executor.map(os.listdir, parts))
    assert [result.part for result in results] == parts
    assert [result.value for result in results] == [[], None, []]
    assert isinstance(results[1].error, FileNotFoundError)
    with pytest.raises(FileNotFoundError, match="absent"):
        results[1].get()


def test_parts_are_taken_a_few_ahead_only(executor: Executor) -> None:
    """An endless supply of parts is not drained: memory stays bounded."""
    taken = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield -len(taken)

    results = executor.map(abs, endless())
    assert [next(results).get() for _ in range(3)] == [1, 2, 3]
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 3 + 2 * executor.workers


def test_a_killed_worker_costs_one_retry() -> None:
    """Work whose worker is killed once is done by another; the run goes on."""
    pool = ProcessPool(1)
    try:
        # Only what can be imported by name reaches a worker, so the work is built-in.
        (worker,) = pool.map(eval, ["__import__('os').getpid()"])
        started = time.monotonic()
        killer = threading.Timer(0.5, os.kill, (worker.get(), signal.SIGKILL))
        killer.start()
        results = list(pool.map(time.sleep, [2.0, 0.0]))
        killer.join()
        assert [result.error for result in results] == [None, None]
        assert time.monotonic() - started > 2.4, "the part was not begun again"
    finally:
        pool.close()


def test_a_part_that_kills_its_workers_fails_alone() -> None:
    """A part that always ends its worker is given up after its retry; the next part is done."""
    pool = ProcessPool(1)
    try:
        results = list(pool.map(os._exit, [7]))
        assert isinstance(results[0].error, ProcessExpired)
        assert next(iter(pool.map(abs, [-3]))).get() == 3
    finally:
        pool.close()


def test_a_hung_part_is_ended_by_the_timeout() -> None:
    """With a timeout a part that hangs fails with TimeoutError and its worker is replaced."""
    pool = ProcessPool(1, timeout_s=1.0)
    try:
        results = list(pool.map(time.sleep, [60.0, 0.0]))
        assert isinstance(results[0].error, TimeoutError)
        assert results[1].error is None
    finally:
        pool.close()
