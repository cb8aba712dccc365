"""Payments and scores as tensors of the Open Inference Protocol (V2), as JSON and with its binary tensor extension."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np

from graph_features.errors import InvalidInputError
from serving.api import Score, Transaction
from serving.api_v2 import InferOutput, InferRequest, InferTensor
from serving.parse import decode
from serving.problems import TooLargeError

LENGTH_HEADER = "inference-header-content-length"
"""Bytes of a body that are JSON; binary tensors follow."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBERS: dict[str, np.dtype[Any]] = {
    "FP64": np.dtype("<f8"),
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
    "INT32": np.dtype("<i4"),
}
_TEXT, _MONEY, _TIME, _DEGREES = ("BYTES",), ("BYTES", "FP64", "INT64", "INT32"), ("BYTES", "INT64"), ("FP64", "FP32")
INPUTS: dict[str, tuple[str, ...]] = {
    "transaction_id": _TEXT,
    "event_timestamp": _TIME,
    "sender_id": _TEXT,
    "receiver_id": _TEXT,
    "amount": _MONEY,
    "currency": _TEXT,
    "channel": _TEXT,
    "device_id": _TEXT,
    "card_id": _TEXT,
    "ip": _TEXT,
    "sender_country": _TEXT,
    "receiver_country": _TEXT,
    "sender_lat": _DEGREES,
    "sender_lon": _DEGREES,
    "receiver_lat": _DEGREES,
    "receiver_lon": _DEGREES,
}
"""A tensor per field of a payment, one element per payment, with the types that it may have."""

OUTPUTS: dict[str, str] = {"fraud_score": "FP64", "decision": "BYTES", "threshold": "FP64", "degraded": "BOOL"}
"""What is answered per payment. `degraded` is whether the score had to do without something."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request for scores: the payments, and the outputs wanted with whether each is to be binary."""

    payments: list[Transaction]
    outputs: dict[str, bool]
    id: str | None


def read_request(body: bytes, header_length: str | None, *, limit: int) -> Asked:
    """Decode a request; raise InvalidInputError or TooLargeError naming the tensor or the payment's field."""
    head, tail = _parts(body, header_length)
    request = decode(head, InferRequest)
    columns: dict[str, list[Any]] = {}
    for at, tensor in enumerate(request.inputs):
        where = f"inputs[{at}]"
        _check(where, tensor, columns)
        if len(columns) == 0 and tensor.shape[0] > limit:
            raise TooLargeError(field=f"{where}.shape", expected=f"at most {limit} payments", got=tensor.shape)
        values, tail = _values(where, tensor, tail)
        columns[tensor.name] = _plain(tensor, values)
    if tail:
        raise InvalidInputError(field="body", expected="tensors that fill it", got=f"{len(tail)} bytes more")
    return Asked(payments=_payments(columns), outputs=_wanted(request), id=request.id)


def _parts(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    length = int(header_length) if header_length.isdecimal() and len(header_length) < 12 else len(body) + 1
    if length > len(body):
        raise InvalidInputError(field=LENGTH_HEADER, expected="a length within the body's", got=header_length)
    return body[:length], body[length:]


def _check(where: str, tensor: InferTensor, columns: Mapping[str, list[Any]]) -> None:
    if tensor.name not in INPUTS:
        raise InvalidInputError(field=f"{where}.name", expected=f"one of {', '.join(INPUTS)}", got=tensor.name)
    if tensor.name in columns:
        raise InvalidInputError(field=f"{where}.name", expected="each input once", got=tensor.name)
    kinds = INPUTS[tensor.name]
    if tensor.datatype not in kinds:
        raise InvalidInputError(field=f"{where}.datatype", expected=" or ".join(kinds), got=tensor.datatype)
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]) or tensor.shape[0] < 1:
        raise InvalidInputError(field=f"{where}.shape", expected="[N] or [N, 1]", got=tensor.shape)
    count = len(next(iter(columns.values()), ()))
    if columns and tensor.shape[0] != count:
        raise InvalidInputError(field=f"{where}.shape", expected=f"[{count}] as of the others", got=tensor.shape)


