"""A backfill while everything around it is killed: `make chaos-jobs`.

One set of real servers, one history. First an undisturbed backfill, whose rows are kept for comparison; then the same
again, with several workers and a scheduler beside it, while SIGKILL goes to a worker, the scheduler, PostgreSQL, Redis
and Neo4j in turn, at random moments. An operator who only ever repeats the same command stands by. At the end every
slice must be there once, offline and online must equal the undisturbed run, and the ledger must tell what happened.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pyarrow as pa

from bench.timing import note
from graph_features.catalog import catalog
from graph_features.contracts import TRANSACTION_SCHEMA
from graph_features.errors import RingfenceError, StoreUnavailableError
from graph_features.jobs.engine import postgres_engine
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.patience import insist
from graph_features.jobs.records import ChunkState, Job, JobState
from graph_features.sources.postgres import PostgresRecords
from graph_features.stores.redis import RedisOnlineStore
from infra.local import servers

TARGETS = ("worker", "scheduler", "postgres", "redis", "neo4j")
DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE_S = 120.0
JOB_SETTINGS = {
    "RINGFENCE_JOBS_HEARTBEAT_S": "0.5",
    "RINGFENCE_JOBS_EXPIRY_S": "3",
    "RINGFENCE_JOBS_PATIENCE_S": "30",
}
SCHEDULE = """
jobs:
  - {name: graph, kind: sync_graph, every: 1s, catch_up: last, misfire_grace: 1m}
  - {name: pending, kind: materialize, every: 2s, catch_up: last, misfire_grace: 1m}
  - {name: check, kind: verify, every: 5s, catch_up: last, misfire_grace: 1m}
"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the chaos did, and what came of it."""

    kills: Counter[str]
    commands: int
    chunks: int
    repeated: int
    seconds: float
    jobs: Counter[str]

    def __str__(self) -> str:
        killed = ", ".join(f"{count} x {name}" for name, count in sorted(self.kills.items()))
        return (
            f"{self.chunks} chunks done in {self.seconds:.0f} s through {sum(self.kills.values())} kills ({killed}); "
            f"{self.repeated} chunks were tried more than once, the backfill command ran {self.commands} times; "
            f"scheduled jobs meanwhile: {dict(self.jobs)}"
        )


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
        log = (self.home / "commands.log").open("ab")
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
        bare = [[value and value[:24] + value[32:] for value in group] for group in rows]
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


def chaos(world: World, *, kills: int, workers: int, limit_s: float) -> Report:
    """Run the backfill twice, undisturbed and disturbed, and compare; raise AssertionError with what differs."""
    note("undisturbed run")
    undisturbed = world.backfill(workers)
    assert undisturbed.wait(limit_s) == 0, (world.home / "commands.log").read_text()
    offline, online = world.offline(), world.newest_online()
    world.forget()
    note("disturbed run")
    schedule = world.home / "schedule.yaml"
    schedule.write_text(SCHEDULE)
    backfill = Operator(run=lambda: world.backfill(workers), until_success=True)
    scheduler = Operator(run=lambda: world.start("schedule", "--file", str(schedule)), until_success=False)
    began = time.monotonic()
    killed, stop = Counter[str](), threading.Event()
    trickle = threading.Thread(target=_trickle, args=(world, stop), daemon=True)
    trickle.start()
    try:
        _disturb(world, backfill, scheduler, killed, kills=kills, limit_s=limit_s)
        seconds = time.monotonic() - began
        stop.set()
        trickle.join()
        _await_quiet(world, scheduler)
    finally:
        stop.set()
        backfill.stop()
        scheduler.stop()
    _check_slices(world)
    assert world.offline() == offline, "offline rows differ from the undisturbed run"
    assert world.newest_online() == online, "online rows differ from the undisturbed run"
    return _told(world, killed, backfill.times, seconds)


def _disturb(
    world: World, backfill: Operator, scheduler: Operator, killed: Counter[str], *, kills: int, limit_s: float
) -> None:
    """Kill one thing after another, spread over the backfill's progress, until it has ended by itself."""
    pick = random.Random(world.seed)
    plan = [TARGETS[at % len(TARGETS)] for at in range(kills)]
    pick.shuffle(plan)
    # Its restart takes long, and with few kills the others would come when the backfill is over.
    plan.sort(key=lambda target: target == "neo4j" and kills <= len(TARGETS))
    total = world.slices * len(catalog().slice_views())
    give_up = time.monotonic() + limit_s
    while not backfill.tend():
        assert time.monotonic() < give_up, f"not done in {limit_s} s: " + (world.home / "commands.log").read_text()
        scheduler.tend()
        finished = _finished_chunks(world)
        # Early enough that the last one comes amid the work too.
        if plan and kills - len(plan) < kills * finished / total * 1.25:
            # Not one that is still coming back, as long as there are others.
            target = next((one for one in plan if not world.is_restarting(one)), plan[0])
            plan.remove(target)
            time.sleep(pick.random() * 0.5)
            note(f"  {finished} of {total} chunks: SIGKILL to {target}")
            _kill(world, target, backfill, scheduler, pick)
            killed[target] += 1
        time.sleep(0.1)
    world.await_restarts()


