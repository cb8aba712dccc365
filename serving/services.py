"""What the routes work with: built once when the server starts, each part with its own ping, closed when it stops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from fastapi import Request

from graph_features.errors import RingfenceError
from graph_features.schema import ViewSchema
from graph_features.settings import PlatformSettings, ServingSettings
from graph_features.sources.base import RecordStore
from graph_features.stores.base import OfflineStore, OnlineStore
from serving.auth import Guard, OpenGuard
from serving.engineering import FeatureEngineering
from serving.graph_sync import GraphSync
from serving.health import Health, Resource, pool_ping
from serving.jobs import Jobs
from serving.journal import DecisionJournal
from serving.metrics import Metrics
from serving.models import ModelFollower
from serving.payments import Payments
from serving.pool import Pool
from serving.predict import Predictor
from serving.reading import Reading
from serving.scoring import Scoring
from serving.shadow import Shadow
from serving.vectors import Plans

log = logging.getLogger("ringfence.serving")

PURGE_EVERY_S = 3_600.0
ADOPT_EVERY_S = 10.0
THREADS = 64
"""For calls of stores; `max_in_flight` requests wait for no more."""


@dataclass(frozen=True, kw_only=True)
class Stores:
    """The stores that the server itself talks to. `schemas` are the catalogue's views by name."""

    records: RecordStore
    online: OnlineStore
    graph_ping: Callable[[], None]
    offline_ping: Callable[[], None]
    offline: Callable[[], OfflineStore]
    schemas: dict[str, ViewSchema]

    @cached_property
    def plans(self) -> Plans:
        """How to answer requests for features by name; only for the thread that answers them."""
        return Plans(self.schemas)


@dataclass(kw_only=True)
class Services:
    """The server's parts. `clock_ms` is the wall clock in epoch milliseconds: it judges requests, never features."""

    platform: PlatformSettings
    settings: ServingSettings
    payments: Payments
    stores: Stores
    inference: Pool
    features: Pool
    engineering: FeatureEngineering
    graph_sync: GraphSync
    predictor: Predictor
    follower: ModelFollower
    decisions: DecisionJournal
    jobs: Jobs
    metrics: Metrics
    shadow: Shadow | None = None
    guard: Guard = field(default_factory=OpenGuard)
    close_stores: Callable[[], None] = lambda: None
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    draining: bool = False
    health: Health = field(init=False)
    scoring: Scoring = field(init=False)
    reading: Reading = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    background: set[asyncio.Future[bool]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.scoring = Scoring(self)
        window_s = self.settings.batch_window_ms / 1e3
        self.reading = Reading(self.stores.online, max_rows=self.settings.shard_rows, window_s=window_s)
        self.health = Health(self._resources(), auth=self.guard.describe())
        self.metrics.watch(dict.fromkeys((self.inference, self.features, self.graph_sync.pool)))
        self.metrics.expected_wait.set_function(lambda: self.scoring.admission.wait_s)
        self.metrics.decision_backlog.set_function(lambda: self.decisions.backlog_bytes)
        if (collector := self.jobs.collector()) is not None:
            self.metrics.registry.register(collector)

    def _resources(self) -> list[Resource]:
        return [
            # Without them what is online is scored all the same; the rest says that it is degraded.
            Resource(name="records", needed=False, ping=self.stores.records.ping),
            Resource(name="online_store", needed=True, ping=self.stores.online.ping),
            Resource(name="decisions", needed=True, ping=self.decisions.ping),
            Resource(name="model", needed=True, ping=self.follower.ping),
            Resource(name="inference_workers", needed=True, ping=pool_ping(self.inference)),
            Resource(name="feature_workers", needed=False, ping=pool_ping(self.features)),
            Resource(name="graph", needed=False, ping=self.stores.graph_ping),
            Resource(name="offline_store", needed=False, ping=self.stores.offline_ping),
            Resource(name="jobs", needed=False, ping=self.jobs.ping),
        ]

    async def start(self) -> None:
        """Begin to follow keys and model, to delete decisions past their retention, to take up jobs left behind."""
        # Stores that hang hold threads: what they have to do with must not wait for them.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="stores"))
        works = {
            "keys": self.guard.follow(),
            "model": self.follower.follow(self.settings.model_poll_s),
            "purge": self._purge(),
            "jobs": self._adopt(),
        }
        if self.shadow is not None:
            works["challenger"] = self.shadow.follower.follow(self.settings.model_poll_s)
        self._tasks = [asyncio.create_task(work, name=name) for name, work in works.items()]
        for task in self._tasks:
            task.add_done_callback(_tell)

    async def stop(self) -> None:
        """Let what runs come to its end, in the order in which it depends on each other."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        # One that has failed was told of when it did; it must not keep the rest from being closed.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.background:
            await asyncio.wait(set(self.background), timeout=self.settings.drain_s)
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self.inference.close(drain_s=self.settings.drain_s)
        self.features.close(drain_s=self.settings.drain_s)
        self.graph_sync.pool.close(drain_s=self.settings.drain_s)
        self.jobs.close()
        self.decisions.close()
        self.health.close()
        self.close_stores()

    def later(self, work: asyncio.Future[bool]) -> None:
        """Keep a background task alive until it ends."""
        self.background.add(work)
        work.add_done_callback(self.background.discard)

    async def _purge(self) -> None:
        if not self.settings.decision_retention_days:
            return
        while True:
            before_ms = self.clock_ms() - self.settings.decision_retention_days * 86_400_000
            try:
                purged = await asyncio.to_thread(self.decisions.purge, before_ms=before_ms)
            except RingfenceError as error:
                log.warning("decisions not purged", extra={"error": str(error)})
            else:
                if purged:
                    log.info("decisions purged", extra={"rows": purged})
            await asyncio.sleep(PURGE_EVERY_S)

    async def _adopt(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.jobs.adopt)
            except RingfenceError as error:
                log.warning("jobs not looked for", extra={"error": str(error)})
            await asyncio.sleep(ADOPT_EVERY_S)


def _tell(task: asyncio.Task[None]) -> None:
    """Log the end of a background task that should have gone on."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background task failed", extra={"task": task.get_name()}, exc_info=error)


BuildServices = Callable[[PlatformSettings, ServingSettings], AbstractAsyncContextManager[Services]]


def services_of(request: Request) -> Services:
    """The services of the application that answers this request."""
    return cast(Services, request.app.state.services)
