"""Small requests worked on together: each gets its own answer, the first one waits for nobody, errors stay alone."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from serving.admission import PER_REQUEST, Admission, BusyError
from serving.batching import ENOUGH, Batcher, Entry

Group = list[Entry[list[int], list[int]]]

REQUEST: ContextVar[str] = ContextVar("request", default="")
"""What the log takes a request's id from."""


class Workers:
    """Answers a request with its own numbers, once told to."""

    def __init__(self, **options: Any) -> None:
        self.groups: list[list[int]] = []
        self.names: list[str] = []
        self.go = asyncio.Event()
        self.batcher: Batcher[list[int], list[int]] = Batcher(
            self.run, **{"workers": 2, "max_rows": 100, "window_s": 60.0, **options}
        )

    async def run(self, group: Group) -> None:
        self.groups.append([number for entry in group for number in entry.asked])
        self.names.append(REQUEST.get())
        await self.go.wait()
        for entry in group:
            entry.finish(entry.asked)

    def ask(self, *numbers: int, kind: str = "a", alone: bool = False) -> asyncio.Task[list[int]]:
        return asyncio.create_task(self.batcher.ask([*numbers], rows=len(numbers), kind=kind, alone=alone))


def test_what_comes_while_a_group_is_on_its_way_goes_together() -> None:
    """The first request is sent at once; those that come meanwhile share a task, and each gets its own answer."""

    async def run() -> tuple[Workers, list[list[int]]]:
        workers = Workers()
        tasks = [workers.ask(1)]
        await asyncio.sleep(0.01)
        assert workers.groups == [[1]]
        tasks += [workers.ask(at, at + 50) for at in (2, 3, 4)]
        await asyncio.sleep(0.01)
        assert workers.groups == [[1]]
        workers.go.set()
        return workers, await asyncio.gather(*tasks)

    workers, answers = asyncio.run(run())
    assert workers.groups == [[1], [2, 52, 3, 53, 4, 54]]
    assert answers == [[1], [2, 52], [3, 53], [4, 54]]


def test_a_free_worker_is_taken_by_many_or_after_the_window() -> None:
    """Beside a group on its way another one goes once it has ENOUGH rows, or once its first request has waited."""

    async def many() -> list[int]:
        workers = Workers()
        tasks = [workers.ask(0)]
        await asyncio.sleep(0.01)
        tasks += [workers.ask(at) for at in range(1, ENOUGH + 1)]
        await asyncio.sleep(0.01)
        sizes = [len(group) for group in workers.groups]
        workers.go.set()
        await asyncio.gather(*tasks)
        return sizes

    async def late() -> list[list[int]]:
        workers = Workers(window_s=0.02)
        tasks = [workers.ask(1)]
        await asyncio.sleep(0.01)
        tasks += [workers.ask(2), workers.ask(3)]
        await asyncio.sleep(0.005)
        assert workers.groups == [[1]]
        await asyncio.sleep(0.05)
        groups = [*workers.groups]
        workers.go.set()
        await asyncio.gather(*tasks)
        return groups

    assert asyncio.run(many()) == [1, ENOUGH]
    assert asyncio.run(late()) == [[1], [2, 3]]


def test_groups_hold_one_kind_and_no_more_than_fits() -> None:
    """Requests of another model, and those beyond max_rows, must go in a task of their own; large ones never wait."""

    async def run() -> Workers:
        workers = Workers(workers=1, max_rows=4)
        asked = [("a", (1, 2)), ("b", (3,)), ("a", (4, 5)), ("a", (6,)), ("a", (7, 8, 9))]
        tasks = [workers.ask(*numbers, kind=kind) for kind, numbers in asked]
        tasks.append(workers.ask(10, alone=True))
        await asyncio.sleep(0.01)
        workers.go.set()
        await asyncio.gather(*tasks)
        return workers

    assert asyncio.run(run()).groups == [[7, 8, 9], [10], [1, 2, 4, 5], [3], [6]]


def test_a_request_that_was_given_up_is_not_worked_on() -> None:
    """Whoever hung up while waiting must cost nothing, and must not disturb the others of its group."""

    async def run() -> Workers:
        workers = Workers(workers=1)
        first = workers.ask(1)
        await asyncio.sleep(0.01)
        gone, kept = workers.ask(2), workers.ask(3)
        await asyncio.sleep(0.01)
        gone.cancel()
        workers.go.set()
        assert await asyncio.gather(first, kept) == [[1], [3]]
        return workers

    assert asyncio.run(run()).groups == [[1], [3]]


def test_a_group_of_one_is_worked_on_in_its_request_s_name() -> None:
    """Work on one request bears its id, whoever's turn it was begun in; work on many bears nobody's."""

    async def run() -> Workers:
        workers = Workers(workers=1, max_rows=4)
        tasks = []
        for name, numbers in (("first", [1]), ("second", [2, 2]), ("third", [3, 3]), ("fourth", [4])):
            REQUEST.set(name)
            tasks.append(workers.ask(*numbers))
            await asyncio.sleep(0.01)
        REQUEST.set("somebody else")
        workers.go.set()
        await asyncio.gather(*tasks)
        return workers

    workers = asyncio.run(run())
    assert workers.groups == [[1], [2, 2, 3, 3], [4]]
    assert workers.names == ["first", "", "fourth"]


def test_work_is_refused_when_it_would_wait_too_long() -> None:
    """The wait follows from how long the last work took among how much; with nothing at work everything is let in."""
    admission = Admission(limit_s=1.0)
    among = admission.enter(1_000 - PER_REQUEST)
    assert among == 1_000
    for _ in range(100):
        admission.observe(0.5, among=among)
    assert admission.wait_s == pytest.approx(0.5, rel=1e-3)
    admission.enter(2_000)
    with pytest.raises(BusyError):
        admission.enter(1)
    admission.leave(2_000)
    admission.enter(1)
    admission.leave(1)
    admission.leave(1_000 - PER_REQUEST)
    assert admission.at_work == 0
    admission.observe(60.0, among=1)
    assert admission.enter(1_000) == 1_000 + PER_REQUEST


def test_one_slow_request_turns_nobody_away() -> None:
    """A first request that takes a second, since all is cold, must not keep out fifteen others that come beside it."""
    admission = Admission(limit_s=1.0)
    among = admission.enter(1)
    admission.observe(1.0, among=among)
    for took in (0.05, 0.02, 0.01):
        admission.observe(took, among=16 * among)
    assert [admission.enter(1) for _ in range(15)] == [among + (1 + PER_REQUEST) * at for at in range(1, 16)]


def test_slow_small_requests_do_not_keep_a_large_one_out() -> None:
    """What a request of one payment took says little of one of 1,000: two of those must get in behind it."""
    admission = Admission(limit_s=1.0)
    among = admission.enter(1)
    admission.observe(0.008, among=among)
    admission.leave(1)
    admission.enter(1_000)
    assert admission.enter(1_000) == admission.at_work == 2 * (1_000 + PER_REQUEST)
