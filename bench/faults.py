"""The REST server under load while what it stands on falls: every answer is checked, every recovery timed.

    python -m bench.faults [--only FAULT ...] [--accounts 5000 --payments 40000] [--kill-s 60] [--fault-s 8]

Workers are killed and stopped; Redis, PostgreSQL, Neo4j and MLflow are reached through proxies that refuse, delay by
500 ms, cut and fall silent; clients trickle and never read; the disk fills; workers are always above their memory
limit. A payment and its label are sent every second all the while.

Wrong is an answer of 200 whose score is not degraded and not the one computed beforehand, another order, or a refusal
without a problem document. In the end every decision of the run is looked up: each answer of 200 has its records, each
score is computed again from the rows that its record names, and each accepted write is where it belongs.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from bench.faults_check import behind, differing, last_decision, read_decisions, unrecorded
from bench.faults_clients import ALL, trickle
from bench.faults_load import Answer, Prove, Shooter, Target, targets
from bench.faults_pool import PoolLog
from bench.faults_writes import check_writes
from bench.features_data import Payments
from bench.homes import guarded_home
from bench.http_load import KEY
from bench.proxy import Mode, Proxy
from bench.report import Figure, publish
from bench.serving_world import Process, World, serving
from bench.serving_writes import Writer
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.drivers import batch
from graph_features.settings import FeatureSettings
from graph_features.stores.postgres import PostgresOfflineStore
from training.bundle import Bundle

MODES = {"stopped": Mode.REFUSE, "slow": Mode.SLOW, "cut": Mode.CUT, "silent": Mode.SILENT}
HEADERS = {"X-API-Key": KEY}
RECOVERY_LIMIT_S = 60.0
SHIPPING_LIMIT_S = 120.0
GOAL_S = 1.0
STORE_GOAL_S = 10.0
HUNG_GOAL_S = 3.0
"""A worker counts as hung after two seconds of a task."""

CLIENT_TIMEOUT_S = "3"
MEMORY_SHARE = 0.95
"""Of what a worker holds, the limit under which it is replaced after every task, and not yet ended at work."""


@dataclass(kw_only=True)
class Scene:
    """A server behind proxies, the load on it, and what is known of both."""

    world: World
    server: Process
    proxies: dict[str, Proxy]
    targets: list[Target]
    changing: list[dict[str, Any]]
    fault_s: float
    kill_s: float
    figures: list[Figure] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def check(self, name: str) -> dict[str, Any]:
        """A part of the server as /health has it."""
        reply = httpx.get(f"{self.server.url}/health", timeout=30, headers=HEADERS).json()
        detail: dict[str, Any] = reply["checks"][name]["detail"]
        return detail

    def workers(self) -> list[int]:
        """Inference workers as /health names them."""
        pids: list[int] = self.check("inference_workers").get("pids", [])
        return pids

    def run(self, name: str, fault: Prove, heal: Callable[[], None], *, goal_s: float | None) -> None:
        """Load alone, load with the fault, load until all is well again; without a goal nothing heals."""
        with Shooter(url=self.server.url, targets=self.targets) as shooter:
            begun = time.monotonic()
            if goal_s is not None:
                shooter.recovered(begun, limit_s=RECOVERY_LIMIT_S)
            try:
                shown = fault(shooter)
            finally:
                heal()
            recovery_s = shooter.recovered(time.monotonic(), limit_s=RECOVERY_LIMIT_S) if goal_s is not None else 0.0
        self.answers += shooter.answers
        wrong = [answer.wrong for answer in shooter.answers if answer.wrong]
        failed = sum(answer.status != 200 for answer in shooter.answers)
        slowest = max(answer.done - answer.sent for answer in shooter.answers)
        degraded = sum(answer.degraded for answer in shooter.answers)
        counts = f"{len(shooter.answers)} requests sent, {failed} failed, {degraded} degraded"
        conditions = f"{counts}, slowest {slowest:.1f} s; {shown}"
        note(f"  {name}: {conditions}; {recovery_s:.2f} s; {wrong[:2]}")
        self.figures += [
            Figure(name=f"{name}: wrong answers", value=len(wrong), unit="answers", goal=0, conditions=conditions),
            Figure(name=f"{name}: failed", value=failed, unit="requests", conditions=conditions),
        ]
        if goal_s is not None:
            self.add(f"{name}: until all is well", recovery_s, goal_s, conditions)

    def add(self, name: str, seconds: float, goal_s: float, conditions: str) -> None:
        self.figures.append(Figure(name=name, value=seconds, unit="s", goal=goal_s, conditions=conditions))


# ---------------------------------------------------------------- faults


def killed_workers(scene: Scene) -> None:
    """An inference worker is killed every second."""
    pick, log = random.Random(1), PoolLog(scene.server.log, "inference")
    killed: dict[int, float] = {}

    def kill(_: Shooter) -> str:
        for _second in range(max(1, int(scene.kill_s))):
            if pids := scene.workers():
                pid = pick.choice(pids)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed[pid] = time.time()
            time.sleep(1.0)
        return f"{len(killed)} workers killed"

    scene.run("worker killed every second", kill, _nothing, goal_s=GOAL_S)
    back_s = [one.back_at - killed[one.pid] for one in log.replaced() if one.pid in killed]
    _bitten(len(back_s), "workers replaced")
    shown = f"{len(back_s)} of {len(killed)} workers replaced; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    scene.add("worker killed: capacity is back, median", float(np.median(back_s)), GOAL_S, shown)
    scene.add("worker killed: capacity is back, longest", max(back_s), GOAL_S, shown)


def hung_worker(scene: Scene) -> None:
    """A worker is stopped and never goes on by itself."""
    log = PoolLog(scene.server.log, "inference")
    at: dict[int, float] = {}

    def back() -> list[float]:
        return [one.back_at - at[one.pid] for one in log.replaced() if one.pid in at]

    def stop(_: Shooter) -> str:
        pid = scene.workers()[0]
        os.kill(pid, signal.SIGSTOP)
        at[pid] = time.time()
        give_up = time.monotonic() + RECOVERY_LIMIT_S
        while not back() and time.monotonic() < give_up:
            time.sleep(0.1)
        return f"{len(back())} replaced"

    scene.run("worker hangs", stop, _nothing, goal_s=GOAL_S)
    _bitten(len(back()), "workers replaced")
    scene.add("worker hangs: capacity is back", back()[0], HUNG_GOAL_S, "")


def stores(scene: Scene) -> None:
    """Each store refuses, is slow, cuts its connections again and again, and falls silent."""
    for name, proxy in scene.proxies.items():
        for label, mode in MODES.items():

            def fault(_: Shooter, proxy: Proxy = proxy, mode: Mode = mode) -> str:
                before, end = proxy.touched, time.monotonic() + scene.fault_s
                proxy.set(mode)
                while time.monotonic() < end:
                    time.sleep(1.0)
                    if mode is Mode.CUT:
                        proxy.set(mode)
                _bitten(proxy.touched - before, "connections or pieces affected")
                return f"{proxy.touched - before} connections or pieces affected"

            def heal(proxy: Proxy = proxy) -> None:
                proxy.set(Mode.PASS)

            scene.run(f"{name} {label}", fault, heal, goal_s=STORE_GOAL_S)


def clients(scene: Scene) -> None:
    """Two hundred clients that say nothing, or a byte now and then, or never read."""

    def slow(_: Shooter) -> str:
        ended = trickle(scene.server.port, scene.fault_s)
        _bitten(ended, "clients ended by the server")
        return f"{ended} of {ALL} ended by the server"

    scene.run(f"{ALL} slow clients", slow, _nothing, goal_s=GOAL_S)


def disk(scene: Scene) -> None:
    """No file of the server grows any more, as on a full disk."""

    def limit(soft: int) -> None:
        for process in _tree(scene.server.process.pid):
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    def fill(shooter: Shooter) -> str:
        before = len(shooter.answers)
        limit(0)
        time.sleep(scene.fault_s)
        refused = [one for one in shooter.answers[before:] if one.status == 503 and "journal" in one.detail]
        _bitten(len(refused), "requests refused because the journal cannot be written")
        return f"{len(refused)} told so: {refused[0].detail!r}"

    scene.run("disk full", fill, lambda: limit(resource.RLIM_INFINITY), goal_s=GOAL_S)


def memory(scene: Scene) -> None:
    """Every worker is above its limit after every task: each is replaced again and again."""
    limit_mb = int(MEMORY_SHARE * min(psutil.Process(pid).memory_info().rss for pid in scene.workers()) / (1 << 20))
    with serving(scene.world, workers=2, worker_memory_mb=limit_mb) as server:
        leaking = replace(scene, server=server, figures=scene.figures, answers=scene.answers)

        def leak(_: Shooter) -> str:
            time.sleep(scene.fault_s)
            restarts = leaking.check("inference_workers")["restarts"]
            _bitten(restarts, "workers replaced")
            return f"{restarts} workers replaced, limit {limit_mb} MB"

        leaking.run("workers above their memory limit", leak, _nothing, goal_s=None)
        _shipped(leaking)


def _nothing() -> None:
    """Nothing heals but the server itself."""


def _bitten(count: int, what: str) -> None:
    """A fault that does nothing proves nothing."""
    if not count:
        raise RuntimeError(f"the fault did nothing: no {what}")


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


FAULTS: dict[str, Callable[[Scene], None]] = {
    "killed": killed_workers,
    "hung": hung_worker,
    "stores": stores,
    "clients": clients,
    "disk": disk,
    "memory": memory,
}


# ---------------------------------------------------------------- the scene


def write_offline(world: World) -> None:
    """The rows that are online, offline too: decision records are computed again from there."""
    done = world.home / "offline-filled"
    if done.exists():
        return
    offline, views = PostgresOfflineStore(world.services.postgres), catalog()
    for view in views.schemas.values():
        offline.create_view(view)
    rows = batch.rows_at(
        list(views.schemas.values()),
        world.edges(),
        as_of_ms=world.payments.end_ms,
        settings=FeatureSettings(),
    )
    for at, (name, table) in enumerate(rows):
        offline.write(views.schemas[name], table, part=f"bench-{at}")
    offline.close()
    done.touch()


@contextmanager
def scene(world: World, given: argparse.Namespace, environment: dict[str, str]) -> Iterator[Scene]:
    """A server that reaches its stores through proxies."""
    services = world.services
    with ExitStack() as opened:
        neo4j_host, _, neo4j_port = services.neo4j.uri.rpartition("://")[2].partition(":")
        behind = {
            "redis": (services.redis.host, services.redis.port),
            "postgres": (services.postgres.host, services.postgres.port),
            "neo4j": (neo4j_host, int(neo4j_port)),
            # MLflow keeps its registry in a database of its own on the same server.
            "mlflow": (services.postgres.host, services.postgres.port),
        }
        proxies = {name: Proxy(place) for name, place in behind.items()}
        for proxy in proxies.values():
            opened.callback(proxy.close)
        tracking = services.environment["MLFLOW_TRACKING_URI"]
        through = {
            "RINGFENCE_REDIS_PORT": str(proxies["redis"].port),
            "RINGFENCE_POSTGRES_PORT": str(proxies["postgres"].port),
            "RINGFENCE_NEO4J_URI": f"bolt://127.0.0.1:{proxies['neo4j'].port}",
            "MLFLOW_TRACKING_URI": tracking.replace(f":{services.postgres.port}/", f":{proxies['mlflow'].port}/"),
        }
        server = opened.enter_context(serving(world, environment={**through, **environment}, workers=2))
        # The model that the scores are computed with is the one that the server has fetched.
        made, changing = targets(world, count=given.targets, size=given.size)
        yield Scene(
            world=world,
            server=server,
            proxies=proxies,
            targets=made,
            changing=changing,
            fault_s=given.fault_s,
            kill_s=given.kill_s,
        )


def _shipped(scene: Scene) -> None:
    """Wait until what was decided is in the database."""
    give_up = time.monotonic() + SHIPPING_LIMIT_S
    while scene.check("decisions")["backlog_bytes"]:
        if time.monotonic() > give_up:
            raise TimeoutError(f"decisions are not in their database after {SHIPPING_LIMIT_S:g} s")
        time.sleep(0.2)


def check_records(scene: Scene, writer: Writer, after_id: int) -> list[Figure]:
    """All records of the run: that they are there, what they say, and what comes of them again."""
    postgres, folder = scene.world.services.postgres, scene.world.home / "models" / "ringfence"
    bundle = Bundle.load(max(folder.glob("[0-9]*"), key=lambda one: int(one.name)))
    found = read_decisions(postgres, after_id=after_id)
    answered = sum(answer.status == 200 for answer in scene.answers)
    shown = f"{answered} answers of 200, {found.total} records, {len(found.distinct)} of them different"
    late, looked = behind(scene.answers, found, writer.accepted)
    counts = {
        "answers of 200 without their records": (unrecorded(scene.answers, found), shown),
        "records that give another score": (
            differing(postgres, bundle, found),
            f"{shown}; rows from the offline store",
        ),
        "scores without a payment accepted before": (late, f"{looked} accounts of scores that were not degraded"),
    }
    note(f"  {counts}")
    return [Figure(name=name, value=value, unit="", goal=0, conditions=what) for name, (value, what) in counts.items()]


def measured(home: Path, given: argparse.Namespace) -> list[Figure]:
    """Every fault in turn."""
    payments = Payments(n_accounts=given.accounts, n_payments=given.payments, days=60, seed=given.seed)
    world = World(home=home, payments=payments)
    world.fill()
    write_offline(world)
    # A short patience with clients, so that what ends them is seen; the registry asked often, so that its fall is.
    patience = {f"RINGFENCE_SERVING_{name}_TIMEOUT_S": CLIENT_TIMEOUT_S for name in ("BODY", "HEADER", "WRITE")}
    environment = {**patience, "RINGFENCE_SERVING_MODEL_POLL_S": "1"}
    try:
        with scene(world, given, environment) as running:
            after_id = last_decision(world.services.postgres)
            writer = Writer(world, running.server.url, running.changing)
            writer.start()
            for name, fault in FAULTS.items():
                if given.only is None or name in given.only:
                    fault(running)
            writer.stop()
            shown = f"{len(writer.accepted)} payments, as many labels; statuses {writer.statuses}"
            running.figures += check_writes(world, writer.accepted, shown)
            _shipped(running)
            running.figures += check_records(running, writer, after_id)
            return running.figures
    finally:
        world.close()


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--accounts", type=int, default=5_000)
    parser.add_argument("--payments", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--targets", type=int, default=36, help="different requests")
    parser.add_argument("--size", type=int, default=20, help="payments in each")
    parser.add_argument("--kill-s", type=float, default=60.0)
    parser.add_argument("--fault-s", type=float, default=8.0)
    parser.add_argument("--home", type=Path, help="keep the servers and what is in them here")
    given: Any = parser.parse_args()
    with guarded_home() if given.home is None else nullcontext(given.home) as home:
        publish("faults", measured(home.resolve(), given))


if __name__ == "__main__":
    main()
