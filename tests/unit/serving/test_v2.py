"""The Open Inference Protocol: metadata, health, tensors as JSON and as bytes, and every way to get them wrong."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_features.errors import InvalidInputError
from serving.tensors import INPUTS, read_request

INFER = "/v2/models/ringfence/infer"


def tensor(name: str, datatype: str, *data: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": list(data), **more}


def inputs(count: int = 1) -> list[dict[str, Any]]:
    """The payments t0, t1, ... of 129.90 EUR."""
    return [
        tensor("transaction_id", "BYTES", *(f"t{at}" for at in range(count))),
        tensor("event_timestamp", "BYTES", *["2023-11-14T22:13:20Z"] * count),
        tensor("sender_id", "BYTES", *["a"] * count),
        tensor("receiver_id", "BYTES", *(f"r{at}" for at in range(count))),
        tensor("amount", "FP64", *[129.9] * count),
        tensor("currency", "BYTES", *["EUR"] * count),
    ]


def binary(parts: list[dict[str, Any]]) -> tuple[bytes, dict[str, str]]:
    """The same request with every tensor behind the JSON, and the header that says where they begin."""
    tail, described = b"", []
    for part in parts:
        if part["datatype"] == "BYTES":
            texts = [value.encode() for value in part["data"]]
            content = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        else:
            content = np.array(part["data"], {"FP64": "<f8", "INT64": "<i8", "FP32": "<f4"}[part["datatype"]]).tobytes()
        tail += content
        rest = {name: part[name] for name in ("name", "datatype", "shape")}
        described.append({**rest, "parameters": {"binary_data_size": len(content)}})
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    return head + tail, {"Inference-Header-Content-Length": str(len(head))}


def test_metadata_and_health(run_app: Any) -> None:
    """Server and model say what they are; a name or version that is not in use is 404, with the protocol's `error`."""
    client, _ = run_app()
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for url in ("/v2/models/ringfence", "/v2/models/ringfence/versions/1"):
        found = client.get(url).json()
        assert (found["name"], found["versions"]) == ("ringfence", ["1"])
        assert [item["name"] for item in found["inputs"]] == list(INPUTS)
        assert client.get(f"{url}/ready").json() == {"name": "ringfence", "ready": True}
    for url in ("/v2/models/other", "/v2/models/ringfence/versions/2/ready"):
        reply = client.get(url)
        assert (reply.status_code, reply.json()["error"]) == (404, reply.json()["detail"])


def test_without_a_model_nothing_is_ready(run_app: Any) -> None:
    """Before a model is promoted readiness is 503 and scoring says what to do."""
    client, _ = run_app(model=False)
    assert client.get("/v2/health/ready").status_code == 503
    reply = client.post(INFER, json={"inputs": inputs()})
    assert (reply.status_code, "promote" in reply.json()["error"]) == (503, True)


def test_scores_are_those_of_predict(run_app: Any, payment: Any) -> None:
    """The same payments get the same scores by tensors, as JSON, nested, as bytes, and leave the same records."""
    client, _ = run_app()
    rows = [{**payment, "transaction_id": f"t{at}", "receiver_id": f"r{at}"} for at in range(5)]
    expected = [score["fraud_score"] for score in client.post("/predict", json={"transactions": rows}).json()["scores"]]
    reply = client.post(INFER, json={"inputs": inputs(5), "id": "mine"})
    body = reply.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("ringfence", "1", "mine")
    by_name = {output["name"]: output for output in body["outputs"]}
    assert list(by_name) == ["fraud_score", "decision", "threshold", "degraded"]
    assert (by_name["fraud_score"]["data"], by_name["fraud_score"]["shape"]) == (expected, [5])
    assert by_name["degraded"]["data"] == [False] * 5
    nested = [{**part, "shape": [5, 1], "data": [[value] for value in part["data"]]} for part in inputs(5)]
    only = client.post(INFER, json={"inputs": nested, "outputs": [{"name": "fraud_score"}]}).json()["outputs"]
    assert only == [by_name["fraud_score"]]
    assert len(client.get("/decisions/t3").json()["decisions"]) == 3
    content, headers = binary(inputs(5))
    packed = client.post(INFER, content=content, headers=headers)
    head = json.loads(packed.content[: int(packed.headers["inference-header-content-length"])])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 40}
    tail = packed.content[-sum(item["parameters"]["binary_data_size"] for item in head["outputs"]) :]
    assert np.frombuffer(tail[:40], "<f8").tolist() == expected
    assert tail[40:48] == b"\x04\0\0\0pass" or tail[40:48] == b"\x04\0\0\0flag"


