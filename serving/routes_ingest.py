"""POST /transactions, /statuses and /labels: to the record store first, then the graph and the features."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import msgspec
import pyarrow as pa
from fastapi import APIRouter, Query, Request, Response

from graph_features.errors import RingfenceError
from graph_features.schema import EntityKey
from graph_features.sources.base import MarkPending, WriteResult
from serving import openapi, traces
from serving.api import LabelsRequest, Rejected, StatusesRequest, TransactionsRequest, WriteReply
from serving.auth import needs
from serving.keys import Scope
from serving.parse import check_batch, decode, read_body
from serving.payments import Rows
from serving.problems import RejectedRowsError, request_id
from serving.replies import json_reply
from serving.routes_predict import EXAMPLE
from serving.services import Services, services_of

log = logging.getLogger("ringfence.serving.ingest")

router = APIRouter(tags=["ingest"])

Refresh = Annotated[
    Literal["sync", "async"],
    Query(description="sync replies when the features are online, async as soon as the rows are stored."),
]
T = TypeVar("T", bound=msgspec.Struct)
Write = Callable[[pa.Table, MarkPending], WriteResult]

_STATUS = {"transaction_id": "T-1", "status": "completed", "status_timestamp": "2026-03-01T12:00:05Z"}
_LABEL = {
    "transaction_id": "T-1",
    "is_fraud": True,
    "label_timestamp": "2026-03-08T09:00:00Z",
    "fraud_party": "receiver",
}


@router.post(
    "/transactions",
    dependencies=[needs(Scope.WRITE)],
    openapi_extra=openapi.request_body(TransactionsRequest, EXAMPLE),
    responses=openapi.responses(WriteReply, 400, 408, 409, 413, 503),
    response_class=Response,
)
async def transactions(request: Request, refresh: Refresh = "sync") -> Response:
    """Accept payments. The same id with the same content is known; with other content it is refused (409)."""
    services = services_of(request)
    asked = await _decoded(request, services, TransactionsRequest)
    check_batch("transactions", asked.transactions, services.settings.max_batch)
    rows = services.payments.transactions(asked.transactions, now_ms=services.clock_ms())
    return await _accept(request, services, "transactions", rows, services.stores.records.write_transactions, refresh)


@router.post(
    "/statuses",
    dependencies=[needs(Scope.WRITE)],
    openapi_extra=openapi.request_body(StatusesRequest, {"statuses": [_STATUS]}),
    responses=openapi.responses(WriteReply, 400, 408, 409, 413, 503),
    response_class=Response,
)
async def statuses(request: Request, refresh: Refresh = "sync") -> Response:
    """Accept what became of payments; a status of an unknown payment is refused (409)."""
    services = services_of(request)
    asked = await _decoded(request, services, StatusesRequest)
    check_batch("statuses", asked.statuses, services.settings.max_batch, key=("transaction_id", "status"))
    rows = services.payments.statuses(asked.statuses, now_ms=services.clock_ms())
    return await _accept(request, services, "statuses", rows, services.stores.records.write_statuses, refresh)


@router.post(
    "/labels",
    dependencies=[needs(Scope.WRITE)],
    openapi_extra=openapi.request_body(LabelsRequest, {"labels": [_LABEL]}),
    responses=openapi.responses(WriteReply, 400, 408, 409, 413, 503),
    response_class=Response,
)
async def labels(request: Request, refresh: Refresh = "sync") -> Response:
    """Accept labels, each with the time when it became known; a label of an unknown payment is refused (409)."""
    services = services_of(request)
    asked = await _decoded(request, services, LabelsRequest)
    check_batch("labels", asked.labels, services.settings.max_batch, key=("transaction_id", "label_timestamp"))
    rows = services.payments.labels(asked.labels, now_ms=services.clock_ms())
    return await _accept(request, services, "labels", rows, services.stores.records.write_labels, refresh)


async def _decoded(request: Request, services: Services, kind: type[T]) -> T:
    return decode(await read_body(request, services.settings), kind)


async def _accept(
    request: Request, services: Services, kind: str, rows: Rows, write: Write, refresh: Literal["sync", "async"]
) -> Response:
    begun = time.perf_counter()
    touched: list[EntityKey] = []

    def mark(keys: list[EntityKey]) -> None:
        services.stores.online.mark_pending(keys)
        touched.extend(keys)

    with traces.span("write", rows=rows.table.num_rows):
        result = await asyncio.to_thread(write, rows.table, mark)
    written = time.perf_counter()
    with traces.span("refresh", entities=len(touched)):
        refreshed = await _follow(services, kind, touched, refresh, begun)
    inserted = int(result.inserted.sum())
    known = len(result.inserted) - inserted - len(result.rejected)
    for outcome, count in (("inserted", inserted), ("known", known), ("rejected", len(result.rejected))):
        services.metrics.accepted.labels(kind, outcome).inc(count)
    if result.rejected:
        ids = rows.table["transaction_id"].to_pylist()
        refused = [
            Rejected(index=at, transaction_id=ids[at], reason=why) for at, why in sorted(result.rejected.items())
        ]
        raise RejectedRowsError(inserted=inserted, known=known, rejected=refused)
    timing = {"write": (written - begun) * 1e3, "refresh": (time.perf_counter() - written) * 1e3}
    return json_reply(
        WriteReply(
            inserted=inserted,
            known=known,
            sequence=result.max_seq,
            refreshed="done" if refreshed else "pending",
            timing_ms={name: round(value, 3) for name, value in timing.items()},
            request_id=request_id(request),
            notices=rows.notices,
        )
    )


async def _follow(services: Services, kind: str, touched: list[EntityKey], refresh: str, begun: float) -> bool:
    """Bring the graph and the features up to date; whether that is done by now. What was stored stays either way."""
    if not touched:
        return True
    work = asyncio.ensure_future(_renew(services, kind, touched, begun))
    if refresh == "sync":
        done, _ = await asyncio.wait([work], timeout=services.settings.refresh_timeout_ms / 1e3)
        if done:
            return work.result()
    services.later(work)
    return False


async def _renew(services: Services, kind: str, touched: list[EntityKey], begun: float) -> bool:
    deadline = asyncio.get_running_loop().time() + services.settings.refresh_timeout_ms / 1e3
    graph = services.graph_sync.run() if kind == "transactions" else asyncio.sleep(0)
    outcome, synced = await asyncio.gather(
        services.engineering.renew(touched, deadline=deadline), graph, return_exceptions=True
    )
    for failure in (outcome, synced):
        if isinstance(failure, RingfenceError):
            log.warning("not brought up to date", extra={"error": str(failure), "kind": kind})
        elif isinstance(failure, BaseException):
            raise failure
    if isinstance(outcome, BaseException) or isinstance(synced, BaseException):
        return False
    if not outcome.failed:
        services.metrics.freshness_seconds.observe(time.perf_counter() - begun)
    return not outcome.failed
