"""Small requests of the same moment are worked on together: one table, one read, one forward pass, one record.

What a task costs whatever its size is as much as dozens of payments cost, in the server and in the worker. So the first
request goes at once; while it is on its way the next ones gather, and go together when it is back, when they are many,
or when the first of them has waited for `window_s` and a worker is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

ENOUGH = 32
"""Rows that are worth a task of their own while another one is on its way."""


@dataclass(frozen=True, kw_only=True)
class Entry(Generic[T, R]):
    """One request: what is asked, how many rows it has, what it can go together with, and where its answer goes."""

    asked: T
    rows: int
    kind: Hashable
    done: asyncio.Future[R]
    context: Context = field(default_factory=copy_context)
    """What log lines and spans of this request take its id from."""

    def fail(self, error: BaseException) -> None:
        """Answer with an error, unless nobody waits any more."""
        if not self.done.done():
            self.done.set_exception(error)

    def finish(self, answer: R) -> None:
        """Answer, unless nobody waits any more."""
        if not self.done.done():
            self.done.set_result(answer)


def context_of(group: list[Entry[T, R]]) -> Context:
    """The context to work on a group in: its request's, and nobody's for many, whichever of them began the work."""
    return group[0].context if len(group) == 1 else Context()


Run = Callable[[list[Entry[T, R]]], Awaitable[None]]
"""Works on a group of one kind and sees to it that each entry is answered, now or later; must not raise."""


class Batcher(Generic[T, R]):
    """Gathers requests of at most half of `max_rows` rows, while up to `workers` groups of them are on their way."""

    def __init__(self, run: Run[T, R], *, workers: int, max_rows: int, window_s: float) -> None:
        self._run = run
        self._workers = workers
        self._max_rows = max_rows
        self._window_s = window_s
        self._waiting: list[Entry[T, R]] = []
        self._rows = 0
        self._flying = 0
        self._planned: asyncio.Handle | None = None
        self._soon = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, asked: T, *, rows: int, kind: Hashable, alone: bool = False) -> R:
        """The answer to a request, worked on with others of its `kind` where that is quicker and not `alone`."""
        loop = asyncio.get_running_loop()
        entry: Entry[T, R] = Entry(asked=asked, rows=rows, kind=kind, done=loop.create_future())
        if alone or 2 * rows > self._max_rows:
            await self._run([entry])
        else:
            self._waiting.append(entry)
            self._rows += rows
            self._plan(loop)
        return await entry.done

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that what waits is sent: soon, in a while, or when a group is back."""
        if not self._waiting or self._soon or self._flying >= self._workers:
            return
        if not self._flying or self._rows >= ENOUGH:
            # At the end of this turn of the loop, so that requests read in one turn go together.
            self._cancel()
            self._soon, self._planned = True, loop.call_soon(self._send)
        elif self._planned is None:
            self._planned = loop.call_later(self._window_s, self._send)

    def _cancel(self) -> None:
        if self._planned is not None:
            self._planned.cancel()
        self._planned, self._soon = None, False

    def _send(self) -> None:
        """One group on its way, and a plan for what is left."""
        self._cancel()
        if self._waiting and self._flying < self._workers:
            self._flying += 1
            group = self._next_group()
            task = asyncio.create_task(self._fly(group), context=context_of(group))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._plan(asyncio.get_running_loop())

    def _next_group(self) -> list[Entry[T, R]]:
        """The oldest entries of one kind that fit together."""
        kind, rows = self._waiting[0].kind, 0
        group: list[Entry[T, R]] = []
        rest: list[Entry[T, R]] = []
        for entry in self._waiting:
            fits = entry.kind == kind and (not group or rows + entry.rows <= self._max_rows)
            (group if fits else rest).append(entry)
            rows += entry.rows if fits else 0
        self._waiting = rest
        self._rows -= rows
        return group

    async def _fly(self, group: list[Entry[T, R]]) -> None:
        try:
            # Nobody waits for an answer to a request that was given up.
            if wanted := [entry for entry in group if not entry.done.done()]:
                await self._run(wanted)
        finally:
            self._flying -= 1
            self._plan(asyncio.get_running_loop())
