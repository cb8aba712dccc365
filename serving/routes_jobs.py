"""Jobs on demand: materialize, backfill, slices, sync_graph."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from graph_features.errors import ConflictError, InvalidInputError, JobError, UnknownJobError
from graph_features.jobs.records import Job
from serving import openapi
from serving.api import JobKindsReply, JobReply, JobRequest, JobsReply
from serving.auth import needs
from serving.keys import Scope
from serving.parse import decode, read_body
from serving.problems import NotFoundError, request_id
from serving.replies import json_reply
from serving.services import services_of

router = APIRouter(tags=["jobs"])

LISTED_CHUNKS = 100


@router.post(
    "/jobs",
    dependencies=[needs(Scope.ADMIN)],
    status_code=202,
    openapi_extra=openapi.request_body(JobRequest, {"kind": "materialize", "parameters": {}}),
    responses=openapi.responses(JobReply, 400, 408, 413, 503, success=202),
    response_class=Response,
)
async def submit(request: Request) -> Response:
    """Queue a job and run it in the background; GET /jobs/{id} shows how far it is."""
    services = services_of(request)
    asked = decode(await read_body(request, services.settings), JobRequest)
    if "\\u0000" in json.dumps(asked.parameters):
        raise InvalidInputError(field="parameters", expected="text without NUL characters", got=asked.parameters)
    try:
        job = await asyncio.to_thread(services.jobs.submit, asked.kind, asked.parameters)
    except InvalidInputError as error:
        raise _inside_parameters(error, asked) from None
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(field="parameters", expected="values within range", got=str(error)) from None
    reply = json_reply(JobReply(job=job.to_json(), request_id=request_id(request)), 202)
    reply.headers["Location"] = f"/jobs/{job.id}"
    return reply


def _inside_parameters(error: InvalidInputError, asked: JobRequest) -> InvalidInputError:
    if error.field in ("kind", "parameters"):
        return error
    parameter: Any = asked.parameters
    for step in error.field.split("."):
        parameter = parameter.get(step) if isinstance(parameter, dict) else None
    return InvalidInputError(field=f"parameters.{error.field}", expected=error.expected, got=parameter)


@router.get(
    "/jobs", dependencies=[needs(Scope.READ)], responses=openapi.responses(JobsReply, 400, 503), response_class=Response
)
async def jobs(request: Request, limit: Annotated[int, Query(ge=1, le=1_000)] = 100) -> Response:
    """Jobs, newest first: what ran, runs, failed and why; what is due; each view's freshness; the graph's lag."""
    services = services_of(request)
    found = await asyncio.to_thread(services.jobs.list, limit=limit)
    status = await asyncio.to_thread(services.jobs.status)
    return json_reply(
        JobsReply(
            jobs=[job.to_json() for job in found],
            status=None if status is None else status.to_json(),
            request_id=request_id(request),
        )
    )


@router.get(
    "/jobs/kinds", dependencies=[needs(Scope.READ)], responses=openapi.responses(JobKindsReply), response_class=Response
)
async def kinds(request: Request) -> Response:
    """The kinds of job, with their parameters as JSON Schema."""
    return json_reply(JobKindsReply(kinds=services_of(request).jobs.kinds(), request_id=request_id(request)))


@router.get(
    "/jobs/{job_id}",
    dependencies=[needs(Scope.READ)],
    responses=openapi.responses(JobReply, 400, 404, 503),
    response_class=Response,
)
async def job(request: Request, job_id: UUID) -> Response:
    """One job: state, error, how many of its chunks are in each state, an estimate of the time to its end."""
    jobs = services_of(request).jobs
    try:
        found = await asyncio.to_thread(jobs.get, job_id)
    except UnknownJobError as error:
        raise NotFoundError(str(error)) from None
    progress = await asyncio.to_thread(jobs.progress, job_id)
    document = found.to_json() | {
        "chunks": {state.value: count for state, count in progress.counts.items()},
        "rows": progress.rows,
        "eta_s": progress.eta_s,
        "failed_chunks": [chunk.to_json() for chunk in progress.failed[:LISTED_CHUNKS]],
    }
    return json_reply(JobReply(job=document, request_id=request_id(request)))


_MOVED = openapi.responses(JobReply, 400, 404, 409, 503)


@router.post("/jobs/{job_id}/cancel", dependencies=[needs(Scope.ADMIN)], responses=_MOVED, response_class=Response)
async def cancel(request: Request, job_id: UUID) -> Response:
    """Cancel a job; one that runs stops at its next safe point. Asking twice changes nothing."""
    return await _move(request, services_of(request).jobs.cancel, job_id)


@router.post("/jobs/{job_id}/pause", dependencies=[needs(Scope.ADMIN)], responses=_MOVED, response_class=Response)
async def pause(request: Request, job_id: UUID) -> Response:
    """Pause a job; one that runs stops at its next safe point. Asking twice changes nothing."""
    return await _move(request, services_of(request).jobs.pause, job_id)


@router.post("/jobs/{job_id}/resume", dependencies=[needs(Scope.ADMIN)], responses=_MOVED, response_class=Response)
async def resume(request: Request, job_id: UUID) -> Response:
    """Run a paused, failed or cancelled job again: only what is missing, failed chunks included. 409 for another."""
    return await _move(request, services_of(request).jobs.resume, job_id)


async def _move(request: Request, move: Callable[[UUID], Job], job_id: UUID) -> Response:
    try:
        found = await asyncio.to_thread(move, job_id)
    except UnknownJobError as error:
        raise NotFoundError(str(error)) from None
    except JobError as error:
        raise ConflictError(str(error)) from None
    return json_reply(JobReply(job=found.to_json(), request_id=request_id(request)))
