"""The online store on a Redis Cluster of six processes against one Redis: the same rows, read and written in turn."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import redis
from pydantic import SecretStr

from bench.features_data import Payments
from bench.report import Figure
from bench.timing import alternately, note
from graph_features.catalog import catalog
from graph_features.drivers.batch import latest_rows
from graph_features.schema import EntityKey
from graph_features.settings import FeatureSettings, RedisSettings
from graph_features.stores.redis import RedisOnlineStore
from infra.local.binaries import find_redis

HOST = "127.0.0.1"
MASTERS = 3
SLOTS = 16_384
WAIT_S = 60.0
READ = 400
"""Accounts of a shard of 200 transactions."""
ROUNDS = 15
GOAL = 0.5
ROWS = Payments(n_accounts=5_000, n_payments=50_000, days=60, seed=7)


def figures() -> list[Figure]:
    """Start seven processes and measure."""
    edges = ROWS.edges()
    views = [view for view in catalog().event_views() if view.entity == "account"]
    tables = {
        view.name: pa.concat_tables(latest_rows(view, edges, None, before_ms=ROWS.end_ms, settings=FeatureSettings()))
        for view in views
    }
    keys: list[EntityKey] = [(one,) for one in edges.account_ids[:READ].tolist()]
    with _servers() as (cluster, single):
        stores = [RedisOnlineStore(settings, project="scale") for settings in (cluster, single)]

        def write(store: RedisOnlineStore) -> None:
            store.teardown()
            for view in views:
                store.write(view, tables[view.name])

        def read(store: RedisOnlineStore) -> object:
            return store.read_with_pending([(view, keys) for view in views], keys)

        note(f"  {len(views)} views of {edges.n_accounts:,} accounts written, then {READ} accounts read")
        written = alternately(5, *(lambda store=store: write(store) for store in stores))
        if read(stores[0]) != read(stores[1]):
            raise AssertionError("the cluster and the one Redis answer differently")
        taken = alternately(ROUNDS, *(lambda store=store: read(store) for store in stores))
        for store in stores:
            store.close()
    rows = sum(table.num_rows for table in tables.values())
    return [
        Figure(
            name=f"online read of {READ} accounts, Redis Cluster",
            value=taken[0] * 1e3,
            unit="ms",
            peer="one Redis",
            peer_value=taken[1] * 1e3,
            goal=GOAL,
            goal_on="ratio",
            conditions=f"{len(views)} event views with pending marks; six processes here; median of {ROUNDS}",
        ),
        Figure(
            name="online write, Redis Cluster",
            value=rows / written[0],
            unit="rows/s",
            better="higher",
            peer="one Redis",
            peer_value=rows / written[1],
            conditions=f"{rows:,} rows; median of 5",
        ),
    ]


@contextmanager
def _servers() -> Iterator[tuple[RedisSettings, RedisSettings]]:
    """Yield the settings of a cluster of three masters with a replica each, and of one Redis."""
    password = secrets.token_hex(8)
    with TemporaryDirectory(prefix="ringfence-scale-") as folder, ExitStack() as running:
        ports = _free_ports(2 * MASTERS + 1)
        for port in ports:
            process = _start(Path(folder) / str(port), port, password, in_cluster=port != ports[-1])
            running.callback(process.wait)
            running.callback(process.kill)
        _form(ports[:-1], password)
        settings = [
            RedisSettings(host=HOST, port=port, password=SecretStr(password), cluster=cluster)
            for port, cluster in ((ports[0], True), (ports[-1], False))
        ]
        yield settings[0], settings[1]


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and free 10,000 above, where the nodes of a cluster talk to each other."""
    found: list[int] = []
    for port in range(23_000 + secrets.randbelow(15_000), 50_000):
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind((HOST, port))
            other.bind((HOST, port + 10_000))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports for a Redis Cluster")


def _start(place: Path, port: int, password: str, *, in_cluster: bool) -> subprocess.Popen[bytes]:
    place.mkdir()
    lines = [
        f"bind {HOST}",
        f"port {port}",
        f"dir {place}",
        f"requirepass {password}",
        f"masterauth {password}",
        'save ""',
    ]
    if in_cluster:
        lines.append("cluster-enabled yes")
    (place / "redis.conf").write_text("\n".join(lines) + "\n")
    with (place / "log").open("wb") as log:
        command = [find_redis(packaged=True).path, place / "redis.conf"]
        return subprocess.Popen(command, stdout=log, stderr=log)


def _form(ports: list[int], password: str) -> None:
    with ExitStack() as opened:
        nodes = [opened.enter_context(redis.Redis(host=HOST, port=port, password=password)) for port in ports]
        _until(lambda: all(node.ping() for node in nodes))
        for node in nodes[1:]:
            node.execute_command("CLUSTER MEET", HOST, ports[0])
        for at, node in enumerate(nodes[:MASTERS]):
            slots = range(at * SLOTS // MASTERS, (at + 1) * SLOTS // MASTERS)
            node.execute_command("CLUSTER ADDSLOTS", *slots)
        _until(lambda: all(_told(node, "cluster_known_nodes") == str(len(nodes)) for node in nodes))
        for at, node in enumerate(nodes[MASTERS:]):
            master = nodes[at].execute_command("CLUSTER MYID")
            node.execute_command("CLUSTER REPLICATE", master.decode())
        _until(lambda: all(_told(node, "cluster_state") == "ok" for node in nodes))


def _told(node: redis.Redis, name: str) -> str:
    found: Any = node.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
    return str(found[name])


def _until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + WAIT_S
    while time.monotonic() < limit:
        with suppress(redis.ConnectionError):
            if done():
                return
        time.sleep(0.05)
    raise TimeoutError(f"the Redis Cluster was not ready within {WAIT_S:.0f} s")