def _values(where: str, tensor: InferTensor, tail: bytes) -> tuple[list[Any], bytes]:
    """The elements of a tensor, and what is left of the binary part."""
    count = tensor.shape[0]
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        values = _flat(tensor.data if isinstance(tensor.data, list) else [])
        if len(values) != count:
            raise InvalidInputError(field=f"{where}.data", expected=f"{count} elements", got=f"{len(values)} elements")
        return values, tail
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail):
        expected = f"at most the {len(tail)} bytes that are left"
        raise InvalidInputError(field=f"{where}.parameters.binary_data_size", expected=expected, got=size)
    content = tail[:size]
    found = _texts(content) if tensor.datatype == "BYTES" else _numbers(content, _NUMBERS[tensor.datatype])
    if found is None or len(found) != count:
        raise InvalidInputError(field=f"{where}.data", expected=f"{count} elements of {tensor.datatype}", got=content)
    return found, tail[size:]


def _flat(data: list[Any]) -> list[Any]:
    """JSON may nest elements as the shape does."""
    return [value[0] if isinstance(value, list) and len(value) == 1 else value for value in data]


def _numbers(content: bytes, kind: np.dtype[Any]) -> list[Any] | None:
    return np.frombuffer(content, kind).tolist() if len(content) % kind.itemsize == 0 else None


def _texts(content: bytes) -> list[Any] | None:
    """Elements, each behind its length in four bytes, little-endian."""
    values: list[Any] = []
    at = 0
    while at < len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        if at + 4 > len(content) or end > len(content):
            return None
        try:
            values.append(content[at + 4 : end].decode())
        except UnicodeDecodeError:
            return None
        at = end
    return values


def _plain(tensor: InferTensor, values: list[Any]) -> list[Any]:
    """Elements as a request to /predict has them. A tensor has no gaps: empty text and NaN stand for none."""
    if tensor.name == "event_timestamp" and tensor.datatype == "INT64":
        return [_instant(value) for value in values]
    return [None if value == "" or (isinstance(value, float) and math.isnan(value)) else value for value in values]


def _instant(value: Any) -> Any:
    """Epoch milliseconds as RFC 3339; what is none stays as it is, to be refused as such."""
    try:
        moment = _EPOCH + timedelta(milliseconds=value)
    except (TypeError, OverflowError):
        return value
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Payments(msgspec.Struct, frozen=True):
    transactions: list[Transaction]


def _payments(columns: Mapping[str, list[Any]]) -> list[Transaction]:
    """Through the decoder of /predict, so that both refuse the same, in the same words."""
    rows = [
        {name: value for name, value in zip(columns, values, strict=True) if value is not None}
        for values in zip(*columns.values(), strict=True)
    ]
    return decode(msgspec.json.encode({"transactions": rows}), _Payments).transactions


def _wanted(request: InferRequest) -> dict[str, bool]:
    everything = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return dict.fromkeys(OUTPUTS, everything)
    wanted: dict[str, bool] = {}
    for at, output in enumerate(request.outputs):
        if output.name not in OUTPUTS:
            expected = f"one of {', '.join(OUTPUTS)}"
            raise InvalidInputError(field=f"outputs[{at}].name", expected=expected, got=output.name)
        wanted[output.name] = output.parameters.get("binary_data", everything) is True
    return wanted


_READ: dict[str, Callable[[Score], Any]] = {
    "fraud_score": lambda score: score.fraud_score,
    "decision": lambda score: score.decision,
    "threshold": lambda score: score.threshold,
    "degraded": lambda score: bool(score.degraded),
}


def outputs_of(scores: Sequence[Score], wanted: Mapping[str, bool]) -> tuple[list[InferOutput], bytes]:
    """The tensors of a reply, and those that are binary, one behind the other."""
    tensors: list[InferOutput] = []
    tail = b""
    for name, binary in wanted.items():
        values = [_READ[name](score) for score in scores]
        content = _packed(values, OUTPUTS[name]) if binary else b""
        tail += content
        tensors.append(
            InferOutput(
                name=name,
                datatype=OUTPUTS[name],
                shape=[len(values)],
                **({"parameters": {"binary_data_size": len(content)}} if binary else {"data": values}),
            )
        )
    return tensors, tail


def _packed(values: list[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.array(values, np.bool_ if datatype == "BOOL" else np.dtype("<f8")).tobytes()
