"""The real server as a process of its own, for the tests of this folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Server:
    """A server process in a home of its own."""

    home: Path
    port: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)
    http: httpx.Client = field(init=False)

    def start(self) -> None:
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infra.cli", "serve", "--port", str(self.port)],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        key = self.environment.get("RINGFENCE_AUTH_ADMIN_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, timeout=120, headers=headers)
        self.until(lambda: self.answers("/health/live"), 180)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self, path: str) -> bool:
        assert self.process.poll() is None, self.log()[-4_000:]
        try:
            return self.http.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def until(self, condition: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, self.log()[-4_000:]
            time.sleep(0.02)

    def log(self) -> str:
        return (self.home / "server.log").read_text(encoding="utf-8", errors="replace")

    def promote(self, seed: int, *, alias: str = "champion") -> str:
        """Make a model and point the alias at it if it is to be champion; return its version."""
        # Random weights over the real catalogue: what is tested is serving, not what the model has learnt.
        done = self.run("-m", "bench.serving_model", str(seed), alias)
        assert done.returncode == 0, done.stderr[-4_000:]
        return done.stdout.split()[-1]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Python beside the server, in its home."""
        command = [sys.executable, *arguments]
        options: dict[str, Any] = {"cwd": ROOT, "env": self.environment, "timeout": 400}
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A `ringfence` command beside the server."""
        return self.run("-m", "infra.cli", *arguments)

    def pool(self, name: str) -> dict[str, Any]:
        detail: dict[str, Any] = self.http.get("/health").json()["checks"][name]["detail"]
        return detail

    def stop(self, how: signal.Signals = signal.SIGTERM, limit_s: float = 60) -> int:
        self.http.close()
        self.process.send_signal(how)
        return self.process.wait(timeout=limit_s)


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """start_server(NAME=value, ...): a server of the embedded profile in a home of its own, with these variables."""
    started: list[Server] = []

    def start(**variables: str) -> Server:
        home = tmp_path_factory.mktemp("serving")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RINGFENCE_", "MLFLOW_"))
        }
        environment = {
            **inherited,
            "RINGFENCE_HOME": str(home),
            "RINGFENCE_SERVING_MODEL_POLL_S": "0.5",
            # A busy machine must not make these tests say that something is degraded.
            "RINGFENCE_SERVING_DEADLINE_MS": "60000",
            "RINGFENCE_SERVING_SCORE_TIMEOUT_MS": "60000",
            "RINGFENCE_SERVING_OVERLOAD_MS": "60000",
            "RINGFENCE_SERVING_REFRESH_TIMEOUT_MS": "110000",
            "RINGFENCE_SERVING_DRAIN_S": "60",
            "RINGFENCE_TRAIN_HIDDEN": "8",  # of the models that `promote` makes
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        started.append(Server(home=home, port=port, environment=environment))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.stop()
