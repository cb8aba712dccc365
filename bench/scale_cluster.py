"""A Ray cluster on this machine: a head without room for work, and nodes of one core each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graph_features.ray_cluster import disconnect
from graph_features.settings import ExecutorKind, ExecutorSettings

ROOT = Path(__file__).parents[1]


@contextmanager
def ray_cluster(*, nodes: int, store_mb: int = 200) -> Iterator[ExecutorSettings]:
    """Yield the settings that reach the cluster; its nodes import what this process does."""
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    size = store_mb << 20
    head = {"num_cpus": 0, "object_store_memory": size, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=size)
        yield ExecutorSettings(executor=ExecutorKind.RAY, ray_address=cluster.address)
    finally:
        disconnect()
        cluster.shutdown()  # type: ignore[no-untyped-call]
