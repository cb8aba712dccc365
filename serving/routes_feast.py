"""Writes in the form of Feast's own feature server: /push, and what its remote online store writes by."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from graph_features.errors import InvalidInputError
from graph_features.schema import ViewSchema
from serving import openapi
from serving.api_feast import PushRequest, WriteToOnlineStoreRequest
from serving.auth import needs
from serving.keys import Scope
from serving.parse import decode, read_body
from serving.pushes import example_of, table_of
from serving.services import Services, services_of

router = APIRouter(tags=["features"])

PUSH_SOURCES = {"account_activity_push": "account_activity"}
"""The push sources that feature_repo registers, and the view of each."""


def examples(schemas: Mapping[str, ViewSchema]) -> dict[str, dict[str, Any]]:
    """By path the body that the document shows, made of the views as they are."""
    (source, pushed), *_ = PUSH_SOURCES.items()
    smallest = min(schemas.values(), key=lambda view: len(view.features))
    found = {"/write-to-online-store": {"feature_view_name": smallest.name, "df": example_of(smallest)}}
    if pushed in schemas:
        found["/push"] = {"push_source_name": source, "df": example_of(schemas[pushed]), "to": "online"}
    return found


@router.post(
    "/push",
    dependencies=[needs(Scope.WRITE)],
    openapi_extra=openapi.request_body(PushRequest, None),
    responses={200: {"description": "Every row was taken."}, **openapi.problems(400, 408, 413, 503)},
    response_class=Response,
)
async def push(request: Request) -> Response:
    """Write rows of a push source's view to the online store, the offline store or both, as Feast's server does."""
    services = services_of(request)
    asked = decode(await read_body(request, services.settings), PushRequest)
    if asked.push_source_name not in PUSH_SOURCES:
        expected = f"one of {', '.join(PUSH_SOURCES)}"
        raise InvalidInputError(field="push_source_name", expected=expected, got=asked.push_source_name)
    view = services.stores.schemas[PUSH_SOURCES[asked.push_source_name]]
    await _write(services, view, asked.df, online=asked.to != "offline", offline=asked.to != "online")
    return Response()


@router.post(
    "/write-to-online-store",
    dependencies=[needs(Scope.WRITE)],
    openapi_extra=openapi.request_body(WriteToOnlineStoreRequest, None),
    responses={
        200: {
            "description": "Every row was taken; of two rows of one entity the newer stays.",
            "content": {"application/json": {"schema": {"type": "null"}}},
        },
        **openapi.problems(400, 408, 413, 503),
    },
    response_class=Response,
)
async def write_to_online_store(request: Request) -> Response:
    """Write rows of any view to the online store: what Feast's remote online store calls."""
    services = services_of(request)
    asked = decode(await read_body(request, services.settings), WriteToOnlineStoreRequest)
    view = services.stores.schemas.get(asked.feature_view_name)
    if view is None:
        expected = f"one of {', '.join(services.stores.schemas)}"
        raise InvalidInputError(field="feature_view_name", expected=expected, got=asked.feature_view_name)
    await _write(services, view, asked.df, online=True, offline=False)
    return Response(b"null", media_type="application/json")


async def _write(services: Services, view: ViewSchema, frame: dict[str, Any], *, online: bool, offline: bool) -> None:
    table = await asyncio.to_thread(table_of, view, frame, limit=services.settings.max_batch)
    if offline:
        created = table["created_timestamp"]
        if created.null_count:
            expected = "a time in every row, to tell versions of a row apart"
            raise InvalidInputError(field="df.created_timestamp", expected=expected, got=None)
        # The history first: what is online and nowhere else could not be explained later.
        await asyncio.to_thread(services.stores.offline().write, view, table, part=f"push-{uuid.uuid4().hex}")
    if online:
        await asyncio.to_thread(services.stores.online.write, view, table)
