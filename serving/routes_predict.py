"""POST /predict and the decision records that it leaves."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from graph_features.contracts import MAX_ID_LENGTH
from graph_features.errors import InvalidInputError
from serving import openapi
from serving.api import DecisionsReply, ModelName, PredictReply, PredictRequest, Routes
from serving.auth import needs
from serving.keys import Scope
from serving.online import instant
from serving.parse import decode, read_body
from serving.problems import NotFoundError, request_id
from serving.replies import json_reply
from serving.services import services_of

router = APIRouter(tags=["scoring"])

EXAMPLE = {
    "transactions": [
        {
            "transaction_id": "T-1",
            "event_timestamp": "2026-03-01T12:00:00Z",
            "sender_id": "C1",
            "receiver_id": "M1",
            "amount": 129.9,
            "currency": "EUR",
            "channel": "online",
        }
    ]
}


@router.post(
    "/predict",
    dependencies=[needs(Scope.PREDICT)],
    openapi_extra=openapi.request_body(PredictRequest, EXAMPLE),
    responses=openapi.responses(PredictReply, 400, 408, 413, 503),
    response_class=Response,
)
async def predict(request: Request) -> Response:
    """Score payments. Nothing is stored but the decision; replies keep the order of the request."""
    services = services_of(request)
    begun = time.perf_counter()
    asked = decode(await read_body(request, services.settings), PredictRequest)
    if asked.explain and len(asked.transactions) > services.settings.max_explained:
        few = f"at most {services.settings.max_explained} transactions with explain"
        raise InvalidInputError(field="transactions", expected=few, got=len(asked.transactions))
    done = await services.scoring.score(
        asked.transactions, explain=asked.explain, request_id=request_id(request), begun=begun
    )
    ref = done.model.ref
    return json_reply(
        PredictReply(
            model=ModelName(name=ref.name, version=ref.version, alias=ref.alias),
            scores=done.scores,
            routes=Routes(feature_engineering=done.engineered, inference=len(done.scores)),
            timing_ms={name: round(value, 3) for name, value in done.timing_ms.items()},
            request_id=request_id(request),
            notices=done.notices,
        )
    )


@router.get(
    "/decisions/{transaction_id:path}",
    dependencies=[needs(Scope.READ)],
    responses=openapi.responses(DecisionsReply, 400, 404, 503),
    response_class=Response,
)
async def decisions(
    request: Request,
    transaction_id: Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH)],
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> Response:
    """Every decision on one transaction, newest first: inputs, rows used, model, score."""
    services = services_of(request)
    if not transaction_id.isprintable():
        raise InvalidInputError(field="transaction_id", expected="no control characters", got=transaction_id)
    found = await asyncio.to_thread(services.decisions.find, transaction_id, limit=limit)
    if not found:
        raise NotFoundError("no decision was recorded on this transaction")
    for record in found:
        for name in ("scored_at", "event_timestamp"):
            record[name] = instant(record.pop(f"{name}_ms"))
    reply = DecisionsReply(transaction_id=transaction_id, decisions=found, request_id=request_id(request))
    return json_reply(reply)
