"""Health for people, balancers and orchestrators; metrics for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving import openapi
from serving.api import HealthReply, LiveReply
from serving.replies import json_reply
from serving.services import Services, services_of

router = APIRouter(tags=["operations"])


@router.get("/health", responses=openapi.responses(HealthReply, 503), response_class=Response)
async def health(request: Request) -> Response:
    """Every dependency, the pools and the model, each by its own ping; 503 when a needed one fails."""
    reply = await services_of(request).health.check()
    return json_reply(reply, 503 if reply.status == "failing" else 200)


@router.get("/health/live", responses=openapi.responses(LiveReply), response_class=Response)
async def live() -> Response:
    """Whether the process answers at all: restart it when this fails."""
    return json_reply(LiveReply(status="ok"))


@router.get("/health/ready", responses=openapi.responses(LiveReply, 503), response_class=Response)
async def ready(request: Request) -> Response:
    """Whether requests should be sent here: a model is in use, workers are up, needed stores answer, not draining."""
    reason = await _not_ready(services_of(request))
    return json_reply(LiveReply(status="failing" if reason else "ok", reason=reason), 503 if reason else 200)


async def _not_ready(services: Services) -> str | None:
    if services.draining:
        return "the server is stopping"
    checked = await services.health.check(only_needed=True)
    failing = [f"{name}: {check.error}" for name, check in checked.checks.items() if check.status == "failing"]
    return "; ".join(failing) or None


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    # In a thread: some of what is measured is asked of the stores.
    text = await asyncio.to_thread(generate_latest, services_of(request).metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
