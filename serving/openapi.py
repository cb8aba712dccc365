"""OpenAPI from the classes that decode and encode: what /docs says is what the server does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from serving import api, api_feast, api_v2
from serving.auth import scope_of
from serving.problems import PROBLEM_MEDIA_TYPE

REF = "#/components/schemas/{name}"
_KINDS: tuple[type[msgspec.Struct], ...] = (
    api.PredictRequest,
    api.TransactionsRequest,
    api.StatusesRequest,
    api.LabelsRequest,
    api_feast.OnlineFeaturesRequest,
    api_feast.PushRequest,
    api_feast.WriteToOnlineStoreRequest,
    api.JobRequest,
    api.PredictReply,
    api.DecisionsReply,
    api.WriteReply,
    api.FeaturesReply,
    api.CatalogReply,
    api_feast.OnlineFeaturesReply,
    api.JobReply,
    api.JobsReply,
    api.JobKindsReply,
    api.HealthReply,
    api.LiveReply,
    api_v2.InferRequest,
    api_v2.InferReply,
    api_v2.ServerMetadata,
    api_v2.ServerLive,
    api_v2.ServerReady,
    api_v2.ModelMetadata,
    api_v2.ModelReady,
    api.Problem,
)
_MEANINGS = {
    400: "Bad input: the problem names the field, what was expected and what came.",
    401: "No key, or one that is not valid.",
    403: "The key lacks the scope that this needs.",
    404: "There is nothing under this id.",
    408: "The body did not arrive in time.",
    409: "Accepted before with other content, or about something unknown.",
    413: "Larger than the configured limit.",
    503: "Overloaded, or something needed does not answer: try again after Retry-After seconds.",
}


_HEADERS = {
    401: ("WWW-Authenticate", "How to say who one is (RFC 6750)."),
    403: ("WWW-Authenticate", "The scope that is needed (RFC 6750)."),
    503: ("Retry-After", "Seconds after which to try again."),
}
_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (`ringfence keys create`), or a token of the configured issuer.",
    },
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
}


def request_body(kind: type[msgspec.Struct], example: dict[str, Any] | None) -> dict[str, Any]:
    """`openapi_extra` of a route that decodes its own body."""
    schema = {"$ref": REF.format(name=kind.__name__)}
    content = {"schema": schema, **({} if example is None else {"example": example})}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that a route may answer with, as its `responses`."""
    return {status: _problem(status) for status in statuses}


def responses(kind: type[msgspec.Struct], *problems: int, success: int = 200) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: its reply, and the problems that it may answer with."""
    reply = {"application/json": {"schema": {"$ref": REF.format(name=kind.__name__)}}}
    return {
        success: {"description": (kind.__doc__ or "").split("\n")[0], "content": reply},
        **{status: _problem(status) for status in problems},
    }


def same(kind: type[msgspec.Struct], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that answers in one form whatever it has to say."""
    content = {"application/json": {"schema": {"$ref": REF.format(name=kind.__name__)}}}
    return {status: {"description": (kind.__doc__ or "").split("\n")[0], "content": content} for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    """One documented problem, with the headers that come with it."""
    answer: dict[str, Any] = {
        "description": _MEANINGS[status],
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": REF.format(name="Problem")}}},
    }
    if status in _HEADERS:
        name, description = _HEADERS[status]
        answer["headers"] = {name: {"description": description, "schema": {"type": "string"}}}
    return answer


def _alternatives(schema: Any) -> Any:
    """A schema in which what names alternatives names no type beside them: msgspec adds its own idea of one."""
    if isinstance(schema, list):
        return [_alternatives(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = ("type", "format") if "anyOf" in schema else ()
    return {name: _alternatives(value) for name, value in schema.items() if name not in dropped}


def install(
    app: FastAPI,
    routes: Sequence[BaseRoute],
    *,
    examples: Callable[[], Mapping[str, Any]] = dict,
    kinds: Sequence[type[msgspec.Struct]] = _KINDS,
) -> None:
    """Have `app` describe itself and its `routes` with the schemas of `kinds`.

    `examples` makes bodies by path that are known only once the server runs.
    """

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            _, schemas = msgspec.json.schema_components(kinds, ref_template=REF)
            components = document.setdefault("components", {}).setdefault("schemas", {})
            components.update(_alternatives(schemas))
            # FastAPI's own shape of a validation error is never sent here.
            for unused in ("HTTPValidationError", "ValidationError"):
                components.pop(unused, None)
            document["components"]["securitySchemes"] = _SCHEMES
            _drop_422(document)
            _add_access(document, routes)
            for path, example in examples().items():
                body = document["paths"][path]["post"]["requestBody"]
                body["content"]["application/json"]["example"] = example
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def _drop_422(document: dict[str, Any]) -> None:
    for path in document["paths"].values():
        for operation in path.values():
            operation.get("responses", {}).pop("422", None)


def _add_access(document: dict[str, Any], routes: Sequence[BaseRoute]) -> None:
    """Say of each operation which scope it needs, and what every caller without it, or in a crowd, is answered."""
    for route in routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        scope = scope_of(route)
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            answers = operation["responses"]
            if scope is not None:
                operation["security"] = [{name: []} for name in _SCHEMES]
                operation["description"] = f"{operation.get('description', '')}\n\nScope: `{scope.value}`.".strip()
                answers |= {str(status): _problem(status) for status in (401, 403, 503)} | answers
            operation["responses"] = dict(sorted(answers.items()))
