"""The whole API as a Ray Serve application."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph_features.ray_cluster import connect
from serving.ray_app import ServeArguments, application

# Ray Serve's own modules are not up to date with pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


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
