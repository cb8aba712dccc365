"""Keeps the graph behind the records: one sync at a time, one more after it when something was written meanwhile."""

from __future__ import annotations

import asyncio

from serving.pool import Pool


class GraphSync:
    """Asks the graph's worker to write new transactions to it."""

    def __init__(self, *, pool: Pool, timeout_s: float) -> None:
        self.pool = pool
        self._timeout_s = timeout_s
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Return when everything committed before this call is in the graph; raise what the sync raises."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._sync())
            await asyncio.shield(self._running)
            return
        # The sync under way may have looked before our commit: share the one after it.
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._after(self._running))
        await asyncio.shield(self._next)

    async def _after(self, running: asyncio.Task[None]) -> None:
        await asyncio.wait([running])
        self._running, self._next = self._next, None
        await self._sync()

    async def _sync(self) -> None:
        await asyncio.wrap_future(self.pool.submit("sync_graph", timeout_s=self._timeout_s))
