"""Builds the server's parts for the active profile: the only place that knows which process does what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import sqlalchemy as sa

from graph_features.catalog import catalog
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.ledger import open_ledger
from graph_features.lazy_stores import LazyStores
from graph_features.settings import (
    AuthSettings,
    ExecutorSettings,
    FeatureSettings,
    IngestSettings,
    PlatformSettings,
    PoolKind,
    ServingSettings,
    load,
)
from serving.auth import Guard, open_guard
from serving.decisions import DecisionLog, open_engine
from serving.engineering import FeatureEngineering
from serving.graph_sync import GraphSync
from serving.inference import own_environment
from serving.jobs import Jobs
from serving.journal import DecisionJournal
from serving.keys import KeyTable
from serving.last_good import LastGood
from serving.metrics import Metrics
from serving.models import ModelFollower
from serving.payments import Payments
from serving.pool import InlinePool, Pool, ProcessPool
from serving.predict import FIRST_ATTEMPT, Predictor
from serving.services import Services, Stores
from serving.shadow import Shadow
from serving.threads import ThreadPool
from serving.worker import HandlerSpec
from training import registry

PRELOADED = ("serving.inference", "onnxruntime")
"""Imported once by the fork server: an inference worker then starts in a tenth of a second. Nothing of features."""


@asynccontextmanager
async def services_of_profile(platform: PlatformSettings, settings: ServingSettings) -> AsyncIterator[Services]:
    """Open stores and pools, start the services, and close everything at the end."""
    services = build(platform, settings)
    try:
        await services.start()
        yield services
    finally:
        await services.stop()


def build(platform: PlatformSettings, settings: ServingSettings) -> Services:
    """Every part, wired; nothing runs yet but worker processes and the writer of decisions."""
    platform = platform.model_copy(update={"home": platform.home.resolve()})
    engine = open_engine(platform)
    guard = _guard(platform, settings, engine)
    stores = LazyStores(platform)
    stores.records.create_schema()
    stores.graph.create_schema()
    decisions = _decisions(platform, settings, engine)
    decisions.start()
    metrics = Metrics()
    inference = _pool(platform, settings, "inference", settings.workers or platform.workers)
    features = _pool(platform, settings, "features", settings.feature_workers)
    refresh_s = settings.refresh_timeout_ms / 1e3
    engineering = FeatureEngineering(pool=features, task_timeout_s=refresh_s, metrics=metrics)
    return Services(
        platform=platform,
        settings=settings,
        payments=Payments(load(IngestSettings), future_skew_ms=settings.future_skew_s * 1_000),
        stores=Stores(
            records=stores.records,
            online=stores.online,
            graph_ping=lambda: stores.graph.ping(),
            offline_ping=lambda: stores.offline.ping(),
            offline=lambda: stores.offline,
            schemas=catalog().schemas,
        ),
        inference=inference,
        features=features,
        engineering=engineering,
        graph_sync=GraphSync(pool=_pool(platform, settings, "graph", 1), timeout_s=refresh_s),
        predictor=Predictor(
            pool=inference,
            engineering=engineering,
            shard_rows=settings.shard_rows,
            score_timeout_s=settings.score_timeout_ms / 1e3,
            deadline_s=settings.deadline_ms / 1e3,
        ),
        follower=_follower(platform, settings, inference, metrics, settings.model_alias),
        shadow=_shadow(platform, settings, inference, metrics),
        decisions=decisions,
        jobs=Jobs(
            ledger=open_ledger(platform),
            kinds=feature_kinds(stores),
            open_pool=lambda: _pool(platform, settings, "jobs", 1),
            stores=stores,
        ),
        metrics=metrics,
        guard=guard,
        close_stores=stores.close,
    )


def _follower(
    platform: PlatformSettings, settings: ServingSettings, pool: Pool, metrics: Metrics, alias: str, needed: bool = True
) -> ModelFollower:
    return ModelFollower(
        name=settings.model_name,
        alias=alias,
        resolve=partial(registry.resolve, settings.model_name, alias, home=platform.home),
        feature_hash=lambda views: catalog().feature_hash(views, settings=load(FeatureSettings)),
        pool=pool,
        metrics=metrics,
        last_good=LastGood(platform.home / "models", settings.model_name, alias),
        needed=needed,
    )


def _shadow(platform: PlatformSettings, settings: ServingSettings, pool: Pool, metrics: Metrics) -> Shadow | None:
    if not settings.challenger_alias:
        return None
    return Shadow(
        pool=pool,
        follower=_follower(platform, settings, pool, metrics, settings.challenger_alias, needed=False),
        metrics=metrics,
        shard_rows=settings.shard_rows,
        timeout_s=settings.score_timeout_ms / 1e3,
    )


def _decisions(platform: PlatformSettings, settings: ServingSettings, engine: sa.Engine) -> DecisionJournal:
    shipper = _pool(platform, settings, "decisions", 1)
    shipper.on_start("lower_priority")
    return DecisionJournal(
        DecisionLog(engine),
        platform.home / "decisions",
        shipper,
        max_bytes=settings.decision_backlog_bytes,
    )


def check_access(platform: PlatformSettings, settings: ServingSettings) -> bool:
    """Whether callers need a key; raise SettingsError where they would but nobody could have one."""
    engine = open_engine(platform.model_copy(update={"home": platform.home.resolve()}))
    try:
        return _guard(platform, settings, engine).required
    finally:
        engine.dispose()


def _guard(platform: PlatformSettings, settings: ServingSettings, engine: sa.Engine) -> Guard:
    guard = open_guard(platform, settings, load(AuthSettings), lambda: KeyTable(engine))
    guard.start()
    return guard


_HANDLERS = {
    "decisions": "serving.shipping:DecisionShipper",
    "inference": "serving.inference:InferenceWorker",
    "features": "serving.engineer:FeatureWorker",
    "graph": "serving.graph_worker:GraphWorker",
    "jobs": "serving.jobs:JobWorker",
}


_READ_SHARE = 0.75
"""What the online store may take of the time after which a scoring worker counts as hung."""

_ON_RAY = frozenset({"inference", "features"})
"""The others work on files of this machine, or send parts of their work to Ray themselves."""


def _pool(platform: PlatformSettings, settings: ServingSettings, name: str, size: int) -> Pool:
    if settings.pool is PoolKind.RAY and name in _ON_RAY:
        from serving.ray_pool import RayPool

        # What a node must know of the settings goes along with each start; secrets do not.
        spec = HandlerSpec(target=_HANDLERS[name], args=arguments(platform, settings, name, {}))
        return RayPool(name=name, size=size, spec=spec, settings=load(ExecutorSettings))
    spec = HandlerSpec(target=_HANDLERS[name], args=arguments(platform, settings, name, own_environment()))
    make: Callable[[], object] = spec.build
    if settings.pool is PoolKind.THREAD and name == "inference":
        return ThreadPool(name=name, size=size, build=make)
    if settings.pool is PoolKind.INLINE:
        return InlinePool(name=name, size=1 if name == "inference" else size, build=make)
    memory_mb = 0 if name == "jobs" else settings.worker_memory_mb
    return ProcessPool(name=name, size=size, spec=spec, preload=PRELOADED, memory_mb=memory_mb)


def arguments(
    platform: PlatformSettings, settings: ServingSettings, name: str, environment: dict[str, str]
) -> tuple[Any, ...]:
    """What a worker's handler is built with."""
    if name != "inference":
        return platform, environment
    # A store that is silent must not be taken for a worker that hangs: workers would be ended as long as it lasts.
    return platform, environment, _READ_SHARE * FIRST_ATTEMPT * settings.score_timeout_ms / 1e3
