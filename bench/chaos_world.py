"""Real servers with a history, commands that run against them, and an operator who repeats what died."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pyarrow as pa

from graph_features.catalog import catalog
from graph_features.contracts import TRANSACTION_SCHEMA
from graph_features.jobs.engine import postgres_engine
from graph_features.jobs.ledger import Ledger
from graph_features.sources.postgres import PostgresRecords
from graph_features.stores.redis import RedisOnlineStore
from infra.local import servers

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
JOB_SETTINGS = {
    "RINGFENCE_JOBS_HEARTBEAT_S": "0.5",
    "RINGFENCE_JOBS_EXPIRY_S": "3",
    "RINGFENCE_JOBS_PATIENCE_S": "30",
}


@dataclass(kw_only=True)
class World:
    """Real servers with a history, and the commands that run against them."""

    home: Path
    slices: int
    accounts: int
    seed: int
    services: servers.Services = field(init=False)
    _restarts: dict[str, threading.Thread] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.services = servers.up(self.home)
        self.records = PostgresRecords(self.services.postgres)
        self.online = RedisOnlineStore(self.services.redis, project="ringfence")
        self.ledger = Ledger(postgres_engine(self.services.postgres), expiry_s=3)
        self.records.create_schema()
        self.ledger.create_schema()

    @property
    def period(self) -> tuple[str, str]:
        return START.isoformat(), (START + self.slices * DAY).isoformat()

    def pay(self, count: int, *, first: int, start: datetime, span: timedelta) -> None:
        """Write `count` payments, evenly over `span`; writing them again changes nothing."""
        pick = random.Random(self.seed + first)
        rows = [
            {
                **dict.fromkeys(TRANSACTION_SCHEMA.names),
                "transaction_id": f"t{first + at:07d}",
                "event_timestamp": start + span * at / count,
                "sender_id": f"a{pick.randrange(self.accounts):05d}",
                "receiver_id": f"a{pick.randrange(self.accounts):05d}",
                "amount": (amount := pick.randrange(100, 100_000)),
                "amount_base": amount,
                "currency": "EUR",
                "device_id": f"d{pick.randrange(self.accounts):05d}",
            }
            for at in range(count)
        ]
        self.records.write_transactions(pa.Table.from_pylist(rows, TRANSACTION_SCHEMA), self.online.mark_pending)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a `ringfence` command in a session of its own."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RINGFENCE_", "MLFLOW_", "FEAST_"))}
        with (self.home / "commands.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "infra.cli", *arguments],
                env={**inherited, **self.services.environment, **JOB_SETTINGS},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def backfill(self, workers: int) -> subprocess.Popen[bytes]:
        first, last = self.period
        views = [part for view in catalog().slice_views() for part in ("--features", view.name)]
        return self.start("backfill", "--from", first, "--to", last, "--every", "1d", "--workers", str(workers), *views)

    def offline(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every offline row of the slice views without its created_timestamp, sorted."""
        found = {}
        with self.connection() as connection:
            for view in catalog().slice_views():
                names = [name for name in view.arrow_schema.names if name != "created_timestamp"]
                columns = ", ".join(f'"{name}"' for name in names)
                keys = ", ".join([*view.keys, "event_timestamp"])
                query = f'SELECT {columns} FROM features."{view.name}" ORDER BY {keys}'
                found[view.name] = connection.execute(query.encode()).fetchall()
        return found

    def newest_online(self) -> dict[str, list[bytes | None]]:
        """The slice views' online rows of every account, without their created_timestamp."""
        keys = [(f"a{number:05d}",) for number in range(self.accounts)]
        rows = self.online.read([(view, keys) for view in catalog().slice_views()])
        bare = [[value and value[:16] + value[24:] for value in group] for group in rows]
        return dict(zip([view.name for view in catalog().slice_views()], bare, strict=True))

    def forget(self) -> None:
        """Remove every feature row and the ledger's history; the records stay."""
        with self.connection() as connection:
            connection.execute("DROP SCHEMA features CASCADE")
            connection.execute("TRUNCATE ringfence.jobs, ringfence.chunks, ringfence.ticks, ringfence.coverage")
        self.online.teardown()

    def kill(self, server: str, *, after_s: float) -> None:
        """SIGKILL a server, and start it again beside what goes on; one that is still coming back is awaited first."""
        if server in self._restarts:
            self._restarts.pop(server).join()
        process = servers.existing(self.home).states[server].process
        assert process is not None
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        self._restarts[server] = threading.Thread(target=self._restart, args=(server, after_s))
        self._restarts[server].start()

    def is_restarting(self, server: str) -> bool:
        """Whether a server that was killed is not back yet."""
        return server in self._restarts and self._restarts[server].is_alive()

    def _restart(self, server: str, after_s: float) -> None:
        time.sleep(after_s)
        servers.up(self.home, only=[server])

    def await_restarts(self) -> None:
        while self._restarts:
            self._restarts.popitem()[1].join()

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        options: Any = self.services.postgres.conninfo()
        with psycopg.connect(**options, autocommit=True) as connection:
            yield connection

    def close(self) -> None:
        self.await_restarts()
        self.records.close()
        self.online.close()
        self.ledger.close()
        servers.down(self.home, purge=True)


@dataclass(kw_only=True)
class Operator:
    """Keeps a command running: whenever it dies or fails, the same command again."""

    run: Callable[[], subprocess.Popen[bytes]]
    until_success: bool
    times: int = 0
    process: subprocess.Popen[bytes] | None = None

    def tend(self) -> bool:
        """Return whether the command ended with success; start it when it is not running."""
        if self.process is not None and self.process.poll() is None:
            return False
        if self.process is not None and self.until_success and self.process.returncode == 0:
            return True
        self.process = self.run()
        self.times += 1
        return False

    def kill(self, pick: random.Random) -> None:
        """SIGKILL the command or one of its helpers."""
        if self.process is None or self.process.poll() is not None:
            return
        with suppress(psutil.NoSuchProcess):
            whole = psutil.Process(self.process.pid)
            pick.choice([whole, *whole.children(recursive=True)]).send_signal(signal.SIGKILL)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
