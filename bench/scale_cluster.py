"""A Ray cluster on this machine: a head without room for work, and nodes of one core each."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from graph_features.ray_cluster import disconnect
from graph_features.settings import ExecutorKind, ExecutorSettings

START_LIMIT_S = 60.0
STARTS = 3
ROOT = Path(__file__).parents[1]

N = TypeVar("N")


@contextmanager
def ray_cluster(*, nodes: int, store_mb: int = 200) -> Iterator[ExecutorSettings]:
    """Yield the settings that reach the cluster; its nodes import what this process does."""
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    size = store_mb << 20
    head = {"num_cpus": 0, "object_store_memory": size, "include_dashboard": False}
    cluster = started(lambda: Cluster(initialize_head=True, head_node_args={**head, **node_ports()}))
    try:
        for _ in range(nodes):
            started(lambda: cluster.add_node(wait=False, num_cpus=1, object_store_memory=size, **node_ports()))
        yield ExecutorSettings(executor=ExecutorKind.RAY, ray_address=cluster.address)
    finally:
        disconnect()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def node_ports() -> dict[str, int]:
    """Free ports for a node's agents: a node ends when they have not told theirs within fifteen seconds."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


def started(start: Callable[[], N]) -> N:
    """Return the node or cluster that `start` starts, begun again when it does not come up.

    A node gives its agents fifteen seconds, which no setting changes, and ends by itself when a busy machine takes
    longer to start them.
    """
    for _ in range(STARTS - 1):
        try:
            with _patience():
                return start()
        except Exception as error:  # Ray has no class for it
            if "timed out during startup" not in str(error):
                raise
    with _patience():
        return start()


@contextmanager
def _patience() -> Iterator[None]:
    """Ray gives a node half a minute to say that it is there, which a busy machine may exceed: wait for it here."""
    from ray._private import services

    look: Any = services.get_node

    def wait(*args: Any) -> Any:
        limit = time.monotonic() + START_LIMIT_S
        while True:
            try:
                return look(*args)
            except RuntimeError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.1)

    services.get_node = wait
    try:
        yield
    finally:
        services.get_node = look
