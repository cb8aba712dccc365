"""The feature workers are asked once at a time, and once more for what was written meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from serving.engineering import KEYS_PER_TASK, FeatureEngineering, Outcome
from serving.metrics import Metrics
from serving.pool import InlinePool

A, B = ("a",), ("b",)


class Worker:
    """Notes what it is asked for; the first call takes until it is let go."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.failing = False

    def refresh(self, keys: Sequence[Any]) -> dict[Any, str]:
        self.calls.append(list(keys))
        if len(self.calls) == 1:
            self.begun.set()
            assert self.let_go.wait(10)
        return dict.fromkeys(keys, "no") if self.failing else {}


@pytest.fixture
def worker() -> Worker:
    return Worker()


def run(worker: Worker, work: Any) -> Any:
    pool = InlinePool(name="features", size=1, build=lambda: worker)
    engineering = FeatureEngineering(pool=pool, task_timeout_s=5.0, metrics=Metrics())

    async def bounded() -> Any:
        return await asyncio.wait_for(work(engineering), 10)

    try:
        return asyncio.run(bounded())
    finally:
        worker.let_go.set()
        pool.close()


def soon() -> float:
    return asyncio.get_running_loop().time() + 5


def test_what_was_written_during_a_refresh_is_refreshed_after_it(worker: Worker) -> None:
    """A write does not share work that may have read the records before it; all writes meanwhile share the next."""

    async def work(engineering: FeatureEngineering) -> list[Outcome[Any]]:
        reading = asyncio.ensure_future(engineering.refresh([A, B], deadline=soon()))
        await asyncio.to_thread(worker.begun.wait, 5)
        writes = [asyncio.ensure_future(engineering.renew([A, ("c", str(at))], deadline=soon())) for at in range(3)]
        await asyncio.sleep(0.02)
        assert not any(write.done() for write in writes)
        worker.let_go.set()
        return list(await asyncio.gather(reading, *writes))

    first, *others = run(worker, work)
    assert first.done == {A: True, B: True}
    assert all(not one.failed and one.done[A] for one in others)
    assert sum(A in call for call in worker.calls) == 2
    assert sum(B in call for call in worker.calls) == 1


def test_readers_share_the_refresh_of_a_write(worker: Worker) -> None:
    """A cold account that is being refreshed for a write is not computed again for a score, nor after it is done."""

    async def work(engineering: FeatureEngineering) -> None:
        write = asyncio.ensure_future(engineering.renew([A], deadline=soon()))
        await asyncio.to_thread(worker.begun.wait, 5)
        read = asyncio.ensure_future(engineering.refresh([A], deadline=soon()))
        await asyncio.sleep(0.02)
        worker.let_go.set()
        await asyncio.gather(write, read)
        assert engineering._refreshing == engineering._next == {}

    run(worker, work)
    assert worker.calls == [[A]]


def test_many_busy_keys_go_in_tasks_of_their_usual_size(worker: Worker) -> None:
    """Work that follows is cut like work that starts, and its failures are told to whom they concern."""
    keys = [(str(at),) for at in range(KEYS_PER_TASK + 1)]

    async def work(engineering: FeatureEngineering) -> Any:
        reading = asyncio.ensure_future(engineering.refresh(keys, deadline=soon()))
        await asyncio.to_thread(worker.begun.wait, 5)
        write = asyncio.ensure_future(engineering.renew(keys, deadline=soon()))
        await asyncio.sleep(0.02)
        worker.failing = True
        worker.let_go.set()
        await reading
        done = await write
        assert engineering._refreshing == engineering._next == {}
        return done

    assert run(worker, work).failed == dict.fromkeys(keys, "unavailable")
    assert [len(call) for call in worker.calls] == [KEYS_PER_TASK, 1, KEYS_PER_TASK, 1]


def test_a_write_waits_no_longer_than_its_deadline(worker: Worker) -> None:
    """What follows a task that hangs is given up at the deadline, and goes on behind it."""

    async def work(engineering: FeatureEngineering) -> Any:
        reading = asyncio.ensure_future(engineering.refresh([A], deadline=soon()))
        await asyncio.to_thread(worker.begun.wait, 5)
        late = await engineering.renew([A], deadline=asyncio.get_running_loop().time() + 0.05)
        worker.let_go.set()
        await reading
        while len(worker.calls) < 2:
            await asyncio.sleep(0.01)
        return late

    assert run(worker, work).failed == {A: "deadline"}
