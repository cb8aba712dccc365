"""Servers that die in the middle: what is left is consistent, and the next run completes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graph_features.sources.neo4j import Neo4jGraph
from graph_features.sources.postgres import PostgresRecords
from infra.local import servers
from infra.simulator import simulate

pytestmark = pytest.mark.services

RATES = '{"GBP": "1.17", "USD": "0.92"}'


@pytest.fixture
def own_servers(tmp_path: Path) -> Iterator[servers.Services]:
    """A set of servers that this test may kill."""
    home = tmp_path / "home"
    try:
        yield servers.up(home)
    finally:
        servers.down(home, purge=True)


def start(services: servers.Services, *arguments: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RINGFENCE_", "MLFLOW_", "FEAST_"))}
    environment = {**inherited, **services.environment, "RINGFENCE_RATES": RATES}
    command = [str(Path(sys.executable).with_name("ringfence")), *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def kill(services: servers.Services, name: str) -> None:
    process = services.states[name].process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen[str], *, code: int = 0) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, output + errors
    assert "Traceback" not in errors
    return output + errors


def test_neo4j_killed_during_a_sync(own_servers: servers.Services, tmp_path: Path) -> None:
    """The sync fails by name, the graph is no further than its watermark says, and the next sync completes it."""
    simulate(accounts=2_000, days=60, seed=3, out=tmp_path)
    finish(start(own_servers, "ingest", str(tmp_path / "transactions.parquet"), "--no-graph"))
    sync = start(own_servers, "sync")
    graph = Neo4jGraph(own_servers.neo4j)
    graph.create_schema()
    give_up = time.monotonic() + 120
    while graph.watermark() == 0 and sync.poll() is None and time.monotonic() < give_up:
        time.sleep(0.02)
    killed_at = graph.watermark()
    kill(own_servers, "neo4j")
    graph.close()
    assert "Neo4j" in finish(sync, code=1)

    again = servers.up(own_servers.home)
    records, graph = PostgresRecords(again.postgres), Neo4jGraph(again.neo4j)
    try:
        assert 0 < killed_at <= graph.watermark() < records.max_seq()
        written = sum(count for count, _ in graph.checksum().values())
        assert written == graph.watermark()  # transactions alone were ingested: their numbers have no gaps
        finish(start(again, "sync"))
        assert "no difference" in finish(start(again, "verify"))
        assert graph.watermark() == records.max_seq()
    finally:
        records.close()
        graph.close()


def test_postgres_killed_during_ingest(own_servers: servers.Services, tmp_path: Path) -> None:
    """The ingest fails by name; after a restart the same command completes it without doubling anything."""
    simulate(accounts=2_000, days=60, seed=3, out=tmp_path)
    path = str(tmp_path / "transactions.parquet")
    ingest = start(own_servers, "ingest", path, "--chunk-rows", "1000", "--no-graph")
    records = PostgresRecords(own_servers.postgres)
    records.create_schema()
    give_up = time.monotonic() + 120
    while records.max_seq() == 0 and ingest.poll() is None and time.monotonic() < give_up:
        time.sleep(0.02)
    records.close()
    kill(own_servers, "postgres")
    assert "PostgreSQL" in finish(ingest, code=1)

    again = servers.up(own_servers.home)
    output = finish(start(again, "ingest", path, "--no-graph"))
    assert " 0 rejected" in output
    assert " 0 known" not in output
    finish(start(again, "sync"))
    assert "no difference" in finish(start(again, "verify"))
