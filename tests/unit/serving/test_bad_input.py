"""Everything that a client may get wrong has its documented answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

BASE = {
    "transaction_id": "t1",
    "event_timestamp": "2023-11-14T22:13:20Z",
    "sender_id": "a",
    "receiver_id": "b",
    "amount": 129.9,
    "currency": "EUR",
}


def body(**changes: Any) -> bytes:
    row = {name: value for name, value in {**BASE, **changes}.items() if value is not ...}
    return json.dumps({"transactions": [row]}).encode()


def raw(text: str) -> bytes:
    return b'{"transactions":[' + text.encode() + b"]}"


def with_amount(text: str) -> bytes:
    return body(amount=0).replace(b'"amount": 0', b'"amount": ' + text.encode())


BAD = {
    "malformed JSON": (b'{"transactions": [', "body"),
    "empty body": (b"", "body"),
    "not an object": (b"[]", "body"),
    "deep nesting": (b"[" * 100_000, "body"),
    "deep nesting inside": (b'{"transactions":' + b"[" * 100_000, "transactions[0]"),
    "non-UTF-8 bytes": (body().replace(b'"a"', b'"\xff\xfe"'), "body"),
    "half a surrogate pair": (body().replace(b'"a"', b'"\\ud800"'), "body"),
    "no transactions": (b"{}", "transactions"),
    "unknown top field": (b'{"foo": 1, "transactions": []}', "foo"),
    "transactions of a wrong type": (b'{"transactions": {}}', "transactions"),
    "an empty list": (b'{"transactions": []}', "transactions"),
    "null row": (raw("null"), "transactions[0]"),
    "missing id": (body(transaction_id=...), "transactions[0].transaction_id"),
    "missing amount": (body(amount=...), "transactions[0].amount"),
    "unknown field": (body(colour="red"), "transactions[0].colour"),
    "id as a number": (body(sender_id=7), "transactions[0].sender_id"),
    "empty id": (body(sender_id=""), "transactions[0].sender_id"),
    "id of 129 characters": (body(sender_id="x" * 129), "transactions[0].sender_id"),
    "id of 10,000 characters": (body(transaction_id="x" * 10_000), "transactions[0].transaction_id"),
    "control character in an id": (body(receiver_id="a\u0000b"), "transactions[0].receiver_id"),
    "amount as a list": (body(amount=[1]), "transactions[0].amount"),
    "amount as a boolean": (body(amount=True), "transactions[0].amount"),
    "NaN": (with_amount("NaN"), "transactions[0].amount"),
    "infinity": (with_amount("Infinity"), "transactions[0].amount"),
    "minus infinity": (with_amount("-Infinity"), "transactions[0].amount"),
    "NaN as text": (body(amount="NaN"), "transactions[0].amount"),
    "infinity as text": (body(amount="inf"), "transactions[0].amount"),
    "an amount beyond all numbers": (with_amount("1e400"), "transactions[0].amount"),
    "an exponent beyond all memory": (with_amount("1e999999999"), "transactions[0].amount"),
    "a tiny exponent": (with_amount("1e-999999999"), "transactions[0].amount"),
    "negative amount": (body(amount=-1), "transactions[0].amount"),
    "too many decimals": (body(amount="1.234"), "transactions[0].amount"),
    "too large amount": (body(amount="99999999999999999"), "transactions[0].amount"),
    "words for an amount": (body(amount="ten"), "transactions[0].amount"),
    "currency without a rate": (body(currency="JPY"), "transactions[0].currency"),
    "currency in lower case": (body(currency="eur"), "transactions[0].currency"),
    "naive timestamp": (body(event_timestamp="2023-11-14T22:13:20"), "transactions[0].event_timestamp"),
    "timestamp as a number": (body(event_timestamp=1_700_000_000), "transactions[0].event_timestamp"),
    "year 9999": (body(event_timestamp="9999-01-01T00:00:00Z"), "transactions[0].event_timestamp"),
    "year 2100": (body(event_timestamp="2100-01-01T00:00:00Z"), "transactions[0].event_timestamp"),
    "year 1969": (body(event_timestamp="1969-12-31T23:59:59Z"), "transactions[0].event_timestamp"),
    "a future that has not come": (body(event_timestamp="2098-01-01T00:00:00Z"), "transactions[0].event_timestamp"),
    "thirtieth of February": (body(event_timestamp="2023-02-30T00:00:00Z"), "transactions[0].event_timestamp"),
    "no time at all": (body(event_timestamp="yesterday"), "transactions[0].event_timestamp"),
    "latitude of 91": (body(sender_lat=91.0), "transactions[0].sender_lat"),
    "latitude that is not a number": (body(sender_lat=1).replace(b": 1}", b": NaN}"), "transactions[0].sender_lat"),
    "country in words": (body(sender_country="Germany"), "transactions[0].sender_country"),
    "explain as text": (b'{"transactions": [], "explain": "yes"}', "transactions"),
}


@pytest.mark.parametrize("name", list(BAD))
@pytest.mark.parametrize("path", ["/predict", "/transactions"])
def test_bad_input_is_a_400_that_names_the_field(shared_client: Any, name: str, path: str) -> None:
    """Bad input is answered with 400 and a problem that names field, expectation and what came, on every route."""
    content, field = BAD[name]
    if path == "/transactions" and name == "explain as text":
        content = b'{"transactions": []}'
    reply = shared_client.post(path, content=content)
    problem = reply.json()
    assert (reply.status_code, problem["field"]) == (400, field), problem
    assert reply.headers["content-type"] == "application/problem+json"
    assert problem["status"] == 400
    assert problem["expected"]
    assert len(problem["got"]) <= 80
    assert problem["detail"].startswith(f"{field}: expected ")
    assert problem["request_id"] == reply.headers["x-request-id"]


def test_bad_amounts_take_no_time(shared_client: Any) -> None:
    """An amount with a huge exponent must not be expanded into digits."""
    import time

    begun = time.monotonic()
    assert shared_client.post("/predict", content=with_amount("1e999999999")).status_code == 400
    assert time.monotonic() - begun < 2


def test_one_more_than_the_limit_is_413(run_app: Any) -> None:
    """A batch one above the limit is 413, one at the limit is not."""
    client, _ = run_app(max_batch=3)
    rows = [{**BASE, "transaction_id": f"t{at}"} for at in range(4)]
    reply = client.post("/predict", json={"transactions": rows})
    assert (reply.status_code, reply.json()["field"]) == (413, "transactions")
    assert (reply.json()["expected"], reply.json()["got"]) == ("at most 3 items", "4")
    assert client.post("/predict", json={"transactions": rows[:3]}).status_code == 200


def test_body_above_the_limit_is_413(run_app: Any) -> None:
    """A body above the limit is 413, whether its length was declared or only comes out while it is read."""

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 1_000

    client, _ = run_app(max_body_bytes=2_000)
    declared = client.post("/predict", content=b"x" * 2_001)
    streamed = client.post("/predict", content=stream())
    assert [declared.status_code, streamed.status_code] == [413, 413]
    assert declared.json()["field"] == "body"


def test_duplicate_ids_in_a_batch_are_refused(shared_client: Any) -> None:
    """The same transaction id twice in one batch is 400 and names both places."""
    reply = shared_client.post("/predict", json={"transactions": [BASE, {**BASE, "amount": 1}]})
    assert reply.status_code == 400
    assert reply.json()["field"] == "transactions[1].transaction_id"
    assert "transactions[0]" in reply.json()["expected"]


def test_second_bad_row_is_named(shared_client: Any) -> None:
    """The position in the field's name must be that of the bad row."""
    reply = shared_client.post(
        "/predict", json={"transactions": [BASE, {**BASE, "transaction_id": "t2", "amount": -5}]}
    )
    assert reply.json()["field"] == "transactions[1].amount"


