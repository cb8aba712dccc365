"""POST /predict and the decision records that it leaves."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from graph_features.contracts import MAX_ID_LENGTH
from graph_features.errors import InvalidInputError
from graph_features.tuples import TransactionColumns
from serving import openapi
from serving.api import DecisionsReply, ModelName, PredictReply, PredictRequest, Routes, Score
from serving.assemble import decision_batch, scores_of
from serving.auth import needs
from serving.keys import Scope
from serving.models import LoadedModel
from serving.online import instant
from serving.parse import check_batch, decode, read_body
from serving.problems import NotFoundError, request_id
from serving.replies import json_reply
from serving.services import Services, services_of

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
    check_batch("transactions", asked.transactions, services.settings.max_batch)
    scored_at_ms = services.clock_ms()
    rows = services.payments.transactions(asked.transactions, now_ms=scored_at_ms)
    model = services.follower.require()
    parsed = time.perf_counter()
    columns = TransactionColumns.from_arrow(rows.table)
    sheet = await services.predictor.score(model, columns, explain=asked.explain)
    ids = rows.table["transaction_id"].to_pylist()
    scores = scores_of(sheet, ids, model)
    scored = time.perf_counter()
    kept = _sampled(services.settings.decision_sample, len(sheet))
    if kept is None or kept:
        batch = decision_batch(
            sheet, rows.table, scores, model, request_id=request_id(request), scored_at_ms=scored_at_ms, kept=kept
        )
        await asyncio.wrap_future(services.decisions.write_batch(batch))
    done = time.perf_counter()
    timing = {
        "parse": (parsed - begun) * 1e3,
        **sheet.stage_ms,
        "score": (scored - parsed) * 1e3,
        "record": (done - scored) * 1e3,
        "total": (done - begun) * 1e3,
    }
    _count(services, scores, model, timing)
    return json_reply(
        PredictReply(
            model=ModelName(name=model.ref.name, version=model.ref.version, alias=model.ref.alias),
            scores=scores,
            routes=Routes(feature_engineering=sheet.engineered, inference=len(sheet)),
            timing_ms={name: round(value, 3) for name, value in timing.items()},
            request_id=request_id(request),
            notices=rows.notices,
        )
    )


def _sampled(share: float, count: int) -> list[int] | None:
    """Positions of the payments whose decision is recorded; None is all."""
    return None if share >= 1 else [at for at in range(count) if random.random() < share]


def _count(services: Services, scores: list[Score], model: LoadedModel, timing: dict[str, float]) -> None:
    metrics = services.metrics
    for stage, value in timing.items():
        metrics.stage_seconds.labels(stage).observe(value / 1e3)
    flagged = sum(score.decision == "flag" for score in scores)
    for decision, count in (("flag", flagged), ("pass", len(scores) - flagged)):
        metrics.scores.labels(model.ref.version, decision).inc(count)
    for score in scores:
        for item in score.degraded:
            metrics.degraded.labels(item.view, item.reason).inc()


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