def _kill(world: World, target: str, backfill: Operator, scheduler: Operator, pick: random.Random) -> None:
    if target == "worker":
        backfill.kill(pick)
    elif target == "scheduler":
        scheduler.kill(pick)
    else:
        world.kill(target, after_s=pick.random())


def _finished_chunks(world: World) -> int:
    def count() -> int:
        jobs = world.ledger.list(kind="backfill")
        return max((world.ledger.chunks.counts(job.id)[ChunkState.DONE] for job in jobs), default=0)

    return insist(count, patience_s=PATIENCE_S)


def _trickle(world: World, stop: threading.Event) -> None:
    """Payments go on meanwhile, after the period of the backfill."""
    end = START + world.slices * DAY
    number = 0
    while not stop.wait(0.2):
        first = 1_000_000 + 5 * number
        moment = end + timedelta(minutes=number)
        with suppress(StoreUnavailableError):  # the same again next time
            world.pay(5, first=first, start=moment, span=timedelta(seconds=10))
            number += 1


def _await_quiet(world: World, scheduler: Operator) -> None:
    """Wait until the scheduler has brought graph and features up to date with the payments."""
    from graph_features.sources.neo4j import Neo4jGraph

    graph = Neo4jGraph(world.services.neo4j)
    give_up = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < give_up:
            scheduler.tend()
            with suppress(RingfenceError):
                if graph.watermark() == world.records.max_seq() and not world.online.all_pending():
                    return
            time.sleep(0.5)
    finally:
        graph.close()
    raise AssertionError("the schedule did not bring graph and features up to date")


def _check_slices(world: World) -> None:
    """Every slice once: one row per account and as_of, every as_of of the period, one finished chunk each."""
    with world.connection() as connection:
        for view in catalog().slice_views():
            query = f'SELECT count(*), count(DISTINCT (account_id, event_timestamp)) FROM features."{view.name}"'
            (rows, distinct), *_ = connection.execute(query.encode()).fetchall()
            assert rows == distinct, f"{view.name}: {rows - distinct} rows are there twice"
    (job,) = world.ledger.list(kind="backfill")
    assert job.state is JobState.DONE, job
    chunks = world.ledger.chunks.list(job.id)
    assert len(chunks) == world.slices * len(catalog().slice_views())
    assert {chunk.state for chunk in chunks} == {ChunkState.DONE}
    covered = Counter(one.view for one in world.ledger.coverage.list() if one.is_slice)
    assert covered == Counter({view.name: world.slices for view in catalog().slice_views()})


def _told(world: World, killed: Counter[str], commands: int, seconds: float) -> Report:
    (backfill,) = world.ledger.list(kind="backfill")
    chunks = world.ledger.chunks.list(backfill.id)
    scheduled = [job for job in world.ledger.list(limit=100_000) if job.requested_by.startswith("schedule:")]
    for name in ("graph", "pending", "check"):
        ticks = world.ledger.schedules.tick_times(name, limit=100_000)
        mine = [job for job in scheduled if job.requested_by == f"schedule:{name}"]
        assert len(ticks) == len(set(ticks)) == len(mine), f"{name}: {len(ticks)} ticks, {len(mine)} jobs"
        assert all(_is_told(job) for job in mine), f"{name}: a job ended without saying how"
    return Report(
        kills=killed,
        commands=commands,
        chunks=len(chunks),
        repeated=sum(chunk.attempts > 1 for chunk in chunks),
        seconds=seconds,
        jobs=Counter(f"{job.kind} {job.state}" for job in scheduled),
    )


def _is_told(job: Job) -> bool:
    return job.state is not JobState.FAILED or bool(job.error)


def run(home: Path, *, slices: int, accounts: int, payments: int, kills: int, workers: int, seed: int = 1) -> Report:
    """Build a world in `home`, disturb it, and take it down again."""
    world = World(home=home, slices=slices, accounts=accounts, seed=seed)
    try:
        note(f"{payments} payments of {accounts} accounts, {slices} slices, {kills} kills")
        world.pay(payments, first=0, start=START - DAY, span=(slices + 1) * DAY)
        return chaos(world, kills=kills, workers=workers, limit_s=1_800)
    finally:
        world.close()


def main() -> None:
    """The full run: 60 slices, 20 kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--accounts", type=int, default=20_000)
    parser.add_argument("--payments", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="ringfence-chaos-"))
    try:
        report = run(home, **vars(arguments))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    note(str(report))


if __name__ == "__main__":
    main()
