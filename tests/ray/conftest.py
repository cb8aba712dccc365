"""A real Ray cluster on this machine: a head without room for work, and two nodes of one core each."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.scale_cluster import node_ports, started
from graph_features.settings import ExecutorKind, ExecutorSettings

ROOT = Path(__file__).parents[2]
STORE_BYTES = 80 << 20
NOTICE_DEATH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1_000,
    "health_check_failure_threshold": 6,
}


@dataclass
class TestCluster:
    """The cluster, and its nodes that can be killed."""

    __test__ = False

    cluster: Any
    nodes: list[Any] = field(default_factory=list)

    @property
    def settings(self) -> ExecutorSettings:
        return ExecutorSettings(executor=ExecutorKind.RAY, ray_address=self.cluster.address)

    def grow(self, nodes: int) -> None:
        """Have so many nodes that work."""
        sizes = {"wait": False, "num_cpus": 1, "object_store_memory": STORE_BYTES}
        while len(self.nodes) < nodes:
            self.nodes.append(started(lambda: self.cluster.add_node(**sizes, **node_ports())))

    def kill(self) -> None:
        """Kill a node with all that runs on it, as a machine that loses its power."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[TestCluster]:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    # Nodes import what this process does; neither usage reports nor a dashboard belong into a test.
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head = {
        "num_cpus": 0,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
        "_system_config": NOTICE_DEATH,
    }
    made = TestCluster(cluster=started(lambda: Cluster(initialize_head=True, head_node_args={**head, **node_ports()})))
    try:
        yield made
    finally:
        ray.shutdown()
        made.cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def nodes(ray_cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> TestCluster:
    """The cluster with two nodes that work, and settings that send work there."""
    ray_cluster.grow(2)
    monkeypatch.setenv("RINGFENCE_EXECUTOR", "ray")
    monkeypatch.setenv("RINGFENCE_RAY_ADDRESS", ray_cluster.cluster.address)
    return ray_cluster


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stories() -> ModuleType:
    """The module histories.py of the feature tests."""
    return _load("ringfence_ray_histories", ROOT / "tests" / "unit" / "features" / "histories.py")


@pytest.fixture(scope="session")
def small_world() -> ModuleType:
    """The conftest of the serving tests: four views and models that read them."""
    return _load("ringfence_ray_world", ROOT / "tests" / "unit" / "serving" / "conftest.py")
