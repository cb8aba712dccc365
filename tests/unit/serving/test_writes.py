"""Payments, statuses and labels through the REST API: taken once, marked before they are stored, renewed after."""

from __future__ import annotations

import threading
import time
from typing import Any

from graph_features.errors import StoreUnavailableError


def test_transactions_are_idempotent(run_app: Any, world: Any, payment: Any) -> None:
    """The same payment twice is new and then known; its accounts and pair are marked before the commit and renewed."""
    client, application = run_app()
    first = client.post("/transactions", json={"transactions": [payment]})
    again = client.post("/transactions", json={"transactions": [payment]})
    assert [reply.status_code for reply in (first, again)] == [200, 200]
    assert (first.json()["inserted"], first.json()["known"], first.json()["refreshed"]) == (1, 0, "done")
    assert (again.json()["inserted"], again.json()["known"]) == (0, 1)
    assert set(world.called("refresh")[0]) == {("a",), ("b",), ("a", "b")}
    assert world.called("sync_graph") == [None]
    assert application.online.marks == {}


def test_same_id_with_other_content_is_409(run_app: Any, payment: Any) -> None:
    """A conflict is named by its place; the other rows of the batch are accepted."""
    client, application = run_app()
    client.post("/transactions", json={"transactions": [payment]})
    batch = [{**payment, "transaction_id": "t2"}, {**payment, "amount": 1}]
    reply = client.post("/transactions", json={"transactions": batch})
    assert reply.status_code == 409
    assert reply.json()["inserted"] == 1
    assert [(row["index"], row["transaction_id"]) for row in reply.json()["rejected"]] == [(1, "t1")]
    assert application.services.stores.records.max_seq() == 2


def test_statuses_and_labels_follow_their_payment(run_app: Any, world: Any, payment: Any) -> None:
    """Statuses and labels of known payments are accepted and renew the accounts; of unknown ones they are 409."""
    client, _ = run_app()
    client.post("/transactions", json={"transactions": [payment]})
    status = {"transaction_id": "t1", "status": "reversed", "status_timestamp": "2023-11-15T00:00:00Z"}
    label = {"transaction_id": "t1", "is_fraud": True, "label_timestamp": "2023-11-16T00:00:00Z"}
    assert client.post("/statuses", json={"statuses": [status]}).json()["inserted"] == 1
    assert client.post("/labels", json={"labels": [label]}).json()["inserted"] == 1
    assert client.post("/labels", json={"labels": [label]}).json()["known"] == 1
    assert client.post("/labels", json={"labels": [{**label, "transaction_id": "t9"}]}).status_code == 409
    assert len(world.called("refresh")) == 3
    assert world.called("sync_graph") == [None]


def test_asynchronous_refresh_replies_at_once(run_app: Any, world: Any, payment: Any) -> None:
    """With refresh=async the reply does not wait for features, which are renewed all the same."""
    release = threading.Event()
    world.before_answer = lambda method: release.wait(10)
    client, application = run_app()
    reply = client.post("/transactions?refresh=async", json={"transactions": [payment]})
    assert (reply.status_code, reply.json()["refreshed"]) == (200, "pending")
    assert ("a",) in application.online.marks
    release.set()
    deadline = time.monotonic() + 10
    while application.online.marks and time.monotonic() < deadline:
        time.sleep(0.01)
    assert application.online.marks == {}


def test_failed_refresh_leaves_the_payment_accepted_and_pending(run_app: Any, world: Any, payment: Any) -> None:
    """When features cannot be renewed, the payment stays accepted, its accounts stay pending, and the reply says so."""

    def away(method: str) -> None:
        raise StoreUnavailableError("away")

    world.before_answer = away
    client, application = run_app()
    reply = client.post("/transactions", json={"transactions": [payment]})
    assert (reply.status_code, reply.json()["refreshed"]) == (200, "pending")
    assert set(application.online.marks) == {("a",), ("b",), ("a", "b")}


def test_write_is_refused_when_marks_cannot_be_set(run_app: Any, payment: Any) -> None:
    """Without the online store nothing is accepted: a payment that nobody marks would leave stale rows behind."""
    client, application = run_app()
    application.online.down = True
    assert client.post("/transactions", json={"transactions": [payment]}).status_code == 503
    assert application.services.stores.records.max_seq() == 0
