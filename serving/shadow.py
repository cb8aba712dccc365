"""A challenger scores what the champion has scored, off the reply's path, and the differences are counted."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from graph_features.errors import RingfenceError
from serving.metrics import Metrics
from serving.models import LoadedModel, ModelFollower
from serving.pool import Pool
from serving.predict import Sheet

log = logging.getLogger("ringfence.serving.shadow")

MOST = 2
"""Requests that the challenger is at work on; what comes meanwhile is left out, and counted."""


class Shadow:
    """Gives finished sheets to the challenger while workers have nothing better to do."""

    def __init__(
        self, *, pool: Pool, follower: ModelFollower, metrics: Metrics, shard_rows: int, timeout_s: float
    ) -> None:
        self._pool = pool
        self.follower = follower
        self._metrics = metrics
        self._shard_rows = shard_rows
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, sheet: Sheet, champion: LoadedModel) -> None:
        """Score `sheet` again with the challenger, later; returns at once."""
        challenger = self.follower.current
        if challenger is None or challenger.ref.version == champion.ref.version:
            return
        if len(self._tasks) >= MOST or self._pool.status().queued:
            self._metrics.shadow.labels(challenger.ref.version, "left out").inc(len(sheet))
            return
        task = asyncio.ensure_future(self._score(sheet, champion, challenger))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _score(self, sheet: Sheet, champion: LoadedModel, challenger: LoadedModel) -> None:
        version = challenger.ref.version
        try:
            # One part after the other: the replies' own tasks get in between.
            parts = np.array_split(np.arange(len(sheet)), -(-len(sheet) // self._shard_rows))
            found = []
            for part in parts:
                shard = sheet.shard(part, explain=False)
                future = self._pool.submit("score", challenger.ref, shard, timeout_s=self._timeout_s)
                found.append((await asyncio.wrap_future(future)).score)
        except RingfenceError as error:
            log.warning("challenger failed", extra={"version": version, "error": str(error)})
            self._metrics.shadow.labels(version, "failed").inc(len(sheet))
            return
        scores = np.concatenate(found)
        other = (scores >= challenger.info.threshold) != (sheet.score >= champion.info.threshold)
        for outcome, count in (("other decision", int(other.sum())), ("same decision", int((~other).sum()))):
            self._metrics.shadow.labels(version, outcome).inc(count)
        self._metrics.shadow_difference.labels(version).observe(float(np.abs(scores - sheet.score).max()))
