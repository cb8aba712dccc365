"""Requests of the busiest kind, taken past FastAPI's own machinery: it documents these routes, and does not run them.

FastAPI finds routes by one pattern after the other, and around each call solves dependencies and opens exit stacks. A
route with a path of its own, a scope, and nothing but the request for a parameter needs none of that.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from serving import auth

ErrorHandler = Callable[[Request, Any], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class DirectRoute:
    """A route that is called as it stands, after its callers were asked for their scope."""

    route: APIRoute
    handlers: dict[type[Exception], ErrorHandler]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, errors as the application's own handlers do."""
        scope["route"] = self.route
        request = Request(scope, receive, send)
        try:
            for dependency in self.route.dependencies:
                await dependency.dependency(request)  # type: ignore[misc]
            response: Response = await self.route.endpoint(request)
        except tuple(self.handlers) as error:
            response = await self._handler(error)(request, error)
        await response(scope, receive, send)

    def _handler(self, error: Exception) -> ErrorHandler:
        return next(self.handlers[kind] for kind in type(error).__mro__ if kind in self.handlers)


class DirectRoutes:
    """Finds the route of a request by method and path alone."""

    def __init__(self, app: FastAPI, routers: Iterable[APIRouter]) -> None:
        # What nobody expected goes on to the outermost layer, as everywhere.
        handlers: dict[type[Exception], ErrorHandler] = {
            kind: handler  # type: ignore[misc]
            for kind, handler in app.exception_handlers.items()
            if isinstance(kind, type) and kind is not Exception
        }
        routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
        self._found = {
            (method, route.path): DirectRoute(route=route, handlers=handlers)
            for route in routes
            if _is_plain(route)
            for method in route.methods or ()
        }

    def find(self, scope: Scope) -> DirectRoute | None:
        """The route that answers this request, None where FastAPI has to look."""
        return None if scope.get("root_path") else self._found.get((scope["method"], scope["path"]))


def _is_plain(route: APIRoute) -> bool:
    return (
        "{" not in route.path
        and list(inspect.signature(route.endpoint).parameters) == ["request"]
        and inspect.iscoroutinefunction(route.endpoint)
        and all(auth.is_needed(dependency) for dependency in route.dependencies)
    )