def test_times_amounts_and_gaps_in_every_type(run_app: Any) -> None:
    """Times as epoch milliseconds, amounts as text or integers, empty text and NaN for nothing."""
    client, _ = run_app()
    parts = [part for part in inputs(1) if part["name"] not in ("event_timestamp", "amount")]
    parts += [
        tensor("event_timestamp", "INT64", 1_700_000_000_123),
        tensor("amount", "BYTES", "12.50"),
        tensor("channel", "BYTES", ""),
        tensor("sender_lat", "FP64", None),
    ]
    assert client.post(INFER, json={"inputs": parts}).status_code == 200
    (record,) = client.get("/decisions/t0").json()["decisions"]
    assert record["event_timestamp"] == "2023-11-14T22:13:20.123Z"
    assert record["inputs"]["amount"] == 1250
    assert "channel" not in record["inputs"]
    content, headers = binary([*inputs(1), tensor("sender_lat", "FP64", float("nan"))])
    assert client.post(INFER, content=content, headers=headers).status_code == 200


def changed(at: int, **changes: Any) -> dict[str, Any]:
    parts = inputs(2)
    parts[at] = {**parts[at], **changes}
    return {"inputs": parts}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown tensor": (changed(0, name="colour"), "inputs[0].name"),
    "tensor twice": (changed(1, name="transaction_id"), "inputs[1].name"),
    "wrong type": (changed(4, datatype="FP16"), "inputs[4].datatype"),
    "three dimensions": (changed(0, shape=[2, 1, 1]), "inputs[0].shape"),
    "no payments": (changed(0, shape=[0], data=[]), "inputs[0].shape"),
    "another length": (changed(2, shape=[3], data=["a", "b", "c"]), "inputs[2].shape"),
    "too few elements": (changed(0, data=["t0"]), "inputs[0].data"),
    "no elements": (changed(0, data=None), "inputs[0].data"),
    "binary without bytes": (changed(0, parameters={"binary_data_size": 4}), "inputs[0].parameters.binary_data_size"),
    "missing tensor": ({"inputs": inputs(2)[1:]}, "transactions[0].transaction_id"),
    "bad value": (changed(4, data=[1.0, -2.0]), "transactions[1].amount"),
    "the same payment twice": (changed(0, data=["t0", "t0"]), "transactions[1].transaction_id"),
    "time out of range": (changed(1, datatype="INT64", data=[0, 10**18]), "transactions[1].event_timestamp"),
    "unknown output": ({**changed(0), "outputs": [{"name": "colour"}]}, "outputs[0].name"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_tensors_are_named(shared_client: Any, name: str) -> None:
    """Each mistake is 400 and names the tensor, or the payment's field, at fault."""
    body, where = WRONG[name]
    reply = shared_client.post(INFER, json=body)
    assert (reply.status_code, reply.json()["field"]) == (400, where), reply.text
    assert reply.json()["error"] == reply.json()["detail"]


def test_too_many_payments_are_413(run_app: Any) -> None:
    """The limit on payments holds here too, before a tensor is read."""
    client, _ = run_app(max_batch=3)
    assert client.post(INFER, json={"inputs": inputs(4)}).status_code == 413


@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda size, tail: (
                json.dumps({"inputs": [{**tensor("sender_id", "BYTES"), "shape": [1], "parameters": size}]}).encode()
                + tail
            ),
            st.fixed_dictionaries({"binary_data_size": st.integers(-2, 40) | st.none() | st.text(max_size=3)}),
            st.binary(max_size=40),
        ),
    ),
    length=st.none() | st.integers(-1, 300).map(str) | st.text(max_size=5),
)
def test_no_bytes_make_it_fail(body: bytes, length: str | None) -> None:
    """Whatever comes, it is read or refused as bad input."""
    with suppress(InvalidInputError):
        assert read_request(body, length, limit=10).payments
