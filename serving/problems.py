"""Errors as problem+json (RFC 9457): which error gets which status, and what it says."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match

from graph_features.errors import (
    ConflictError,
    FeatureComputationError,
    InvalidInputError,
    JobError,
    ModelError,
    RingfenceError,
    SchemaMismatchError,
    StoreUnavailableError,
    UnknownFeatureError,
)
from serving.admission import BusyError
from serving.api import Problem, Rejected
from serving.slots import PoolBrokenError, TaskTimeoutError, WorkerLostError

log = logging.getLogger("ringfence.serving")

PROBLEM_MEDIA_TYPE = "application/problem+json"
_TYPE = "urn:ringfence:problem:"
_OPEN_INFERENCE = "/v2"


class TooLargeError(InvalidInputError):
    """A body or a batch is larger than the configured limit."""


class OverloadedError(RingfenceError):
    """More requests are at work than this server takes: send it again after the time in Retry-After."""


class SlowBodyError(RingfenceError):
    """The request's body did not arrive in time."""


class NotFoundError(RingfenceError):
    """There is nothing under this id."""


class UnauthorizedError(RingfenceError):
    """A key is needed: send it as `Authorization: Bearer ...` or `X-API-Key`. `ringfence keys create` makes one."""

    def __init__(self, message: str | None = None, *, error: str | None = None) -> None:
        self.challenge = 'Bearer realm="ringfence"' + (f', error="{error}"' if error else "")
        super().__init__(message)


class ForbiddenError(RingfenceError):
    """The key is valid, but not for this."""

    def __init__(self, *, scope: str) -> None:
        self.challenge = f'Bearer realm="ringfence", error="insufficient_scope", scope="{scope}"'
        super().__init__(f"This needs a key with the scope {scope!r}.")


class RejectedRowsError(ConflictError):
    """Some rows were refused; the others were accepted."""

    def __init__(self, *, inserted: int, known: int, rejected: list[Rejected]) -> None:
        self.inserted = inserted
        self.known = known
        self.rejected = rejected
        super().__init__(
            f"{len(rejected)} rows were refused (first: {rejected[0].reason}); the other rows were accepted."
        )


# First match wins: subclasses stand before their bases.
_STATUSES: tuple[tuple[type[RingfenceError], int, str, str], ...] = (
    (TooLargeError, 413, "too-large", "Too large"),
    (InvalidInputError, 400, "bad-input", "Bad input"),
    (UnknownFeatureError, 400, "unknown-feature", "Unknown feature"),
    (UnauthorizedError, 401, "unauthorized", "Unauthorized"),
    (ForbiddenError, 403, "forbidden", "Forbidden"),
    (NotFoundError, 404, "not-found", "Not found"),
    (SlowBodyError, 408, "slow-body", "Request timeout"),
    (ConflictError, 409, "conflict", "Conflict"),
    (BusyError, 503, "overloaded", "Overloaded"),
    (OverloadedError, 503, "overloaded", "Overloaded"),
    (ModelError, 503, "no-model", "No model"),
    (StoreUnavailableError, 503, "store-unavailable", "A store does not answer"),
    (PoolBrokenError, 503, "workers-unavailable", "Workers are not available"),
    (WorkerLostError, 503, "workers-unavailable", "Workers are not available"),
    (TaskTimeoutError, 503, "timeout", "Not done in time"),
    (FeatureComputationError, 503, "features-unavailable", "Features could not be computed"),
    (SchemaMismatchError, 503, "schema-mismatch", "Features and model do not match"),
    (JobError, 503, "job-failed", "The job could not be taken"),
)
RETRY_AFTER_S = 1


def respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem as a response."""
    if (problem.instance or "").startswith(_OPEN_INFERENCE):
        problem = msgspec.structs.replace(problem, error=problem.detail)
    return Response(
        msgspec.json.encode(problem), problem.status, headers=dict(headers or {}), media_type=PROBLEM_MEDIA_TYPE
    )


def problem_of(error: RingfenceError, request: Request) -> Problem:
    """Return the problem that stands for `error`; what is not listed is our fault and says nothing but that."""
    extra: dict[str, object] = {"instance": request.url.path, "request_id": request_id(request)}
    if isinstance(error, InvalidInputError):
        extra |= {"field": error.field, "expected": error.expected, "got": error.got}
    if isinstance(error, RejectedRowsError):
        extra |= {"inserted": error.inserted, "known": error.known, "rejected": error.rejected}
    for kind, status, name, title in _STATUSES:
        if isinstance(error, kind):
            return Problem(type=_TYPE + name, title=title, status=status, detail=str(error), **extra)  # type: ignore[arg-type]
    return internal(request)


def internal(request: Request) -> Problem:
    """A fault of the server; its cause is in the log under the request id."""
    return Problem(
        type=_TYPE + "internal",
        title="Internal error",
        status=500,
        detail="The server failed; its log has the cause under this request id.",
        instance=request.url.path,
        request_id=request_id(request),
    )


def request_id(request: Request) -> str:
    """The id that the middleware gave this request."""
    return str(request.scope.get("ringfence.request_id", ""))


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Answer every error of `app`, which has these routes, with a problem."""
    app.add_exception_handler(RingfenceError, _ringfence)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, partial(_http, routes))
    app.add_exception_handler(RequestValidationError, _parameters)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, _gone)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _unexpected)


async def _ringfence(request: Request, error: RingfenceError) -> Response:
    problem = problem_of(error, request)
    if problem.status >= 500:
        trace = error if problem.status == 500 else None
        log.warning("request failed", extra={"error": str(error), "status": problem.status}, exc_info=trace)
    return respond(problem, _headers(error, problem.status))


def _headers(error: RingfenceError, status: int) -> dict[str, str]:
    if isinstance(error, UnauthorizedError | ForbiddenError):
        return {"WWW-Authenticate": error.challenge}
    return {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}


async def _http(routes: Sequence[BaseRoute], request: Request, error: HTTPException) -> Response:
    problem = Problem(
        type="about:blank",
        title=str(error.detail),
        status=error.status_code,
        detail=f"{request.method} {request.url.path}: {error.detail}",
        instance=request.url.path,
        request_id=request_id(request),
    )
    headers = dict(error.headers or {})
    if "Allow" in headers:
        # Starlette names the methods of the route that it found first; GET and POST of one path are two.
        headers["Allow"] = ", ".join(sorted(_allowed(routes, request))) or headers["Allow"]
    return respond(problem, headers)


def _allowed(routes: Sequence[BaseRoute], request: Request) -> set[str]:
    """The methods of every route that has this path."""
    found = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in found for method in getattr(route, "methods", None) or ()}


async def _parameters(request: Request, error: RequestValidationError) -> Response:
    """A query or path parameter that FastAPI refused."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    expected = str(first["msg"]).removeprefix("Input should be ")
    return await _ringfence(request, InvalidInputError(field=where, expected=expected, got=first.get("input")))


async def _gone(request: Request, error: ClientDisconnect) -> Response:  # noqa: ARG001 - what handlers take
    """The client has left in the middle of its body: nobody reads this answer."""
    return Response(status_code=400)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected error", extra={"path": request.url.path}, exc_info=error)
    return respond(internal(request))
