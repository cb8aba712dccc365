"""What /health says, whatever its dependencies do, and what a server's background work does when it fails."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

from graph_features.errors import StoreUnavailableError
from serving import health
from serving.health import Health, Resource


def test_healthy_server_names_every_dependency(run_app: Any) -> None:
    """/health lists each dependency, pool and the model with its own state and time."""
    client, _ = run_app()
    reply = client.get("/health")
    assert (reply.status_code, reply.json()["status"]) == (200, "ok")
    assert set(reply.json()["checks"]) == {
        "records",
        "online_store",
        "decisions",
        "model",
        "inference_workers",
        "feature_workers",
        "graph",
        "offline_store",
        "jobs",
    }
    assert reply.json()["checks"]["model"]["detail"]["version"] == "1"


def test_dependency_that_is_not_needed_only_degrades(run_app: Any) -> None:
    """When the graph is away, scoring goes on: 200, degraded."""
    client, application = run_app()

    def away() -> None:
        raise StoreUnavailableError("the graph is away")

    resources = [
        Resource(name="graph", needed=False, ping=away),
        Resource(name="model", needed=True, ping=lambda: None),
    ]
    application.services.health = Health(resources)
    reply = client.get("/health")
    assert (reply.status_code, reply.json()["status"]) == (200, "degraded")
    assert reply.json()["checks"]["graph"]["error"] == "the graph is away"


def test_hung_dependency_does_not_hang_health(run_app: Any) -> None:
    """A ping that does not come back is failing after its time, and so is one with an unforeseen error."""
    client, application = run_app()
    release = threading.Event()
    resources = [
        Resource(name="slow", needed=True, ping=lambda: release.wait(20) and None),
        Resource(name="odd", needed=True, ping=lambda: 1 // 0),
    ]
    application.services.health = Health(resources)
    begun = time.monotonic()
    reply = client.get("/health")
    release.set()
    assert time.monotonic() - begun < 5
    assert reply.status_code == 503
    assert reply.json()["checks"]["slow"]["error"] == "no answer within 2 s"
    assert reply.json()["checks"]["odd"]["error"] == "ZeroDivisionError"


def test_dependency_that_hangs_for_long_holds_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the server is asked while one dependency hangs, the others must be heard."""
    monkeypatch.setattr(health, "PING_TIMEOUT_S", 0.05)
    release, asked = threading.Event(), []

    def hang() -> None:
        asked.append(1)
        release.wait(20)

    made = Health(
        [
            Resource(name="hangs", needed=False, ping=hang),
            Resource(name="answers", needed=True, ping=lambda: {"version": "1"}),
        ]
    )

    async def ask() -> None:
        for _ in range(8):
            reply = await made.check()
            assert reply.checks["hangs"].error == "no answer within 0.05 s"
            assert reply.checks["answers"].detail == {"version": "1"}
        assert len(asked) == 1
        release.set()
        while (await made.check()).status != "ok":
            await asyncio.sleep(0.01)

    asyncio.run(ask())
    made.close()


def test_failed_background_work_is_told_of_and_stops_no_stop(run_app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Background work that fails in an unforeseen way is logged at once, and the server still closes all its parts."""
    client, application = run_app()
    services = application.services

    async def fail() -> bool:
        raise ZeroDivisionError

    services.follower.step = fail
    caplog.set_level(logging.ERROR, logger="ringfence.serving")
    deadline = time.monotonic() + 10
    while "background task failed" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "ZeroDivisionError" in caplog.text
    client.run(services.stop())
    assert services.inference.status().broken
