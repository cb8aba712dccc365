"""Requests for features that come together: one read of the store for many, each gets its own rows or the error."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from graph_features.errors import StoreUnavailableError
from serving.reading import Reading


class Gate:
    """An online store whose first read waits until it is let go."""

    def __init__(self, online: Any) -> None:
        self._online = online
        self.open = threading.Event()
        self.reads: list[int] = []

    def read(self, wanted: Any) -> Any:
        self.reads.append(sum(len(keys) for _, keys in wanted))
        self.open.wait(10)
        return self._online.read(wanted)


def together(world: Any, tiny: SimpleNamespace, *requests: list[str]) -> tuple[Gate, list[Any]]:
    """What is answered to a request that is on its way when the others come."""
    gate = Gate(world.online)

    async def run() -> list[Any]:
        reading = Reading(gate, max_rows=8, window_s=60.0)  # type: ignore[arg-type]
        tasks = []
        for names in requests:
            keys = [(name,) for name in names]
            wanted = [(view, keys) for view in (tiny.ACTIVITY, tiny.EXPOSURE)]
            tasks.append(asyncio.create_task(reading.rows(wanted, entities=len(keys))))
            await asyncio.sleep(0.01)
        gate.open.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return gate, asyncio.run(run())


def test_requests_of_one_moment_share_a_read(world: Any, tiny: SimpleNamespace) -> None:
    """Those that come while a read is on its way share the next one; each gets its own rows, absent ones too."""
    for at, name in enumerate("abc"):
        world.online.put(tiny.ACTIVITY, (name,), tiny.T0, sent=at)
    world.online.put(tiny.EXPOSURE, ("c",), tiny.T0, frauds=1)
    requests = [["a"], ["b", "nobody"], ["c"], ["a", "b", "c", "x", "y"]]
    gate, answers = together(world, tiny, *requests)
    assert gate.reads == [2, 10, 6]  # the fourth is more than half of what goes together: it waits for nobody
    for names, rows in zip(requests, answers, strict=True):
        keys = [(name,) for name in names]
        assert rows == world.online.read([(tiny.ACTIVITY, keys), (tiny.EXPOSURE, keys)])


def test_all_are_told_when_the_store_is_away(world: Any, tiny: SimpleNamespace) -> None:
    """Whoever shares a read that fails gets its error, and the next read is tried anew."""
    world.online.down = True
    gate, answers = together(world, tiny, ["a"], ["b"], ["c"])
    assert gate.reads == [2, 4]
    assert [type(answer) for answer in answers] == [StoreUnavailableError] * 3
    world.online.down = False
    _, (rows,) = together(world, tiny, ["a"])
    assert rows == [[None], [None]]


@pytest.mark.parametrize("count", [1, 40])
def test_the_api_answers_requests_of_one_moment(run_app: Any, world: Any, tiny: SimpleNamespace, count: int) -> None:
    """Many clients at once get what each gets alone, whoever's read it came with."""
    for at in range(count):
        world.online.put(tiny.ACTIVITY, (f"s{at}",), tiny.T0, sent=at)
    client, _ = run_app()

    async def ask() -> list[Any]:
        bodies = [{"features": ["activity:sent"], "entities": {"account_id": [f"s{at}"]}} for at in range(count)]
        return await asyncio.gather(*(client._http.post("/get-online-features", json=body) for body in bodies))

    before = world.online.reads
    replies = client.run(ask())
    assert [reply.json()["results"][1]["values"] for reply in replies] == [[at] for at in range(count)]
    assert world.online.reads - before <= max(1, count // 2)
