"""The REST server under load while what it stands on falls: every answer is checked, every recovery timed.

    python -m bench.faults [--only FAULT ...] [--accounts 5000 --payments 40000] [--kill-s 60] [--fault-s 8]

Workers are killed and stopped; Redis, PostgreSQL, Neo4j and MLflow are reached through a proxy that refuses, delays by
500 ms, cuts and falls silent; clients trickle; the disk fills; workers are always above their memory limit. Wrong is an
answer of 200 whose score is not degraded and not the one computed beforehand, another order, or a refusal without a
problem document.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from bench.faults_check import recomputed
from bench.faults_load import Shooter, Target, targets
from bench.features_data import Payments
from bench.homes import guarded_home
from bench.http_load import KEY
from bench.proxy import Mode, Proxy
from bench.report import Figure, publish
from bench.serving_world import Process, World, serving
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.stores.postgres import PostgresOfflineStore
from training.bundle import Bundle

STORES = ("redis", "postgres", "neo4j")
MODES = {"stopped": Mode.REFUSE, "slow": Mode.SLOW, "cut": Mode.CUT, "silent": Mode.SILENT}
CHECKED = 100
HEADERS = {"X-API-Key": KEY}
RECOVERY_LIMIT_S = 60.0
GOAL_S = 1.0
TOLERANCE = 1e-6


@dataclass(kw_only=True)
class Scene:
    """A server behind proxies, the load on it, and what is known of both."""

    world: World
    server: Process
    proxies: dict[str, Proxy]
    targets: list[Target]
    fault_s: float
    kill_s: float
    figures: list[Figure] = field(default_factory=list)

    def pids(self, pool: str) -> list[int]:
        """Processes of a pool as /health names them."""
        reply = httpx.get(f"{self.server.url}/health", timeout=30, headers=HEADERS).json()
        pids: list[int] = reply["checks"][pool]["detail"].get("pids", [])
        return pids

    def run(self, name: str, fault: Callable[[], None], heal: Callable[[], None], *, goal_s: float | None) -> None:
        """Load alone, load with the fault, load until all is well again."""
        with Shooter(url=self.server.url, targets=self.targets) as shooter:
            begun = time.monotonic()
            shooter.recovered(begun, limit_s=RECOVERY_LIMIT_S)
            try:
                fault()
            finally:
                heal()
            recovery_s = shooter.recovered(time.monotonic(), limit_s=RECOVERY_LIMIT_S)
        answers = shooter.since(begun)
        wrong = [answer.wrong for answer in answers if answer.wrong]
        failed = sum(answer.status != 200 for answer in answers)
        slowest = max(answer.done - answer.sent for answer in answers)
        degraded = sum(answer.degraded for answer in answers)
        note(f"  {name}: {len(answers)} sent, {failed} failed, {degraded} degraded, {recovery_s:.2f} s; {wrong[:2]}")
        shown = f"{len(answers)} requests sent, {failed} refused, {degraded} degraded, slowest {slowest:.1f} s"
        self.figures += [
            Figure(name=f"{name}: wrong answers", value=len(wrong), unit="answers", goal=0, conditions=shown),
            Figure(name=f"{name}: failed", value=failed, unit="requests", conditions=shown),
            Figure(name=f"{name}: until all is well", value=recovery_s, unit="s", goal=goal_s, conditions=shown),
        ]


# ---------------------------------------------------------------- faults


def killed_workers(scene: Scene) -> None:
    """An inference worker is killed every second."""
    pick = random.Random(1)

    def kill() -> None:
        for _ in range(max(1, int(scene.kill_s))):
            if pids := scene.pids("inference_workers"):
                with suppress(ProcessLookupError):
                    os.kill(pick.choice(pids), signal.SIGKILL)
            time.sleep(1.0)

    scene.run("worker killed every second", kill, _nothing, goal_s=GOAL_S)


def hung_worker(scene: Scene) -> None:
    """A worker is stopped and never goes on by itself."""

    def stop() -> None:
        os.kill(scene.pids("inference_workers")[0], signal.SIGSTOP)
        time.sleep(scene.fault_s)

    scene.run("worker hangs", stop, _nothing, goal_s=GOAL_S)


def stores(scene: Scene) -> None:
    """Each store refuses, is slow, cuts its connections and falls silent."""
    for name, proxy in scene.proxies.items():
        for label, mode in MODES.items():

            def fault(proxy: Proxy = proxy, mode: Mode = mode) -> None:
                proxy.set(mode)
                time.sleep(scene.fault_s)

            def heal(proxy: Proxy = proxy) -> None:
                proxy.set(Mode.PASS)

            scene.run(f"{name} {label}", fault, heal, goal_s=None)


def clients(scene: Scene) -> None:
    """Two hundred clients that connect and say nothing, or a byte now and then."""

    def trickle() -> None:
        with ExitStack() as opened:
            place = ("127.0.0.1", scene.server.port)
            idle = [opened.enter_context(closing(socket.create_connection(place))) for _ in range(200)]
            for one in idle[:100]:
                one.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            end = time.monotonic() + scene.fault_s
            while time.monotonic() < end:
                for one in idle[:100]:
                    with suppress(OSError):
                        one.sendall(b" ")
                time.sleep(0.5)

    scene.run("200 slow clients", trickle, _nothing, goal_s=GOAL_S)


def disk(scene: Scene) -> None:
    """No file of the server grows any more, as on a full disk."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def limit(soft: int) -> None:
        for process in _tree(scene.server.process.pid):
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    def fill() -> None:
        limit(0)
        time.sleep(scene.fault_s)

    scene.run("disk full", fill, lambda: limit(unlimited[0]), goal_s=GOAL_S)


