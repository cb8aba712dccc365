"""The REST API over a small world: what each route answers when all is well, and when something is not."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

WHEN = "2023-11-14T22:13:20Z"  # tiny.T0


def fill(world: Any, tiny: SimpleNamespace, *accounts: str) -> None:
    for account in accounts:
        world.online.put(tiny.ACTIVITY, (account,), tiny.T0 - 1_000, sent=3, mean=1.5, last=tiny_time())
        world.online.put(tiny.EXPOSURE, (account,), tiny.T0 - 1_000, frauds=1)
        world.online.put(tiny.RANKS, (account,), tiny.T0 - 1_000, rank=0.5)


def tiny_time() -> Any:
    from datetime import UTC, datetime

    return datetime(2023, 11, 14, 22, 0, 0, 250_000, tzinfo=UTC)


def rows(payment: dict[str, Any], count: int) -> list[dict[str, Any]]:
    return [{**payment, "transaction_id": f"t{at}", "receiver_id": f"r{at}"} for at in range(count)]


def test_predict_answers_in_request_order(run_app: Any, world: Any, tiny: SimpleNamespace, payment: Any) -> None:
    """Scores come in the order of the request, with the model, routes and times."""
    fill(world, tiny, "a", *(f"r{at}" for at in range(8)))
    client, _ = run_app()
    reply = client.post("/predict", json={"transactions": rows(payment, 8)})
    body = reply.json()
    assert reply.status_code == 200
    assert [score["transaction_id"] for score in body["scores"]] == [f"t{at}" for at in range(8)]
    assert body["model"] == {"name": "ringfence", "version": "1", "alias": "champion"}
    assert body["routes"] == {"feature_engineering": 0, "inference": 8}
    assert {"parse", "read", "build", "infer", "feature_engineering", "record", "total"} <= set(body["timing_ms"])
    first = body["scores"][0]
    assert 0 <= first["fraud_score"] <= 1
    assert first["decision"] == ("flag" if first["fraud_score"] >= first["threshold"] else "pass")
    assert first["features_as_of"] == {
        "sender": "2023-11-14T22:13:19Z",
        "receiver": "2023-11-14T22:13:19Z",
        "pair": None,
        "reverse": None,
    }
    assert first["degraded"] == []
    assert "explanation" not in first


def test_unknown_account_is_scored_and_said_so(run_app: Any, payment: Any) -> None:
    """Accounts that were never seen get a score, and the reply names them."""
    client, _ = run_app()
    (score,) = client.post("/predict", json={"transactions": [payment]}).json()["scores"]
    assert score["unseen"] == ["sender", "receiver"]
    assert score["degraded"] == []
    assert score["features_as_of"]["sender"] is None


def test_scoring_stores_no_payment(run_app: Any, payment: Any) -> None:
    """A scored payment is not in the records and marks nothing pending."""
    client, application = run_app()
    client.post("/predict", json={"transactions": [payment]})
    assert application.services.stores.records.max_seq() == 0
    assert application.online.marks == {}


def test_amounts_are_exact_and_converted(run_app: Any, payment: Any) -> None:
    """Amounts as number or text are the same minor units; another currency is converted to the base currency."""
    client, _ = run_app()
    amounts = [("n", 129.9, "EUR"), ("s", "129.90", "EUR"), ("u", "259.80", "USD")]
    batch = [{**payment, "transaction_id": id_, "amount": amount, "currency": code} for id_, amount, code in amounts]
    scores = client.post("/predict", json={"transactions": batch}).json()["scores"]
    assert len({score["fraud_score"] for score in scores}) == 1
    found = [client.get(f"/decisions/{id_}").json()["decisions"][0]["inputs"] for id_, _, _ in amounts]
    assert [(row["amount"], row["amount_base"]) for row in found] == [(12990, 12990), (12990, 12990), (25980, 12990)]


def test_explain_says_what_moved_the_score(run_app: Any, payment: Any) -> None:
    """With explain each score carries the effect of its groups of inputs and of single ones, largest first."""
    client, _ = run_app()
    (score,) = client.post("/predict", json={"transactions": [payment], "explain": True}).json()["scores"]
    found = score["explanation"]
    assert {"sender:activity", "receiver:activity", "payment"} <= set(found["groups"])
    sizes = [abs(effect) for effect in found["groups"].values()]
    assert sizes == sorted(sizes, reverse=True)
    assert 1 <= len(found["features"]) <= 5
    assert all(set(one) == {"role", "feature", "value", "ordinary", "effect"} for one in found["features"])


def test_explain_is_for_few_payments(run_app: Any, payment: Any) -> None:
    """More payments with explain than the limit are refused by name; as many without it are scored."""
    client, _ = run_app(max_explained=2)
    batch = [{**payment, "transaction_id": f"t{at}"} for at in range(3)]
    reply = client.post("/predict", json={"transactions": batch, "explain": True})
    assert (reply.status_code, reply.json()["field"]) == (400, "transactions")
    assert "at most 2 transactions with explain" in reply.json()["detail"]
    assert client.post("/predict", json={"transactions": batch}).status_code == 200
    few = client.post("/predict", json={"transactions": batch[:2], "explain": True}).json()["scores"]
    assert all(score["explanation"]["groups"] for score in few)


def test_fine_times_are_truncated_with_a_notice(run_app: Any, payment: Any) -> None:
    """Microseconds are cut off, and the reply says so."""
    client, _ = run_app()
    reply = client.post(
        "/predict", json={"transactions": [{**payment, "event_timestamp": "2023-11-14T22:13:20.0009Z"}]}
    )
    assert reply.json()["notices"] == ["event_timestamp: times finer than a millisecond were truncated"]
    assert client.get("/decisions/t1").json()["decisions"][0]["event_timestamp"] == WHEN


def test_no_model_is_503_that_says_to_promote_one(run_app: Any, payment: Any) -> None:
    """Without a model /predict is 503 with Retry-After, the server is up and not ready."""
    client, _ = run_app(model=False)
    reply = client.post("/predict", json={"transactions": [payment]})
    assert reply.status_code == 503
    assert "promote" in reply.json()["detail"]
    assert reply.headers["retry-after"] == "1"
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 503
    assert "model" in client.get("/health/ready").json()["reason"]


def test_promoted_model_comes_into_use(run_app: Any, payment: Any, tiny: SimpleNamespace, tmp_path: Path) -> None:
    """When the alias moves, replies name the new version without a restart."""
    client, application = run_app()
    application.versions.append(("2", tiny.write_model(tmp_path / "m2", scale=0.5)))
    deadline = time.monotonic() + 10
    version = ""
    while version != "2" and time.monotonic() < deadline:
        version = client.post("/predict", json={"transactions": [payment]}).json()["model"]["version"]
    assert version == "2"


def test_online_store_away_is_503(run_app: Any, payment: Any) -> None:
    """Without the online store nothing can be scored, and /health says which dependency it is."""
    client, application = run_app()
    application.online.down = True
    reply = client.post("/predict", json={"transactions": [payment]})
    assert (reply.status_code, reply.json()["type"]) == (503, "urn:ringfence:problem:store-unavailable")
    health = client.get("/health")
    assert health.status_code == 503
    assert health.json()["checks"]["online_store"]["status"] == "failing"
    assert client.get("/health/ready").status_code == 503


def test_features_have_values_statuses_and_times(run_app: Any, world: Any, tiny: SimpleNamespace) -> None:
    """GET /features gives values with statuses, the instant they speak for, and whether the account is pending."""
    fill(world, tiny, "a")
    world.online.put(tiny.ACTIVITY, ("n",), tiny.T0, sent=0, mean=None)
    world.online.mark_pending([("n",)])
    client, _ = run_app()
    url = "/features?ids=a,n&ids=zz&features=activity:sent,activity:mean&features=ranks:*&features=activity:last"
    body = client.get(url).json()
    assert body["features"] == ["activity:sent", "activity:mean", "activity:last", "ranks:rank"]
    a, n, zz = body["rows"]
    assert a["values"] == {
        "activity:sent": 3,
        "activity:mean": 1.5,
        "activity:last": "2023-11-14T22:00:00.250Z",
        "ranks:rank": 0.5,
    }
    assert a["statuses"]["ranks:rank"] == "OUTSIDE_MAX_AGE"
    assert a["event_timestamps"]["activity"] == "2023-11-14T22:13:19Z"
    assert (n["statuses"]["activity:mean"], n["values"]["activity:mean"], n["pending"]) == ("NULL_VALUE", None, True)
    assert set(zz["statuses"].values()) == {"NOT_FOUND"}
    assert (a["pending"], zz["event_timestamps"]["activity"]) == (False, None)


def test_features_of_pairs_and_services(run_app: Any, world: Any, tiny: SimpleNamespace) -> None:
    """Pairs are written sender|receiver, and a service stands for its features."""
    world.online.put(tiny.PAIR, ("a", "b"), tiny.T0, count=4)
    client, _ = run_app()
    (pair,) = client.get("/features?entity=pair&ids=a|b").json()["rows"]
    assert (pair["entity"], pair["values"]) == ({"sender_id": "a", "receiver_id": "b"}, {"pair:count": 4})
    body = client.get("/features?ids=a&service=account_features").json()
    assert body["features"][0] == "activity:sent"
    catalog = client.get("/features/catalog").json()
    assert [view["name"] for view in catalog["views"]] == ["activity", "exposure", "ranks", "pair"]
    assert catalog["services"] == ["account_features", "fraud_model_v1"]


def test_feast_form_of_online_features(run_app: Any, world: Any, tiny: SimpleNamespace) -> None:
    """POST /get-online-features answers in the structure of Feast's own server, timestamps as epoch seconds."""
    fill(world, tiny, "a")
    client, _ = run_app()
    asked = {"features": ["activity:sent", "activity:last"], "entities": {"account_id": ["a", "zz"]}}
    body = client.post("/get-online-features", json=asked).json()
    assert body["metadata"] == {"feature_names": ["account_id", "sent", "last"]}
    ids, sent, last = body["results"]
    assert ids == {
        "values": ["a", "zz"],
        "statuses": ["PRESENT", "PRESENT"],
        "event_timestamps": ["1970-01-01T00:00:00Z"] * 2,
    }
    assert sent == {
        "values": [3, None],
        "statuses": ["PRESENT", "NOT_FOUND"],
        "event_timestamps": ["2023-11-14T22:13:19Z", "1970-01-01T00:00:00Z"],
    }
    assert last["values"] == [1_699_999_200, None]


