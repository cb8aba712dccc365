"""Routes that are called past FastAPI's machinery answer as they do through it."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.routing import APIRoute

from serving.app import ROUTERS
from serving.direct import DirectRoutes

ASKED = [
    ("/predict", b'{"transactions": []}'),
    ("/predict", b"{"),
    ("/get-online-features", b'{"features": ["activity:sent"], "entities": {"account_id": ["a"]}}'),
    ("/get-online-features", b'{"features": ["activity:sent"], "entities": {"account_id": ["' + b"a" * 200 + b'"]}}'),
    ("/push", b'{"push_source_name": "nothing", "df": {}}'),
]


def plain(reply: Any) -> tuple[Any, ...]:
    body = reply.json()
    body.pop("request_id", None)
    headers = {name: value for name, value in reply.headers.items() if name not in ("x-request-id", "content-length")}
    return reply.status_code, body, headers


@pytest.mark.parametrize(("path", "content"), ASKED)
def test_same_answers_either_way(run_app: Any, path: str, content: bytes) -> None:
    """Good and bad requests get the same status, headers and body past FastAPI and through it."""
    client, _ = run_app()
    direct = client.post(path, content=content)
    shared = next(one.kwargs["shared"] for one in client._app.user_middleware)
    found, shared.direct = shared.direct, None
    through = client.post(path, content=content)
    assert found.find({"method": "POST", "path": path}) is not None
    assert plain(direct) == plain(through)


def test_only_plain_routes_are_called_directly(run_app: Any) -> None:
    """Routes with parameters, other methods and mounted paths are left to FastAPI."""
    client, _ = run_app()
    routes = DirectRoutes(client._app, ROUTERS)
    every = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    direct = {
        route.path for route in every for one in route.methods or () if routes.find({"method": one, "path": route.path})
    }
    assert {"/predict", "/get-online-features"} <= direct
    assert not direct & {"/features", "/transactions", "/decisions/{transaction_id:path}"}
    assert routes.find({"method": "GET", "path": "/predict"}) is None
    assert routes.find({"method": "POST", "path": "/predict", "root_path": "/under"}) is None
    assert client.get("/predict").status_code == 405


def test_unexpected_errors_are_still_problems(run_app: Any, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that nobody expected is 500 as a problem, not a broken connection."""
    client, _ = run_app()

    def broken(requests: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(world.online, "read", broken)
    asked = {"features": ["activity:sent"], "entities": {"account_id": ["a"]}}
    reply = client.post("/get-online-features", json=asked)
    assert (reply.status_code, reply.json()["type"]) == (500, "urn:ringfence:problem:internal")
