"""Health for people, balancers and orchestrators; metrics for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from msgspec import structs
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from graph_features.errors import RingfenceError
from serving import openapi
from serving.api import HealthReply, LiveReply
from serving.auth import needs
from serving.keys import Scope
from serving.replies import json_reply
from serving.services import Services, services_of

router = APIRouter(tags=["operations"])


@router.get("/health", responses=openapi.same(HealthReply, 200, 503), response_class=Response)
async def health(request: Request) -> Response:
    """Every dependency, the pools and the model, each by its own ping; 503 when a needed one fails.

    Without a key with the scope `read`, where keys are needed, only what works and what does not.
    """
    services = services_of(request)
    reply = await services.health.check()
    if not await _may_read(services, request):
        bare = {name: structs.replace(check, detail={}, error=None) for name, check in reply.checks.items()}
        reply = structs.replace(reply, checks=bare)
    return json_reply(reply, 503 if reply.status == "failing" else 200)


async def _may_read(services: Services, request: Request) -> bool:
    try:
        return (await services.guard.caller(request.headers)).may(Scope.READ)
    except RingfenceError:
        return False


@router.get("/health/live", responses=openapi.responses(LiveReply), response_class=Response)
async def live() -> Response:
    """Whether the process answers at all: restart it when this fails."""
    return json_reply(LiveReply(status="ok"))


@router.get("/health/ready", responses=openapi.same(LiveReply, 200, 503), response_class=Response)
async def ready(request: Request) -> Response:
    """Whether requests should be sent here: a model is in use, workers are up, needed stores answer, not draining."""
    services = services_of(request)
    reason = await not_ready(services)
    if reason and not await _may_read(services, request):
        reason = "not ready; ask with a key to be told why"
    return json_reply(LiveReply(status="failing" if reason else "ok", reason=reason), 503 if reason else 200)


async def not_ready(services: Services) -> str | None:
    """Why requests should not be sent here, None where they should."""
    if services.draining:
        return "the server is stopping"
    checked = await services.health.check(only_needed=True)
    failing = [f"{name}: {check.error}" for name, check in checked.checks.items() if check.status == "failing"]
    return "; ".join(failing) or None


@router.get(
    "/metrics",
    dependencies=[needs(Scope.READ)],
    response_class=Response,
    responses={200: {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    # In a thread: some of what is measured is asked of the stores.
    text = await asyncio.to_thread(generate_latest, services_of(request).metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
