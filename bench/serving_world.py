"""Real servers with a history, a model in MLflow, and the REST server over both: what serving is measured on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from bench.features_data import Payments
from bench.http_load import KEY
from bench.timing import note, seconds
from graph_features.catalog import catalog
from graph_features.clock import HOUR_MS, to_ms
from graph_features.drivers import batch
from graph_features.edges import EdgeTable
from graph_features.ingest.sync import sync_graph
from graph_features.settings import FeatureSettings
from graph_features.sources.neo4j import Neo4jGraph
from graph_features.sources.postgres import PostgresRecords
from graph_features.stores.redis import RedisOnlineStore
from infra.local import servers

ROOT = Path(__file__).parents[1]
WRITE_ROWS = 50_000
START_S = 600.0
CURRENCY = "EUR"


@dataclass(kw_only=True)
class World:
    """Running servers in `home`, filled with `payments` up to `now_ms` or as they were found there."""

    home: Path
    payments: Payments
    services: servers.Services = field(init=False)

    def __post_init__(self) -> None:
        self.services = servers.up(self.home, durable=True)

    @property
    def now_ms(self) -> int:
        """The instant of the payments to score: an hour after the last one that the world was filled with."""
        return self.payments.end_ms + HOUR_MS

    @property
    def newest_ms(self) -> int:
        """The time of the last payment in the records, those of earlier runs included."""
        options: Any = self.services.postgres.conninfo()
        with psycopg.connect(**options) as connection:
            row = connection.execute("SELECT max(event_timestamp) FROM ringfence.transactions").fetchone()
        assert row is not None
        return to_ms(row[0])

    @cached_property
    def online(self) -> RedisOnlineStore:
        return RedisOnlineStore(self.services.redis, project="ringfence")

    @property
    def environment(self) -> dict[str, str]:
        """For commands and servers: nothing of the caller's own configuration."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RINGFENCE_", "MLFLOW_", "FEAST_"))}
        return {**kept, **self.services.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def fill(self) -> None:
        """Write records, graph and online rows, and register the model; does nothing where that was done before."""
        done = self.home / "filled"
        if done.exists():
            return
        note(f"  records:  {seconds(self._write_records):.1f} s")
        note(f"  graph:    {seconds(self._write_graph):.1f} s")
        note(f"  online:   {seconds(self._write_online):.1f} s")
        self.register_model(1)
        done.touch()

    def _write_records(self) -> None:
        records = PostgresRecords(self.services.postgres)
        records.create_schema()
        table = self.payments.transactions.drop_columns(["seq"])
        for start in range(0, table.num_rows, WRITE_ROWS):
            records.write_transactions(table.slice(start, WRITE_ROWS))
        statuses, labels = self._known("statuses"), self._known("labels")
        records.write_statuses(statuses.drop_columns(["seq"]))
        records.write_labels(labels.drop_columns(["seq"]))
        records.close()

    def _known(self, name: str) -> pa.Table:
        """Statuses or labels that are known by the end of the payments: what comes next is then the newest of all."""
        table: pa.Table = getattr(self.payments, name)
        known_ms = table[f"{'status' if name == 'statuses' else 'label'}_timestamp"].cast(pa.int64())
        return table.filter(pc.less(known_ms, self.payments.end_ms))

    def edges(self) -> EdgeTable:
        """What the records hold, under the numbers that they have there."""
        records = PostgresRecords(self.services.postgres)
        found = records.read_all(before_ms=self.payments.end_ms)
        records.close()
        return EdgeTable.from_arrow(found.transactions, found.statuses, found.labels, max_seq=found.max_seq)

    def _write_graph(self) -> None:
        records, graph = PostgresRecords(self.services.postgres), Neo4jGraph(self.services.neo4j)
        graph.create_schema()
        sync_graph(records, graph)
        graph.close()
        records.close()

    def _write_online(self) -> None:
        views = catalog()
        rows = batch.rows_at(
            list(views.schemas.values()),
            self.edges(),
            as_of_ms=self.payments.end_ms,
            settings=FeatureSettings(),
            threads=2,
        )
        for name, table in rows:
            self.online.write(views.schemas[name], table)

    def register_model(self, seed: int, alias: str = "champion") -> str:
        """Train nothing, register a network of the usual size; return its version."""
        command = [sys.executable, "-m", "bench.serving_model", str(seed), alias]
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True)
        return done.stdout.split()[-1]

    def transactions(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Payments to score, as a client sends them: of accounts that paid before, to accounts that were paid."""
        pick = np.random.default_rng([self.payments.seed, seed])
        table = self.payments.transactions
        chosen = pick.integers(table.num_rows, size=(2, count))
        senders = table["sender_id"].take(chosen[0]).to_pylist()
        receivers = table["receiver_id"].take(chosen[1]).to_pylist()
        cents = pick.integers(100, 500_000, count).tolist()
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.now_ms // 1_000))
        return [
            {
                "transaction_id": f"s{seed}-{at}",
                "event_timestamp": moment,
                "sender_id": senders[at],
                "receiver_id": receivers[at] if receivers[at] != senders[at] else "a00000001",
                "amount": f"{cents[at] // 100}.{cents[at] % 100:02d}",
                "currency": CURRENCY,
                "channel": "online",
            }
            for at in range(count)
        ]

    def close(self) -> None:
        if "online" in self.__dict__:
            self.online.close()


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(kw_only=True)
class Process:
    """A server process of its own, and where it answers."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def await_ready(self, path: str, *, limit_s: float = START_S) -> None:
        """Wait for 200 on `path`."""
        give_up = time.monotonic() + limit_s
        while self.process.poll() is None and time.monotonic() < give_up:
            try:
                if httpx.get(self.url + path, timeout=5).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        tail = self.log.read_text(errors="replace")[-2_000:]
        raise RuntimeError(f"{self.url}{path} was not ready (exit status {self.process.poll()}):\n{tail}")

    def stop(self) -> None:
        """SIGTERM to the whole group, SIGKILL after a while."""
        for sent, limit_s in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
            if self.process.poll() is None:
                try:
                    os.killpg(self.process.pid, sent)
                    self.process.wait(limit_s)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


@contextmanager
def started(
    command: Sequence[str], *, port: int, environment: Mapping[str, str], log: Path, cwd: Path = ROOT
) -> Iterator[Process]:
    """Run a server until the end of the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=dict(environment), stdout=output, stderr=output, cwd=cwd, start_new_session=True
        )
    running = Process(process=process, port=port, log=log)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def serving(world: World, *, environment: Mapping[str, str] | None = None, **settings: Any) -> Iterator[Process]:
    """Our server, ready to score; `settings` are those of RINGFENCE_SERVING_*, `environment` has further variables."""
    port = free_port()
    own = {f"RINGFENCE_SERVING_{name.upper()}": str(value) for name, value in settings.items()}
    own |= {"RINGFENCE_SERVING_PORT": str(port), "RINGFENCE_AUTH_ADMIN_KEY": KEY}
    more = {"RINGFENCE_WORKERS": "2", **own, **(environment or {})}
    command = [sys.executable, "-m", "serving.main"]
    with started(
        command, port=port, environment={**world.environment, **more}, log=world.home / "server.log"
    ) as process:
        process.await_ready("/health/ready")
        yield process