def test_feast_form_of_the_model_service(run_app: Any, world: Any, tiny: SimpleNamespace) -> None:
    """The model's service reads both accounts, the pair both ways, and the payment itself from the request."""
    fill(world, tiny, "a")
    world.online.put(tiny.PAIR, ("a", "b"), tiny.T0, count=4)
    client, _ = run_app()
    entities = {"sender_id": ["a"], "receiver_id": ["b"], "payment_timestamp": [1_700_000_000], "amount_base": [12990]}
    asked = {"feature_service": "fraud_model_v1", "entities": entities, "full_feature_names": True}
    body = client.post("/get-online-features", json=asked).json()
    found = dict(zip(body["metadata"]["feature_names"], (item["values"][0] for item in body["results"]), strict=True))
    assert (found["sender_id"], found["receiver_id"]) == ("a", "b")
    assert (found["sender_activity__sent"], found["receiver_activity__sent"]) == (3, None)
    assert (found["pair__count"], found["reverse_pair__count"]) == (4, None)
    assert found["transaction_features__amount"] == 129.9
    assert "payment_timestamp" not in found
    collision = client.post("/get-online-features", json={**asked, "full_feature_names": False})
    assert (collision.status_code, collision.json()["field"]) == (400, "full_feature_names")


def test_decisions_are_durable_and_complete(run_app: Any, world: Any, tiny: SimpleNamespace, payment: Any) -> None:
    """Every score leaves a record with inputs, rows, model and request id, readable by transaction id."""
    fill(world, tiny, "a")
    client, application = run_app()
    headers = {"X-Request-Id": "req-7"}
    (score,) = client.post("/predict", json={"transactions": [payment]}, headers=headers).json()["scores"]
    client.post("/predict", json={"transactions": [payment]})
    records = client.get("/decisions/t1").json()["decisions"]
    assert len(records) == 2
    record = records[1]
    assert record["request_id"] == "req-7"
    assert (record["fraud_score"], record["decision"]) == (score["fraud_score"], score["decision"])
    assert (record["model_version"], record["feature_hash"]) == ("1", tiny.FEATURE_HASH)
    assert record["rows"]["sender"]["activity"] == [tiny.T0 - 1_000, 1]
    assert record["inputs"]["sender_id"] == "a"
    assert (application.home / "decisions.sqlite").is_file()
    assert client.get("/decisions/nothing").status_code == 404


