"""Route 1: accounts and pairs without an available row go to the feature workers, each key computed once at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeVar, cast

from graph_features.errors import RingfenceError
from graph_features.schema import EntityKey
from serving.metrics import Metrics
from serving.pool import Pool

log = logging.getLogger("ringfence.serving.engineering")

K = TypeVar("K", bound=Hashable)

Cause = Literal["deadline", "unavailable"]
"""Why a key could not be helped: not in time, or the work failed."""

Moment = tuple[EntityKey, int]
"""An entity and the instant, in epoch milliseconds, that its rows are wanted for."""

PackedRows = dict[str, bytes | None]
"""By event view the packed row, None where nothing ever happened."""

KEYS_PER_TASK = 100


@dataclass(kw_only=True)
class Outcome(Generic[K]):
    """What came of some keys: an answer for each that was had in time, a cause for each that was not."""

    done: dict[K, Any] = field(default_factory=dict)
    failed: dict[K, Cause] = field(default_factory=dict)


class FeatureEngineering:
    """Asks feature workers for what is missing. Work goes on after a deadline, for the next request's good."""

    def __init__(self, *, pool: Pool, task_timeout_s: float, metrics: Metrics) -> None:
        self._pool = pool
        self._task_timeout_s = task_timeout_s
        self._metrics = metrics
        self._refreshing: dict[EntityKey, asyncio.Task[dict[EntityKey, Any]]] = {}
        self._next: dict[EntityKey, asyncio.Task[dict[EntityKey, Any]]] = {}
        self._computing: dict[Moment, asyncio.Task[dict[Moment, Any]]] = {}
        self._asking: dict[tuple[str, int], asyncio.Task[dict[tuple[str, int], Any]]] = {}

    async def seen(self, accounts: Iterable[str], before_ms: int, *, deadline: float) -> Outcome[tuple[str, int]]:
        """By (account, before_ms), whether the account sent or received anything before then."""
        keys = [(account, before_ms) for account in accounts]

        async def ask(chunk: list[tuple[str, int]]) -> dict[tuple[str, int], Any]:
            known: set[str] = await self._call("seen", [account for account, _ in chunk], before_ms)
            return {(account, moment): account in known for account, moment in chunk}

        return await self._once(self._asking, keys, ask, deadline)

    async def refresh(self, keys: Iterable[EntityKey], *, deadline: float) -> Outcome[EntityKey]:
        """Have the newest rows of accounts and pairs computed and stored online."""
        return await self._once(self._refreshing, keys, self._refresh, deadline)

    async def renew(self, keys: Iterable[EntityKey], *, deadline: float) -> Outcome[EntityKey]:
        """`refresh` with all that was committed before this call: work under way may have read the records before it.

        Keys that are at work now are done once more after that, once for all who ask meanwhile.
        """
        wanted = list(dict.fromkeys(keys))
        busy = [key for key in wanted if key in self._refreshing and key not in self._next]
        for chunk in _chunks(busy, KEYS_PER_TASK):
            task = asyncio.ensure_future(self._after({self._refreshing[key] for key in chunk}, chunk))
            self._next |= dict.fromkeys(chunk, task)
            task.add_done_callback(partial(_forget, self._refreshing, chunk))
        tasks = {key: self._next[key] for key in wanted if key in self._next}
        tasks |= self._started(self._refreshing, [key for key in wanted if key not in tasks], self._refresh)
        return await self._outcome({key: tasks[key] for key in wanted}, deadline)

    async def _after(
        self, running: set[asyncio.Task[dict[EntityKey, Any]]], chunk: list[EntityKey]
    ) -> dict[EntityKey, Any]:
        await asyncio.wait(running)
        task = cast("asyncio.Task[dict[EntityKey, Any]]", asyncio.current_task())
        for key in chunk:
            del self._next[key]
            self._refreshing[key] = task
        return await self._refresh(chunk)

    async def _refresh(self, chunk: list[EntityKey]) -> dict[EntityKey, Any]:
        failed: dict[EntityKey, str] = await self._call("refresh", chunk)
        if failed:
            log.warning("features not computed", extra={"keys": len(failed), "error": next(iter(failed.values()))})
        return {key: _FAILED if key in failed else True for key in chunk}

    async def rows_at(self, moments: Iterable[Moment], *, deadline: float) -> Outcome[Moment]:
        """Rows as of instants of the past, computed for the asker and stored nowhere: PackedRows by moment."""

        async def compute(chunk: list[Moment]) -> dict[Moment, Any]:
            rows: dict[Moment, PackedRows | None] = await self._call("rows_at", chunk)
            return {moment: _FAILED if rows.get(moment) is None else rows[moment] for moment in chunk}

        return await self._once(self._computing, moments, compute, deadline)

    async def _call(self, method: str, *args: Any) -> Any:
        return await asyncio.wrap_future(self._pool.submit(method, *args, timeout_s=self._task_timeout_s))

    async def _once(
        self,
        running: dict[K, asyncio.Task[dict[K, Any]]],
        keys: Iterable[K],
        work: Callable[[list[K]], Any],
        deadline: float,
    ) -> Outcome[K]:
        """Start `work` for keys that nobody is at work on, and wait for all until `deadline` (the loop's time)."""
        return await self._outcome(self._started(running, list(dict.fromkeys(keys)), work), deadline)

    def _started(
        self, running: dict[K, asyncio.Task[dict[K, Any]]], wanted: list[K], work: Callable[[list[K]], Any]
    ) -> dict[K, asyncio.Task[dict[K, Any]]]:
        for chunk in _chunks([key for key in wanted if key not in running], KEYS_PER_TASK):
            task: asyncio.Task[dict[K, Any]] = asyncio.ensure_future(work(chunk))
            for key in chunk:
                running[key] = task
            task.add_done_callback(partial(_forget, running, chunk))
        return {key: running[key] for key in wanted}

    async def _outcome(self, tasks: dict[K, asyncio.Task[dict[K, Any]]], deadline: float) -> Outcome[K]:
        if tasks:
            remaining = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait(set(tasks.values()), timeout=remaining)
        outcome: Outcome[K] = Outcome()
        for key, task in tasks.items():
            self._settle(outcome, key, task)
        return outcome

    def _settle(self, outcome: Outcome[K], key: K, task: asyncio.Task[dict[K, Any]]) -> None:
        cause: Cause | None = None
        if not task.done():
            cause = "deadline"
        elif task.cancelled() or task.exception() is not None or task.result()[key] is _FAILED:
            cause = "unavailable"
        if cause is None:
            outcome.done[key] = task.result()[key]
        else:
            outcome.failed[key] = cause
        self._metrics.engineered.labels(cause or "done").inc()


_FAILED = object()


def _chunks(items: Sequence[K], size: int) -> list[list[K]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _forget(running: dict[K, asyncio.Task[dict[K, Any]]], chunk: list[K], task: asyncio.Task[dict[K, Any]]) -> None:
    for key in chunk:
        if running.get(key) is task:
            del running[key]
    if task.cancelled() or (error := task.exception()) is None:
        return
    trace = None if isinstance(error, RingfenceError) else error
    log.warning("feature task failed", extra={"error": str(error), "keys": len(chunk)}, exc_info=trace)
