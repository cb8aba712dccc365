"""Small requests of the same moment are scored together: one read, one forward pass, one trip to a worker.

Nothing waits while a worker is free (but `window_s`, where that is set): what comes while all are busy goes together as
soon as one of them is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from graph_features.errors import RingfenceError
from graph_features.transaction import TransactionColumns
from serving.scorer import ModelRef, Shard, ShardScores

Submit = Callable[[ModelRef, Shard], Awaitable[ShardScores]]


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    model: ModelRef
    shard: Shard
    done: asyncio.Future[ShardScores]


class Batcher:
    """Gathers plain shards of fewer than `max_rows` payments, while `workers` groups of them are on their way."""

    def __init__(self, submit: Submit, *, workers: int, max_rows: int, window_s: float = 0.0) -> None:
        self._submit = submit
        self._workers = workers
        self._max_rows = max_rows
        self._window_s = window_s
        self._waiting: list[_Waiting] = []
        self._flying = 0
        self._planned = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def score(self, model: ModelRef, shard: Shard) -> ShardScores:
        """Score a shard, with others where that is quicker."""
        if shard.explain or shard.overrides or any(shard.complete.values()) or 2 * len(shard) > self._max_rows:
            return await self._submit(model, shard)
        loop = asyncio.get_running_loop()
        entry = _Waiting(model=model, shard=shard, done=loop.create_future())
        self._waiting.append(entry)
        if not self._planned and self._flying < self._workers:
            self._plan(loop)
        return await entry.done

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send what waits at the end of this turn of the loop, so that requests read in one turn go together."""
        self._planned = True
        if self._window_s:
            loop.call_later(self._window_s, self._send)
        else:
            loop.call_soon(self._send)

    def _send(self) -> None:
        self._planned = False
        while self._waiting and self._flying < self._workers:
            group = self._next_group()
            self._flying += 1
            task = asyncio.ensure_future(self._run(group))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next_group(self) -> list[_Waiting]:
        """The oldest entries of one model that fit together."""
        model, rows = self._waiting[0].model, 0
        group: list[_Waiting] = []
        rest: list[_Waiting] = []
        for entry in self._waiting:
            fits = entry.model == model and (not group or rows + len(entry.shard) <= self._max_rows)
            (group if fits else rest).append(entry)
            rows += len(entry.shard) if fits else 0
        self._waiting = rest
        return group

    async def _run(self, group: list[_Waiting]) -> None:
        try:
            await self._score_group(group)
        finally:
            self._flying -= 1
            self._send()

    async def _score_group(self, group: list[_Waiting]) -> None:
        wanted = [entry for entry in group if not entry.done.done()]
        if not wanted:
            return
        try:
            result = await self._submit(wanted[0].model, merged([entry.shard for entry in wanted]))
        except RingfenceError as error:
            if len(wanted) == 1:
                _fail(wanted[0], error)
            else:
                # Whatever one of them did to the others, alone it does it to itself.
                await asyncio.gather(*(self._score_group([entry]) for entry in wanted))
            return
        except Exception as error:  # noqa: BLE001 - handed on to everyone who waits for it
            for entry in wanted:
                _fail(entry, error)
            return
        for entry, part in zip(wanted, parts(result, [len(entry.shard) for entry in wanted]), strict=True):
            if not entry.done.done():
                entry.done.set_result(part)


def _fail(entry: _Waiting, error: Exception) -> None:
    if not entry.done.done():
        entry.done.set_exception(error)


def merged(shards: list[Shard]) -> Shard:
    """Plain shards behind each other."""
    if len(shards) == 1:
        return shards[0]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(shard.transactions, name) for shard in shards])
        for name in TransactionColumns.__dataclass_fields__
    }
    return Shard(transactions=TransactionColumns(**columns))


def parts(result: ShardScores, sizes: list[int]) -> list[ShardScores]:
    """What `merged` shards of these sizes would each have got."""
    if len(sizes) == 1:
        return [result]
    total, first, out = sum(sizes), 0, []
    for size in sizes:
        rows = np.concatenate([np.arange(first, first + size), np.arange(total + first, total + first + size)])
        out.append(
            ShardScores(
                score=result.score[first : first + size],
                as_of_ms=result.as_of_ms[:, rows],
                created_us=result.created_us[:, rows],
                state=result.state[:, rows],
                read_ms=result.read_ms,
                build_ms=result.build_ms,
                infer_ms=result.infer_ms,
            )
        )
        first += size
    return out
