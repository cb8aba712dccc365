"""The server on real PostgreSQL, Redis and Neo4j."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
import sqlalchemy as sa

from graph_features.errors import StoreUnavailableError
from graph_features.settings import PlatformSettings, PostgresSettings, Profile
from infra.client import key_headers
from serving.decisions import DecisionLog, open_engine
from tests.decisions import Decided, decided

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]


def use(monkeypatch: pytest.MonkeyPatch, settings: PostgresSettings) -> None:
    for name in ("host", "port", "user", "database"):
        monkeypatch.setenv(f"RINGFENCE_POSTGRES_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("RINGFENCE_POSTGRES_PASSWORD", settings.password.get_secret_value())


def test_decisions_on_postgres(
    postgres_settings: PostgresSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Records come back from PostgreSQL bit for bit; starting twice finds the table; a lost server is named."""
    use(monkeypatch, postgres_settings)
    platform = PlatformSettings(profile=Profile.SERVICES, home=tmp_path)
    log = DecisionLog(open_engine(platform))
    log.create()
    payments = [Decided(transaction_id=f"t{at}", amount=10**15) for at in range(1_000)]
    batch = msgspec.structs.replace(decided(*payments, score=0.1 + 0.2), unseen={7: ["receiver"]})
    assert [log.store_segment("one", [batch]) for _ in range(2)] == [1_000, 0]
    again = DecisionLog(open_engine(platform))
    again.create()
    (found,) = again.find("t7")
    expected = batch.rows()[7]
    assert {name: found[name] for name in expected} == expected
    again.close()
    for trouble in (
        "ALTER TABLE ringfence.decisions ADD CHECK (transaction_id NOT LIKE 'private%')",
        "DROP TABLE ringfence.decisions",
    ):
        with log._engine.begin() as connection:
            connection.execute(sa.text(trouble))
        with pytest.raises(StoreUnavailableError, match=r"the database of decisions failed: .") as caught:
            log.store_segment("two", [decided("private-id")])
        assert "private-id" not in str(caught.value)
    log.close()


@pytest.fixture
def http(services_environment: dict[str, str], tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a server in the services profile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.main"],
            cwd=ROOT,
            env={**services_environment, "RINGFENCE_SERVING_PORT": str(port), "RINGFENCE_WORKERS": "1"},
            stdout=output,
            stderr=output,
        )
    try:
        headers = key_headers(services_environment)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, headers=headers) as client:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None, log.read_text()[-4_000:]
                assert time.monotonic() < deadline, log.read_text()[-4_000:]
                try:
                    client.get("/health/live")
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield client
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_server_on_real_services(http: httpx.Client) -> None:
    """Payments reach PostgreSQL, Neo4j and Redis before the reply; every dependency answers; a conflict is 409."""
    row = {
        "transaction_id": "t1",
        "event_timestamp": "2026-03-01T12:00:00Z",
        "sender_id": "a",
        "receiver_id": "b",
        "amount": "12.50",
        "currency": "EUR",
    }
    written = http.post("/transactions", json={"transactions": [row]})
    assert (written.status_code, written.json()["refreshed"]) == (200, "done"), written.text
    assert http.post("/transactions", json={"transactions": [row]}).json()["known"] == 1
    assert http.post("/transactions", json={"transactions": [{**row, "amount": "12.51"}]}).status_code == 409
    label = {"transaction_id": "t1", "is_fraud": True, "label_timestamp": "2026-03-02T00:00:00Z"}
    assert http.post("/labels", json={"labels": [label]}).json()["inserted"] == 1
    (a, c) = http.get("/features?ids=a,c&features=account_activity:sent_amount_sum_all").json()["rows"]
    assert a["values"] == {"account_activity:sent_amount_sum_all": 1250}
    assert (a["pending"], c["statuses"]) == (False, {"account_activity:sent_amount_sum_all": "NOT_FOUND"})
    checks = http.get("/health").json()["checks"]
    failing = {name for name, check in checks.items() if check["status"] == "failing"}
    assert failing == {"model"}
    job = http.post("/jobs", json={"kind": "sync_graph"}).json()["job"]
    deadline = time.monotonic() + 120
    while (state := http.get(f"/jobs/{job['id']}").json()["job"])["state"] not in ("done", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert state["state"] == "done", state
    assert http.post("/predict", json={"transactions": [row]}).status_code == 503
