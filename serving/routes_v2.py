"""The Open Inference Protocol (V2): scores for clients that know KServe, Triton or MLServer."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Request, Response

from serving import openapi
from serving.api_v2 import (
    InferReply,
    InferRequest,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from serving.auth import needs
from serving.keys import Scope
from serving.models import LoadedModel
from serving.parse import read_body
from serving.problems import NotFoundError, request_id
from serving.replies import json_reply
from serving.routes_ops import not_ready
from serving.services import Services, services_of
from serving.tensors import INPUTS, LENGTH_HEADER, OUTPUTS, outputs_of, read_request

router = APIRouter(tags=["open inference protocol"])

Name = Annotated[str, Path(max_length=256, description="The registered model, as /v2/models of it answers.")]
Version = Annotated[str, Path(max_length=64, description="The version in use.")]

EXAMPLE = {
    "inputs": [
        {"name": "transaction_id", "datatype": "BYTES", "shape": [1], "data": ["T-1"]},
        {"name": "event_timestamp", "datatype": "BYTES", "shape": [1], "data": ["2026-03-01T12:00:00Z"]},
        {"name": "sender_id", "datatype": "BYTES", "shape": [1], "data": ["C1"]},
        {"name": "receiver_id", "datatype": "BYTES", "shape": [1], "data": ["M1"]},
        {"name": "amount", "datatype": "FP64", "shape": [1], "data": [129.9]},
        {"name": "currency", "datatype": "BYTES", "shape": [1], "data": ["EUR"]},
    ]
}


@router.get("/v2", responses=openapi.same(ServerMetadata, 200), response_class=Response)
async def server(request: Request) -> Response:
    """The server's name, version and extensions of the protocol."""
    return json_reply(ServerMetadata(name="ringfence", version=request.app.version, extensions=["binary_tensor_data"]))


@router.get("/v2/health/live", responses=openapi.same(ServerLive, 200), response_class=Response)
async def live() -> Response:
    """Whether the process answers at all."""
    return json_reply(ServerLive(live=True))


@router.get("/v2/health/ready", responses=openapi.same(ServerReady, 200, 503), response_class=Response)
async def ready(request: Request) -> Response:
    """Whether requests should be sent here, as /health/ready."""
    reason = await not_ready(services_of(request))
    return json_reply(ServerReady(ready=reason is None), 200 if reason is None else 503)


_MODEL = openapi.responses(ModelMetadata, 400, 404)
_READY = {**openapi.same(ModelReady, 200, 503), **openapi.problems(400, 404)}


@router.get("/v2/models/{name}", dependencies=[needs(Scope.PREDICT)], responses=_MODEL, response_class=Response)
@router.get(
    "/v2/models/{name}/versions/{version}",
    dependencies=[needs(Scope.PREDICT)],
    responses=_MODEL,
    response_class=Response,
)
async def model(request: Request, name: Name, version: Version | None = None) -> Response:
    """The model in use: its inputs, of which the first six are needed, and its outputs."""
    loaded = _model(services_of(request), name, version)
    return json_reply(
        ModelMetadata(
            name=loaded.ref.name,
            versions=[loaded.ref.version],
            platform="onnx_onnxruntime",
            inputs=[TensorMetadata(name=name, datatype=kinds[0], shape=[-1]) for name, kinds in INPUTS.items()],
            outputs=[TensorMetadata(name=name, datatype=kind, shape=[-1]) for name, kind in OUTPUTS.items()],
        )
    )


@router.get("/v2/models/{name}/ready", dependencies=[needs(Scope.PREDICT)], responses=_READY, response_class=Response)
@router.get(
    "/v2/models/{name}/versions/{version}/ready",
    dependencies=[needs(Scope.PREDICT)],
    responses=_READY,
    response_class=Response,
)
async def model_ready(request: Request, name: Name, version: Version | None = None) -> Response:
    """Whether the model is in use and payments can be scored by it."""
    services = services_of(request)
    loaded = _model(services, name, version)
    reason = await not_ready(services)
    return json_reply(ModelReady(name=loaded.ref.name, ready=reason is None), 200 if reason is None else 503)


_INFER = openapi.responses(InferReply, 400, 404, 408, 413, 503)
_BODY = openapi.request_body(InferRequest, EXAMPLE)


@router.post(
    "/v2/models/{name}/infer",
    dependencies=[needs(Scope.PREDICT)],
    openapi_extra=_BODY,
    responses=_INFER,
    response_class=Response,
)
@router.post(
    "/v2/models/{name}/versions/{version}/infer",
    dependencies=[needs(Scope.PREDICT)],
    openapi_extra=_BODY,
    responses=_INFER,
    response_class=Response,
)
async def infer(request: Request, name: Name, version: Version | None = None) -> Response:
    """Score payments given as tensors, one element per payment; decisions are recorded as those of /predict."""
    services = services_of(request)
    begun = time.perf_counter()
    _model(services, name, version)
    body = await read_body(request, services.settings)
    asked = read_request(body, request.headers.get(LENGTH_HEADER), limit=services.settings.max_batch)
    done = await services.scoring.score(asked.payments, explain=False, request_id=request_id(request), begun=begun)
    tensors, tail = outputs_of(done.scores, asked.outputs)
    ref = done.model.ref
    reply = InferReply(
        model_name=ref.name,
        model_version=ref.version,
        id=asked.id or request_id(request),
        outputs=tensors,
    )
    if not tail:
        return json_reply(reply)
    head = msgspec.json.encode(reply)
    return Response(head + tail, media_type="application/octet-stream", headers={LENGTH_HEADER: str(len(head))})


def _model(services: Services, name: str, version: str | None) -> LoadedModel:
    """The model in use, if that is the one asked for."""
    if name != services.settings.model_name:
        raise NotFoundError(f"no model of that name: this server has {services.settings.model_name!r}")
    loaded = services.follower.require()
    if version is not None and version != loaded.ref.version:
        raise NotFoundError(f"that version is not in use: {loaded.ref.version} is")
    return loaded
