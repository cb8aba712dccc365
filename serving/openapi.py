"""OpenAPI from the classes that decode and encode: what /docs says is what the server does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving import api
from serving.problems import PROBLEM_MEDIA_TYPE

REF = "#/components/schemas/{name}"
_KINDS: tuple[type[msgspec.Struct], ...] = (
    api.PredictRequest,
    api.TransactionsRequest,
    api.StatusesRequest,
    api.LabelsRequest,
    api.OnlineFeaturesRequest,
    api.JobRequest,
    api.PredictReply,
    api.DecisionsReply,
    api.WriteReply,
    api.FeaturesReply,
    api.OnlineFeaturesReply,
    api.JobReply,
    api.JobsReply,
    api.JobKindsReply,
    api.HealthReply,
    api.LiveReply,
    api.Problem,
)
_MEANINGS = {
    400: "Bad input: the problem names the field, what was expected and what came.",
    404: "There is nothing under this id.",
    409: "Accepted before with other content, or about something unknown.",
    413: "Larger than the configured limit.",
    503: "Overloaded, or something needed does not answer: try again after Retry-After seconds.",
}


def request_body(kind: type[msgspec.Struct], example: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that decodes its own body."""
    schema = {"$ref": REF.format(name=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def responses(kind: type[msgspec.Struct], *problems: int, success: int = 200) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: its reply, and the problems that it may answer with."""
    problem = {"schema": {"$ref": REF.format(name="Problem")}}
    reply = {"application/json": {"schema": {"$ref": REF.format(name=kind.__name__)}}}
    return {
        success: {"description": (kind.__doc__ or "").split("\n")[0], "content": reply},
        **{status: {"description": _MEANINGS[status], "content": {PROBLEM_MEDIA_TYPE: problem}} for status in problems},
    }


def install(app: FastAPI, kinds: Sequence[type[msgspec.Struct]] = _KINDS) -> None:
    """Have `app` describe itself with the schemas of `kinds`."""

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
            components.update(schemas)
            # FastAPI's own shape of a validation error is never sent here.
            for unused in ("HTTPValidationError", "ValidationError"):
                components.pop(unused, None)
            _drop_422(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def _drop_422(document: dict[str, Any]) -> None:
    for path in document["paths"].values():
        for operation in path.values():
            operation.get("responses", {}).pop("422", None)
