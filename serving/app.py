"""The application: routes, errors, middleware, and a lifespan that builds what they work with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from graph_features.settings import PlatformSettings, ServingSettings
from serving import (
    openapi,
    problems,
    routes_feast,
    routes_features,
    routes_ingest,
    routes_jobs,
    routes_ops,
    routes_predict,
    routes_v2,
    traces,
)
from serving.direct import DirectRoutes
from serving.middleware import RequestMiddleware, Shared
from serving.services import BuildServices

ROUTERS = (
    routes_predict.router,
    routes_features.router,
    routes_feast.router,
    routes_ingest.router,
    routes_jobs.router,
    routes_v2.router,
    routes_ops.router,
)

_DESCRIPTION = """Real-time fraud scores for payments, from graph features held online.

Bad input is answered with `application/problem+json` (RFC 9457) that names the field, what was expected and what came.
Every reply carries `X-Request-Id`; send one to have it kept."""


def create_app(platform: PlatformSettings, settings: ServingSettings, *, build: BuildServices | None = None) -> FastAPI:
    """The server of `platform`. `build` makes the services it works with, by default those of the active profile."""
    at_once = settings.max_in_flight
    shared = Shared(max_in_flight=at_once, max_bytes=at_once * settings.max_body_bytes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        traces.start(_version())
        try:
            async with _builder(build)(platform, settings) as services:
                app.state.services = services
                shared.measure(services.metrics)
                yield
        finally:
            await asyncio.to_thread(traces.stop)

    app = FastAPI(title="Ringfence", version=_version(), description=_DESCRIPTION, lifespan=lifespan, redoc_url=None)
    app.add_middleware(RequestMiddleware, shared=shared)
    routes = [route for router in ROUTERS for route in router.routes]
    problems.install(app, routes)
    for router in ROUTERS:
        app.include_router(router)
    shared.direct = DirectRoutes(app, ROUTERS)
    openapi.install(
        app,
        routes,
        examples=lambda: routes_feast.examples(app.state.services.stores.schemas),
    )
    return app


def _builder(build: BuildServices | None) -> BuildServices:
    if build is not None:
        return build
    from serving.build import services_of_profile

    return services_of_profile


def _version() -> str:
    try:
        return version("ringfence")
    except PackageNotFoundError:
        return "0"
