"""The whole API as a Ray Serve application."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph_features.ray_cluster import connect
from serving.ray_app import ServeArguments, application

# Ray Serve's own modules are not up to date with pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def until(condition: Callable[[], bool], limit_s: float = 90.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def port(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port for Serve on the cluster, and settings of a small embedded server."""
    monkeypatch.setenv("RINGFENCE_HOME", str(tmp_path))
    monkeypatch.setenv("RINGFENCE_SERVING_POOL", "inline")
    connect(nodes.settings)
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        number = int(free.getsockname()[1])
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": number})
    yield number
    serve.shutdown()


def test_the_api_answers(port: int) -> None:
    """The application answers as the server does, problems included."""
    from ray import serve

    url = f"http://127.0.0.1:{port}"
    serve.run(application(ServeArguments(max_replicas=2, cpus=0.4, revision="1")), name="ringfence")
    assert httpx.get(f"{url}/health/live", timeout=60).json()["status"] == "ok"
    health = httpx.get(f"{url}/health", timeout=60)
    assert health.status_code == 503  # no model has been promoted
    assert health.json()["checks"]["records"]["status"] == "ok"
    refused = httpx.post(f"{url}/predict", json={"transactions": "none"}, timeout=60)
    assert refused.status_code in (400, 503)
    assert refused.headers["content-type"] == "application/problem+json"


class Caller(threading.Thread):
    """Sends two payments over and over, and notes what it is answered, or the error in place of it."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__()
        self.answers: list[int | str] = []
        self.over = threading.Event()
        self._url = url
        self._body = {
            "transactions": [
                {
                    "transaction_id": f"{name}-{number}",
                    "event_timestamp": "2026-03-01T12:00:00Z",
                    "sender_id": "a",
                    "receiver_id": "b",
                    "amount": "10.00",
                    "currency": "EUR",
                }
                for number in range(2)
            ]
        }

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self.over.wait(0.05):
                try:
                    self.answers.append(client.post("/transactions", json=self._body).status_code)
                except httpx.HTTPError as error:
                    self.answers.append(repr(error))


@contextmanager
def calling(url: str, callers: int) -> Iterator[list[Caller]]:
    """Have so many callers at it; they have ended when the block has."""
    threads = [Caller(url, f"t{number}") for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.over.set()
        for thread in threads:
            thread.join()


def test_a_new_revision_rolls_over_without_a_gap(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered by the old replica, then by the new one with its new settings; none fails in between."""
    from ray import serve

    def deploy(revision: str) -> None:
        serve.run(application(ServeArguments(max_replicas=1, cpus=0.4, revision=revision)), name="ringfence")

    def answered(wanted: int) -> bool:
        return all(wanted in caller.answers for caller in callers)

    monkeypatch.setenv("RINGFENCE_SERVING_MAX_BATCH", "1")
    deploy("1")
    with calling(f"http://127.0.0.1:{port}", 3) as callers:
        until(lambda: answered(413))
        monkeypatch.setenv("RINGFENCE_SERVING_MAX_BATCH", "2")
        deploy("2")
        until(lambda: answered(200))
        until(lambda: len(serve.status().applications["ringfence"].deployments["ringfence"].replica_states) == 1)
    for caller in callers:
        assert set(caller.answers) == {413, 200}
        assert (caller.answers[0], caller.answers[-1]) == (413, 200)
