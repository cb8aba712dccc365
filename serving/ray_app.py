"""The whole REST API as a Ray Serve application, for those who run Ray Serve: `serve run serving.ray_app:application`.

Each replica is a server as `ringfence serve` starts it, with its own connections and worker pools; Serve sends it
requests, starts more replicas as they queue up, replaces one that says it is broken, and rolls over to a new revision.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from graph_features.ray_cluster import adopt, sent_environment
from graph_features.settings import PlatformSettings, PoolKind, ServingSettings, load

if TYPE_CHECKING:
    from fastapi import FastAPI

NAME = "ringfence"
HEALTH_EVERY_S = 10.0
SCALE_DOWN_AFTER_S = 120.0


class ServeArguments(BaseModel):
    """What `args:` of a Serve config file, or name=value pairs behind `serve run`, may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=4, ge=1)
    target_ongoing_requests: float = Field(
        default=2.0, gt=0, description="Requests that a replica has at work or waiting before there shall be more."
    )
    cpus: float = Field(
        default=0,
        ge=0,
        description="Cores that a replica reserves; 0 takes one, and one per worker process of its own.",
    )
    memory_mb: int = Field(default=0, ge=0, description="Memory that a replica reserves; 0 reserves none.")
    surge_percent: int = Field(
        default=25,
        ge=0,
        le=100,
        description="Replicas, rounded up, that a roll-over starts before it stops old ones; 0 stops old ones first.",
    )
    revision: str = Field(default="1", description="Another one rolls all replicas over, though nothing else changed.")


def application(arguments: ServeArguments) -> Any:
    """Return the Serve application. Settings are those of the caller's environment, secrets those of the nodes'."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig

    settings, platform = load(ServingSettings), load(PlatformSettings)
    reserved: dict[str, Any] = {"num_cpus": arguments.cpus or _cores(settings, platform)}
    if arguments.memory_mb:
        reserved["memory"] = arguments.memory_mb << 20
    deployment: Any = serve.deployment(
        serve.ingress(_build)(Replica),
        name=NAME,
        ray_actor_options=reserved,
        max_ongoing_requests=settings.max_in_flight,
        autoscaling_config=AutoscalingConfig(
            min_replicas=arguments.min_replicas,
            max_replicas=arguments.max_replicas,
            target_ongoing_requests=arguments.target_ongoing_requests,
            downscale_delay_s=SCALE_DOWN_AFTER_S,
        ),
        health_check_period_s=HEALTH_EVERY_S,
        max_surge_percent=arguments.surge_percent,
        graceful_shutdown_timeout_s=2 * settings.drain_s,
    )
    # A node that has a home of its own keeps it.
    return deployment.bind(sent_environment(), str(platform.home.resolve()), arguments.revision)


def _cores(settings: ServingSettings, platform: PlatformSettings) -> float:
    if settings.pool is not PoolKind.PROCESS:
        return 1.0
    return 1.0 + (settings.workers or platform.workers) + settings.feature_workers


class Replica:
    """What Serve asks beside requests: whether the replica is in order."""

    app: FastAPI

    def __init__(self, environment: Mapping[str, str], home: str, revision: str) -> None:
        os.environ.setdefault("RINGFENCE_HOME", home)
        adopt(environment)
        self.revision = revision

    async def check_health(self) -> None:
        """Raise when inference workers cannot be kept alive: Serve then replaces the replica.

        A store that is away is no reason: another replica would not have it either, and /health tells of it.
        """
        services = getattr(self.app.state, "services", None)
        if services is not None and services.inference.status().broken:
            raise RuntimeError("inference workers cannot be kept alive: the replica's log has the reason")


def _build() -> FastAPI:
    from serving import logs
    from serving.app import create_app

    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    settings = load(ServingSettings)
    logs.configure(settings.log_level)
    return create_app(load(PlatformSettings), settings)
