"""GET /features and Feast's POST /get-online-features: newest online features by name."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from graph_features.contracts import MAX_ID_LENGTH
from graph_features.errors import InvalidInputError
from graph_features.schema import ENTITY_KEYS
from serving import online, openapi, traces
from serving.api import CatalogReply, FeatureRow, FeaturesReply
from serving.api_feast import OnlineFeaturesReply, OnlineFeaturesRequest
from serving.auth import needs
from serving.keys import Scope
from serving.parse import decode, read_body
from serving.problems import TooLargeError, request_id
from serving.replies import json_reply, raw_json
from serving.services import Services, services_of

router = APIRouter(tags=["features"])

PAIR_SEPARATOR = "|"
_EXAMPLE = {"features": ["account_activity:sent_count_7d"], "entities": {"account_id": ["C1", "C2"]}}


@router.get(
    "/features",
    dependencies=[needs(Scope.READ)],
    responses=openapi.responses(FeaturesReply, 400, 413, 503),
    response_class=Response,
)
async def features(
    request: Request,
    entity: Annotated[Literal["account", "pair"], Query(description="What the ids name.")] = "account",
    ids: Annotated[
        list[str],
        Query(
            description="Ids, repeated or separated by commas; a pair is sender|receiver. Ids that hold these signs go "
            "through POST /get-online-features.",
            openapi_examples={"accounts": {"value": ["C1", "C2"]}},
        ),
    ] = [],  # noqa: B006 - FastAPI copies it
    features: Annotated[
        list[str], Query(description='"view:feature" or "view:*", repeated or separated by commas; all by default.')
    ] = [],  # noqa: B006
    service: Annotated[str | None, Query(description="A feature service, instead of features.")] = None,
) -> Response:
    """Newest online features of accounts or pairs, with their status and the instant that they speak for."""
    services = services_of(request)
    keys = _entity_keys(entity, _split(ids), services)
    projections = _projections(services, entity, _split(features), service)
    columns = {name: [key[at] for key in keys] for at, name in enumerate(ENTITY_KEYS[entity])}
    found, pending = await asyncio.to_thread(online.read, services.stores.online, projections, columns)
    rows = [_row(found, at, dict(zip(columns, key, strict=True)), services, pending) for at, key in enumerate(keys)]
    names = [f"{item.name}:{feature}" for item in projections for feature in item.features]
    return json_reply(FeaturesReply(entity=entity, features=names, rows=rows, request_id=request_id(request)))


@router.get(
    "/features/catalog",
    dependencies=[needs(Scope.READ)],
    responses=openapi.responses(CatalogReply),
    response_class=Response,
)
async def catalog(request: Request) -> Response:
    """Every feature view with its features, types, units and meanings, and the feature services."""
    schemas = services_of(request).stores.schemas
    views = [{**view.to_json(), "keys": list(view.keys)} for view in schemas.values()]
    services = list(online.services(schemas))
    return json_reply(CatalogReply(views=views, services=services, request_id=request_id(request)))


def _split(values: list[str]) -> list[str]:
    return [part for value in values for part in value.split(",") if part]


def _entity_keys(entity: str, ids: list[str], services: Services) -> list[tuple[str, ...]]:
    if not ids:
        raise InvalidInputError(field="ids", expected="at least one id", got=ids)
    _check_count("ids", len(ids), services)
    keys = [tuple(id_.split(PAIR_SEPARATOR)) if entity == "pair" else (id_,) for id_ in ids]
    for id_, key in zip(ids, keys, strict=True):
        if len(key) != len(ENTITY_KEYS[entity]):
            raise InvalidInputError(field="ids", expected=f"sender{PAIR_SEPARATOR}receiver", got=id_)
        for part in key:
            _check_id("ids", part)
    return keys


def _check_count(field: str, count: int, services: Services) -> None:
    limit = services.settings.max_batch
    if count > limit:
        raise TooLargeError(field=field, expected=f"at most {limit} items", got=count)


def _check_id(field: str, value: object) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_LENGTH:
        raise InvalidInputError(field=field, expected=f"an id of 1 to {MAX_ID_LENGTH} characters", got=value)


def _projections(services: Services, entity: str, names: list[str], service: str | None) -> list[online.Projection]:
    schemas = services.stores.schemas
    if service is not None and names:
        raise InvalidInputError(field="service", expected="either features or a service", got=service)
    if service is not None:
        projections = online.of_service(schemas, service)
    else:
        all_names = [f"{view.name}:*" for view in schemas.values() if view.entity == entity]
        projections = online.of_names(schemas, names or all_names)
    field, got = ("service", service) if service else ("features", names)
    if any(item.keys != ENTITY_KEYS[entity] for item in projections):
        raise InvalidInputError(field=field, expected=f"features of {entity}s", got=got)
    return projections


def _row(
    found: list[online.Found], at: int, entity: dict[str, str], services: Services, pending: set[tuple[str, ...]]
) -> FeatureRow:
    values: dict[str, Any] = {}
    statuses: dict[str, str] = {}
    times: dict[str, str | None] = {}
    now_ms = services.clock_ms()
    for item in found:
        assert item.block is not None
        name = item.projection.name
        times[name] = online.instant(int(item.block.as_of_ms[at])) if item.block.present[at] else None
        row = item.block.take(_position(at))
        for feature in item.projection.features:
            values[f"{name}:{feature}"] = item.values[feature][at]
            statuses[f"{name}:{feature}"] = online.statuses(row, feature, now_ms=now_ms)[0]
    return FeatureRow(
        entity=entity,
        values=values,
        statuses=statuses,
        event_timestamps=times,
        pending=any(item.keys[at] in pending for item in found),
    )


def _position(at: int) -> Any:
    import numpy as np

    return np.array([at], np.int64)


@router.post(
    "/get-online-features",
    dependencies=[needs(Scope.READ)],
    openapi_extra=openapi.request_body(OnlineFeaturesRequest, _EXAMPLE),
    responses=openapi.responses(OnlineFeaturesReply, 400, 408, 413, 503),
    response_class=Response,
)
async def get_online_features(request: Request) -> Response:
    """Online features as Feast's own feature server answers, for its clients."""
    services = services_of(request)
    asked = decode(await read_body(request, services.settings), OnlineFeaturesRequest)
    count = _check_entities(asked.entities, services)
    plan = services.stores.plans.of(asked.features, asked.feature_service, full=asked.full_feature_names)
    with traces.span("features", entities=count):
        rows = await services.reading.rows(plan.requests(asked.entities), entities=count)
    views = asked.include_feature_view_version_metadata
    return raw_json(plan.reply(asked.entities, count, rows, views=views))


def _check_entities(entities: dict[str, list[Any]], services: Services) -> int:
    if not entities:
        raise InvalidInputError(field="entities", expected="ids by join key", got={})
    count = len(next(iter(entities.values())))
    _check_count("entities", count, services)
    for name, values in entities.items():
        if len(values) != count or count == 0:
            raise InvalidInputError(
                field=f"entities.{name}",
                expected=f"as many values as under the others ({count or 'at least one'})",
                got=len(values),
            )
        if name not in online.REQUEST_COLUMNS:
            for value in values:
                _check_id(f"entities.{name}", value)
    return count