def test_secret_values_are_not_repeated(shared_client: Any) -> None:
    """A refused card number must not come back in the problem when it is kept as a hash."""
    reply = shared_client.post("/predict", content=body(card_id="4" * 129))
    assert reply.status_code == 400
    assert reply.json()["field"] == "transactions[0].card_id"


BAD_QUERIES = {
    "/features": "ids",
    "/features?ids=": "ids",
    "/features?ids=a&entity=card": "entity",
    "/features?ids=a&entity=pair": "ids",
    "/features?ids=" + "x" * 10_000: "ids",
    "/features?ids=a&features=nothing:sent": "features",
    "/features?ids=a&features=activity:nothing": "features",
    "/features?ids=a&features=pair:count": "features",
    "/features?ids=a&service=nothing": "feature_service",
    "/features?ids=a&service=account_features&features=activity:sent": "service",
    "/jobs?limit=0": "limit",
    "/jobs?limit=many": "limit",
    "/jobs/not-a-uuid": "job_id",
    "/decisions/" + "x" * 129: "transaction_id",
}


@pytest.mark.parametrize("url", list(BAD_QUERIES))
def test_bad_queries_are_400(shared_client: Any, url: str) -> None:
    """Unknown feature names and bad parameters are 400 and named."""
    reply = shared_client.get(url)
    assert (reply.status_code, reply.json()["field"]) == (400, BAD_QUERIES[url]), reply.json()


