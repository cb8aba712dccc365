"""Around every request: an id, a limit on how many are at work, a log line, metrics, security headers.

It also hands the plain routes their requests itself: see serving.direct.
"""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import traces
from serving.direct import DirectRoutes
from serving.logs import REQUEST_ID
from serving.metrics import Metrics
from serving.problems import RETRY_AFTER_S, OverloadedError, problem_of, respond

log = logging.getLogger("ringfence.serving.access")

PLACE = "ringfence.place"
"""Where a request's scope has its Place, if it needs one."""

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ALWAYS_ANSWERED = ("/health", "/metrics", "/v2/health")
# An API's answers are data: no browser should guess their kind, keep, frame, embed or run them.
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_USUAL_HEADERS = [_POLICY, *_HEADERS]
# The page of FastAPI loads Swagger UI and runs a few lines of its own.
_DOCS_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; connect-src 'self'; img-src 'self' data: https://fastapi.tiangolo.com; "
    b"frame-ancestors 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' https://cdn.jsdelivr.net",
)


@dataclass(kw_only=True)
class Shared:
    """What the middleware shares with the application, whose metrics exist only once it has started."""

    max_in_flight: int
    max_bytes: int
    direct: DirectRoutes | None = None
    metrics: Metrics | None = None
    in_flight: int = 0
    bytes: int = 0
    _counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = field(default_factory=dict)

    def measure(self, metrics: Metrics) -> None:
        """Count into `metrics` from now on."""
        self.metrics = metrics
        self._counters.clear()
        metrics.in_flight.set_function(lambda: self.in_flight)

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        if self.metrics is None:
            return
        found = self._counters.get((route, method, status))
        if found is None:
            # Kept, since to look a counter up by its labels costs more than to count.
            requests = self.metrics.requests.labels(route, method, str(status))
            found = self._counters[route, method, status] = requests, self.metrics.request_seconds.labels(route)
        found[0].inc()
        found[1].observe(seconds)


class Place:
    """A request's place among those at work: it is given up while the request waits for its client.

    All bodies together, those that have not wholly arrived included, hold at most `Shared.max_bytes`.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._held = False
        self._bytes = 0

    def hold(self, n_bytes: int) -> None:
        """Count bytes of the body, until the request ends; raise OverloadedError where all bodies hold too many."""
        self._bytes += n_bytes
        self._shared.bytes += n_bytes
        if self._shared.bytes > self._shared.max_bytes:
            self._refuse()

    def end(self) -> None:
        """The request is over."""
        self.leave()
        self._shared.bytes -= self._bytes
        self._bytes = 0

    def take(self) -> None:
        """Have a place; raise OverloadedError where all are taken."""
        if self._shared.in_flight >= self._shared.max_in_flight:
            self._refuse()
        self._shared.in_flight += 1
        self._held = True

    def _refuse(self) -> NoReturn:
        if self._shared.metrics is not None:
            self._shared.metrics.refused.inc()
        raise OverloadedError

    def leave(self) -> None:
        """Let another have it; may be called again."""
        if self._held:
            self._shared.in_flight -= 1
            self._held = False


class RequestMiddleware:
    """Pure ASGI: costs microseconds and never touches a body."""

    def __init__(self, app: ASGIApp, *, shared: Shared) -> None:
        self._app = app
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if given and _GIVEN_ID.fullmatch(given) else os.urandom(16).hex()
        scope["ringfence.request_id"] = request_id
        REQUEST_ID.set(request_id)
        begun = time.perf_counter()
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                usual = [_DOCS_POLICY, *_HEADERS] if scope["path"] == "/docs" else _USUAL_HEADERS
                own = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), own, *usual]}
            await send(message)

        with traces.request_span(headers, request_id) as span:
            try:
                await self._run(scope, receive, answer)
            finally:
                self._record(scope, status, time.perf_counter() - begun, span)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        direct = None if self._shared.direct is None else self._shared.direct.find(scope)
        app = direct or self._app
        if scope["path"].startswith(_ALWAYS_ANSWERED):
            await app(scope, receive, send)
            return
        place = scope[PLACE] = Place(self._shared)
        try:
            place.take()
        except OverloadedError as error:
            response = respond(problem_of(error, Request(scope)), {"Retry-After": str(RETRY_AFTER_S)})
            await response(scope, receive, send)
            return
        try:
            await app(scope, receive, send)
        finally:
            place.end()

    def _record(self, scope: Scope, status: int, seconds: float, span: Any) -> None:
        # Paths and methods of the client's own making would make labels without end.
        route = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if route != "unknown" else "any"
        traces.describe(span, method=method, route=route, status=status)
        self._shared.count(route, method, status, seconds)
        log.info(
            "request",
            extra={
                "route": route,
                "method": method,
                "status": status,
                "ms": round(seconds * 1e3, 2),
                "caller": scope.get("ringfence.caller", ""),
            },
        )