def test_decisions_can_be_sampled_down(run_app: Any, payment: Any) -> None:
    """With a sample of 0 nothing is recorded, and scoring goes on."""
    client, _ = run_app(decision_sample=0.0)
    assert client.post("/predict", json={"transactions": [payment]}).status_code == 200
    assert client.get("/decisions/t1").status_code == 404


def test_overload_is_refused_before_it_queues(run_app: Any, world: Any, payment: Any) -> None:
    """More requests at work than allowed are answered 503 with Retry-After at once; health is still answered."""
    release = threading.Event()
    world.before_answer = lambda method: release.wait(5)
    client, _ = run_app(max_in_flight=2)
    threading.Timer(0.5, release.set).start()
    score = ("POST", "/predict", {"json": {"transactions": [payment]}})
    *scored, health = client.together(*[score] * 5, ("GET", "/health/live", {}))
    assert sorted(reply.status_code for reply in scored) == [200, 200, 503, 503, 503]
    refused = next(reply for reply in scored if reply.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["type"] == "urn:ringfence:problem:overloaded"
    assert health.status_code == 200
    assert "ringfence_overload_refused_total 3.0" in client.get("/metrics").text


def test_concurrent_requests_get_their_own_scores(
    run_app: Any, world: Any, tiny: SimpleNamespace, payment: Any
) -> None:
    """Requests at the same time must not get each other's rows."""
    for at in range(20):
        world.online.put(tiny.ACTIVITY, (f"s{at}",), tiny.T0 - 1, sent=at)
    client, _ = run_app()
    bodies = [{"transactions": [{**payment, "transaction_id": f"t{at}", "sender_id": f"s{at}"}]} for at in range(20)]
    alone = [client.post("/predict", json=body).json()["scores"][0] for body in bodies]
    together = client.together(*[("POST", "/predict", {"json": body}) for body in bodies])
    assert [reply.json()["scores"][0]["fraud_score"] for reply in together] == [score["fraud_score"] for score in alone]
    assert [reply.json()["scores"][0]["transaction_id"] for reply in together] == [f"t{at}" for at in range(20)]


def test_request_ids_are_kept_or_made(run_app: Any) -> None:
    """A well-formed request id comes back; anything else is replaced."""
    client, _ = run_app()
    assert client.get("/health/live", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = client.get("/health/live", headers={"X-Request-Id": "no good\\"}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert client.get("/health/live").headers["x-content-type-options"] == "nosniff"


def test_metrics_name_routes_not_paths(run_app: Any, payment: Any) -> None:
    """Metrics count by route template; no id of a client becomes a label."""
    client, _ = run_app()
    client.post("/predict", json={"transactions": [payment]})
    client.get("/decisions/secret-id")
    client.get("/secret-path")
    text = client.get("/metrics").text
    assert 'ringfence_requests_total{method="POST",route="/predict",status="200"} 1.0' in text
    assert 'route="/decisions/{transaction_id:path}"' in text
    assert "secret" not in text
    assert "ringfence_scores_total{decision=" in text
    assert 'ringfence_pool_alive{pool="inference"} 1.0' in text


def test_jobs_are_queued_listed_and_cancelled(run_app: Any) -> None:
    """POST /jobs gives a job with an address; it can be read, listed and cancelled; unknown ones are 404."""
    client, _ = run_app()
    reply = client.post("/jobs", json={"kind": "materialize"})
    job = reply.json()["job"]
    assert (reply.status_code, reply.headers["location"]) == (202, f"/jobs/{job['id']}")
    assert client.get(f"/jobs/{job['id']}").json()["job"]["kind"] == "materialize"
    assert [item["id"] for item in client.get("/jobs").json()["jobs"]] == [job["id"]]
    address = f"/jobs/{job['id']}"
    assert client.post(f"{address}/cancel").json()["job"]["state"] == "cancelled"
    assert client.post(f"{address}/resume").json()["job"]["state"] == "queued"
    assert client.post(f"{address}/resume").status_code == 409
    assert client.post(f"{address}/pause").json()["job"]["state"] == "paused"
    assert client.post(f"{address}/cancel").json()["job"]["state"] == "cancelled"
    shown = client.get(address).json()["job"]
    assert (shown["chunks"]["done"], shown["failed_chunks"], shown["eta_s"]) == (0, [], None)
    assert client.post("/jobs/00000000-0000-0000-0000-000000000000/pause").status_code == 404
    assert client.get("/jobs/00000000-0000-0000-0000-000000000000").status_code == 404
    wrong = client.post("/jobs", json={"kind": "dance"})
    assert (wrong.status_code, wrong.json()["field"]) == (400, "kind")
    assert [kind["kind"] for kind in client.get("/jobs/kinds").json()["kinds"]] == ["materialize", "backfill"]


def test_unforeseen_error_says_nothing_but_the_request_id(run_app: Any, world: Any, payment: Any) -> None:
    """A fault of the server is a 500 problem without its inside; the request id leads to the log."""
    client, application = run_app()
    application.services.predictor = None
    reply = client.post("/predict", json={"transactions": [payment]})
    assert reply.status_code == 500
    assert reply.json()["type"] == "urn:ringfence:problem:internal"
    assert reply.json()["request_id"]
    assert "NoneType" not in reply.text


def test_openapi_examples_run(run_app: Any) -> None:
    """Every example in the OpenAPI document must be accepted by its own route, and every reference resolve."""
    client, _ = run_app()
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in content and path != "/get-online-features":
                filled = path.replace("{name}", "ringfence").replace("{version}", "1")
                reply = client.post(filled, json=content["example"])
                assert reply.status_code in (200, 202, 409), (method, path, reply.text)
    names = set(re.findall(r"#/components/schemas/(\w+)", client.get("/openapi.json").text))
    assert names <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert client.get("/docs").status_code == 200


def test_slow_body_is_408(run_app: Any) -> None:
    """A client that does not finish its body is sent away instead of holding a place."""
    import asyncio
    from collections.abc import AsyncIterator

    client, _ = run_app(body_timeout_s=0.2)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    assert client.post("/predict", content=slow()).status_code == 408


def test_slow_bodies_keep_nobody_out(run_app: Any, payment: Any) -> None:
    """Clients that are still sending hold no place among the requests at work, and get one when they are done."""
    import asyncio
    from collections.abc import AsyncIterator

    client, _ = run_app(max_in_flight=1)
    body = json.dumps({"transactions": [payment]}).encode()
    answered = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield body[:9]
        await answered.wait()
        yield body[9:]

    async def others() -> list[int]:
        waiting = [asyncio.ensure_future(client._http.post("/predict", content=slow())) for _ in range(3)]
        await asyncio.sleep(0.2)
        statuses = [(await client._http.post("/predict", content=body)).status_code for _ in range(2)]
        answered.set()
        return [*statuses, *sorted([(await reply).status_code for reply in waiting])]

    statuses = client.run(others())
    assert statuses[:2] == [200, 200]
    assert 200 in statuses[2:]
    assert set(statuses[2:]) <= {200, 503}


def test_unfinished_bodies_hold_no_more_than_finished_ones(run_app: Any, payment: Any) -> None:
    """Bodies that are still arriving are refused where all together would hold more than those at work may."""
    import asyncio
    from collections.abc import AsyncIterator

    client, _ = run_app(max_in_flight=1, max_body_bytes=2_000)
    body = json.dumps({"transactions": [payment]}).encode()
    refused = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield body + b" " * (1_500 - len(body))
        await refused.wait()
        yield b" "

    async def two() -> tuple[int, list[int]]:
        first = asyncio.ensure_future(client._http.post("/predict", content=slow()))
        await asyncio.sleep(0.2)
        second = await client._http.post("/predict", content=body + b" " * (1_500 - len(body)))
        refused.set()
        third = (await first).status_code, (await client._http.post("/predict", content=body)).status_code
        return second.status_code, list(third)

    assert client.run(two()) == (503, [200, 200])


def test_405_allows_every_method_of_the_path(run_app: Any) -> None:
    """A path with two methods names both in Allow, whichever of its routes comes first."""
    client, _ = run_app()
    reply = client.run(client._http.request("OPTIONS", "/jobs"))
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET, POST")
    assert reply.json()["status"] == 405