BAD_FEAST = {
    b"{}": "entities",
    b'{"entities": {}}': "entities",
    b'{"entities": {"account_id": []}, "features": ["activity:sent"]}': "entities.account_id",
    b'{"entities": {"account_id": [1]}, "features": ["activity:sent"]}': "entities.account_id",
    b'{"entities": {"account_id": ["a"]}}': "features",
    b'{"entities": {"account_id": ["a"]}, "features": ["x:y"]}': "features",
    b'{"entities": {"sender_id": ["a"]}, "features": ["activity:sent"]}': "entities",
    b'{"entities": {"account_id": ["a"], "sender_id": []}, "features": ["activity:sent"]}': "entities.sender_id",
    b'{"entities": {"account_id": ["a"]}, "feature_service": "nothing"}': "feature_service",
    b'{"entities": {"account_id": ["a"]}, "features": ["transaction_features:amount"]}': "entities",
}


@pytest.mark.parametrize("content", list(BAD_FEAST))
def test_bad_feature_requests_are_400(shared_client: Any, content: bytes) -> None:
    """What is wrong with a request in Feast's form is named too."""
    reply = shared_client.post("/get-online-features", content=content)
    assert (reply.status_code, reply.json()["field"]) == (400, BAD_FEAST[content]), reply.json()


@pytest.mark.parametrize(
    ("path", "row", "field"),
    [
        ("statuses", {"transaction_id": "t1", "status": "lost", "status_timestamp": "2023-11-14T22:13:20Z"}, "status"),
        (
            "statuses",
            {"transaction_id": "t1", "status": "failed", "status_timestamp": "2023-11-14"},
            "status_timestamp",
        ),
        ("labels", {"transaction_id": "t1", "is_fraud": 1, "label_timestamp": "2023-11-14T22:13:20Z"}, "is_fraud"),
        ("labels", {"transaction_id": "t1", "is_fraud": True}, "label_timestamp"),
        (
            "labels",
            {"transaction_id": "", "is_fraud": True, "label_timestamp": "2023-11-14T22:13:20Z"},
            "transaction_id",
        ),
    ],
)
def test_bad_statuses_and_labels_are_400(shared_client: Any, path: str, row: dict[str, Any], field: str) -> None:
    """Statuses and labels are checked as payments are."""
    reply = shared_client.post(f"/{path}", json={path: [row]})
    assert (reply.status_code, reply.json()["field"]) == (400, f"{path}[0].{field}"), reply.json()


def test_unknown_routes_and_methods_are_problems(shared_client: Any) -> None:
    """A path that does not exist is 404 and a wrong method 405, both as problems."""
    missing, wrong = shared_client.get("/nothing"), shared_client.get("/predict")
    assert [missing.status_code, wrong.status_code] == [404, 405]
    assert missing.headers["content-type"] == wrong.headers["content-type"] == "application/problem+json"
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "parameters", [{"as_of": "\u0000"}, {"as_of": "never"}, {"views": 7}, {"nothing": 1}, {"last": "9" * 30 + "d"}]
)
def test_bad_job_parameters_are_400(shared_client: Any, parameters: dict[str, Any]) -> None:
    """What a job cannot take is refused before it is queued."""
    reply = shared_client.post("/jobs", json={"kind": "backfill", "parameters": parameters})
    assert reply.status_code == 400, reply.text
    assert reply.json()["field"].startswith("parameters")


def test_ids_with_slashes_and_control_characters(shared_client: Any) -> None:
    """A decision is looked up by any id; control characters are refused."""
    assert shared_client.get("/decisions/a/b%2Fc").status_code == 404
    assert shared_client.get("/decisions/a%00b").json()["field"] == "transaction_id"
