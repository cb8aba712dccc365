"""What requests and replies of the Open Inference Protocol (V2) look like; see serving.api."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct


class InferTensor(Struct, frozen=True, kw_only=True):
    """An input of the Open Inference Protocol: a field of the payments, one element per payment."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class InferWanted(Struct, frozen=True, kw_only=True):
    """An output that is wanted."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(Struct, frozen=True, kw_only=True):
    """Payments to score, as the tensors that GET /v2/models/{name} names; all outputs where none are named."""

    inputs: Annotated[list[InferTensor], Meta(min_length=1, max_length=64)]
    outputs: list[InferWanted] = []
    id: Annotated[str, Meta(max_length=128)] | None = None
    parameters: dict[str, Any] = {}


class InferOutput(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An output, one element per payment."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class InferReply(Struct, frozen=True, kw_only=True):
    """Outputs in the order of the request."""

    model_name: str
    model_version: str
    id: str
    outputs: list[InferOutput]


class ServerMetadata(Struct, frozen=True, kw_only=True):
    """The server in terms of the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(Struct, frozen=True, kw_only=True):
    """Whether the process answers."""

    live: bool


class ServerReady(Struct, frozen=True, kw_only=True):
    """Whether requests should be sent here."""

    ready: bool


class TensorMetadata(Struct, frozen=True, kw_only=True):
    """A tensor's name, type and shape; -1 is any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct, frozen=True, kw_only=True):
    """A model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(Struct, frozen=True, kw_only=True):
    """Whether a model can be asked."""

    name: str
    ready: bool