def memory(scene: Scene) -> None:
    """Every worker is above its limit after every task: each is replaced again and again."""
    with serving(scene.world, workers=2, worker_memory_mb=1) as server:
        leaking = replace(scene, server=server, figures=scene.figures)
        leaking.run("workers above their memory limit", lambda: time.sleep(scene.fault_s), _nothing, goal_s=None)


def _nothing() -> None:
    """Nothing heals but the server itself."""


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
    from graph_features.drivers import batch
    from graph_features.settings import FeatureSettings

    done = world.home / "offline-filled"
    if done.exists():
        return
    offline, views = PostgresOfflineStore(world.services.postgres), catalog()
    for view in views.schemas.values():
        offline.create_view(view)
    rows = batch.rows_at(
        list(views.schemas.values()),
        world.payments.edges(),
        as_of_ms=world.payments.end_ms,
        settings=FeatureSettings(),
    )
    for at, (name, table) in enumerate(rows):
        offline.write(views.schemas[name], table, part=f"bench-{at}")
    offline.close()
    done.touch()


@contextmanager
def scene(world: World, *, fault_s: float, kill_s: float, count: int = 40, size: int = 20) -> Iterator[Scene]:
    """A server that reaches its stores through proxies."""
    services = world.services
    with ExitStack() as opened:
        proxies = {}
        for name, settings in (("redis", services.redis), ("postgres", services.postgres)):
            proxies[name] = Proxy((settings.host, settings.port))
        host, _, port = services.neo4j.uri.rpartition("://")[2].partition(":")
        proxies["neo4j"] = Proxy((host, int(port)))
        for proxy in proxies.values():
            opened.callback(proxy.close)
        # MLflow's own database is the same PostgreSQL: the registry is away whenever that is.
        tracking = services.environment["MLFLOW_TRACKING_URI"]
        behind = {
            "RINGFENCE_REDIS_PORT": str(proxies["redis"].port),
            "RINGFENCE_POSTGRES_PORT": str(proxies["postgres"].port),
            "RINGFENCE_NEO4J_URI": f"bolt://127.0.0.1:{proxies['neo4j'].port}",
            "MLFLOW_TRACKING_URI": tracking.replace(f":{services.postgres.port}/", f":{proxies['postgres'].port}/"),
            "RINGFENCE_REDIS_TIMEOUT_S": "1",
        }
        server = opened.enter_context(serving(world, environment=behind, workers=2))
        yield Scene(
            world=world,
            server=server,
            proxies=proxies,
            targets=targets(world, count=count, size=size),
            fault_s=fault_s,
            kill_s=kill_s,
        )


def check_records(scene: Scene) -> Figure:
    """Decision records of the load, computed again from the offline store."""
    with httpx.Client(base_url=scene.server.url, timeout=60, headers=HEADERS) as http:
        ids = [one["transaction_id"] for target in scene.targets for one in target.payments][:CHECKED]
        records = [
            record
            for one in ids
            for record in http.get(f"/decisions/{one}", params={"limit": 3}).raise_for_status().json()["decisions"]
        ]
    for record in records:
        moment = np.datetime64(record["event_timestamp"].removesuffix("Z"), "ms")
        record["event_timestamp_ms"] = int(moment.astype(np.int64))
    bundle = Bundle.load(max((scene.world.home / "models" / "ringfence").glob("[0-9]*"), key=lambda one: int(one.name)))
    again = recomputed(scene.world.services.postgres, bundle, records)
    differ = int((np.abs(again - np.array([record["fraud_score"] for record in records])) > TOLERANCE).sum())
    note(f"  {len(records)} decision records computed again: {differ} differ")
    return Figure(name="decision records that give another score", value=differ, unit="records", goal=0,
                  conditions=f"{len(records)} records, rows from the offline store")  # fmt: skip


def measured(home: Path, given: argparse.Namespace) -> list[Figure]:
    """Every fault in turn."""
    payments = Payments(n_accounts=given.accounts, n_payments=given.payments, days=60, seed=given.seed)
    world = World(home=home, payments=payments)
    world.fill()
    write_offline(world)
    try:
        with scene(world, fault_s=given.fault_s, kill_s=given.kill_s) as made:
            for name, fault in FAULTS.items():
                if given.only is None or name in given.only:
                    fault(made)
            made.figures.append(check_records(made))
            return made.figures
    finally:
        world.close()


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--accounts", type=int, default=5_000)
    parser.add_argument("--payments", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--kill-s", type=float, default=60.0)
    parser.add_argument("--fault-s", type=float, default=8.0)
    parser.add_argument("--home", type=Path, help="keep the servers and what is in them here")
    given: Any = parser.parse_args()
    with guarded_home() if given.home is None else nullcontext(given.home) as home:
        publish("faults", measured(home.resolve(), given))


if __name__ == "__main__":
    main()
