"""Health: every resource owns a ping; this only asks them all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from graph_features.errors import RingfenceError
from serving.api import Check, HealthReply
from serving.pool import Pool
from serving.slots import PoolBrokenError

PING_TIMEOUT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Resource:
    """Something the server depends on. `ping` raises a RingfenceError unless it works, and may return details."""

    name: str
    needed: bool
    ping: Callable[[], dict[str, Any] | None]


class Health:
    """Asks every resource at once, each in a thread of its own, so that one that hangs delays nothing else.

    A resource that has not answered yet is not asked again, so that one that hangs for long holds one thread.
    """

    def __init__(self, resources: Iterable[Resource], *, auth: dict[str, Any] | None = None) -> None:
        self._resources = tuple(resources)
        self._auth = auth or {}
        self._threads = ThreadPoolExecutor(max_workers=max(1, len(self._resources)), thread_name_prefix="health")
        self._asked: dict[str, asyncio.Future[dict[str, Any] | None]] = {}

    async def check(self, *, only_needed: bool = False) -> HealthReply:
        """Ask the resources; what does not answer in time is failing."""
        wanted = [resource for resource in self._resources if resource.needed or not only_needed]
        checks = await asyncio.gather(*(self._check(resource) for resource in wanted))
        failing = [resource for resource, check in zip(wanted, checks, strict=True) if check.status == "failing"]
        status = "ok" if not failing else "failing" if any(resource.needed for resource in failing) else "degraded"
        found = dict(zip((resource.name for resource in wanted), checks, strict=True))
        return HealthReply(status=status, checks=found, auth=self._auth)  # type: ignore[arg-type]

    async def _check(self, resource: Resource) -> Check:
        begun = time.perf_counter()
        detail: dict[str, Any] | None = None
        error: str | None = None
        try:
            detail = await asyncio.wait_for(asyncio.shield(self._ask(resource)), PING_TIMEOUT_S)
        except RingfenceError as failure:
            error = str(failure)
        except TimeoutError:
            error = f"no answer within {PING_TIMEOUT_S:g} s"
        except Exception as failure:  # noqa: BLE001 - whatever a ping raises is a failing dependency, not a failing /health
            error = type(failure).__name__
        return Check(
            status="ok" if error is None else "failing",
            needed=resource.needed,
            latency_ms=round((time.perf_counter() - begun) * 1e3, 2),
            detail=detail or {},
            error=error,
        )

    def _ask(self, resource: Resource) -> asyncio.Future[dict[str, Any] | None]:
        answer = self._asked.get(resource.name)
        if answer is None or answer.done():
            answer = asyncio.get_running_loop().run_in_executor(self._threads, resource.ping)
            self._asked[resource.name] = answer
        return answer

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def pool_ping(pool: Pool) -> Callable[[], dict[str, Any]]:
    """A ping of a pool: fails when no worker is up."""

    def ping() -> dict[str, Any]:
        status = pool.status()
        if status.alive == 0:
            raise PoolBrokenError(f"{status.name}: 0 of {status.size} workers are up")
        return {
            "size": status.size,
            "alive": status.alive,
            "busy": status.busy,
            "queued": status.queued,
            "restarts": status.restarts,
            "retries": status.retries,
            "pids": list(status.pids),
        }

    return ping
