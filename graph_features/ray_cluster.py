"""The Ray cluster that this process talks to, and what a Ray worker needs to know of the process that sent it work.

Ray is an extra: nothing but this module, the executor, the crew and the pool on Ray import it, and only when asked to.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from graph_features.errors import SettingsError, StoreUnavailableError
from graph_features.settings import ExecutorSettings, export_services_environment

_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY")
_OWN = frozenset({"RINGFENCE_HOME", "RINGFENCE_EXECUTOR", "RINGFENCE_RAY_ADDRESS"})
"""What belongs to a node: where it keeps its caches, and how it sends on work, which it does not."""

_adopted: dict[str, str] = {}
_connecting = threading.Lock()


def connect(settings: ExecutorSettings) -> Any:
    """Return the module `ray`, connected to the cluster; threads and executors of a process share the connection.

    Raises SettingsError when Ray is not installed, StoreUnavailableError when the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise SettingsError(
            "RINGFENCE_EXECUTOR or RINGFENCE_SERVING_POOL asks for Ray: install ringfence[ray]"
        ) from None

    with _connecting:
        if ray.is_initialized():
            return ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            with _signals_kept():
                ray.init(
                    address=settings.ray_address, log_to_driver=False, configure_logging=False, namespace="ringfence"
                )
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            raise StoreUnavailableError(
                f"no Ray cluster at {settings.ray_address} (RINGFENCE_RAY_ADDRESS): {error}"
            ) from None
    return ray


def own_address(settings: ExecutorSettings) -> str:
    """Return the address under which nodes of the cluster reach this machine."""
    return str(connect(settings).util.get_node_ip_address())


def disconnect() -> None:
    """End the connection, if there is one: what this process has running on the cluster ends too."""
    import ray

    with _connecting:
        ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it connects: an orderly stop is ours to see to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def sent_environment() -> dict[str, str]:
    """Return the settings that go along with work: all RINGFENCE_ variables but secrets and what is a node's own.

    Ray keeps what is sent in the memory of several processes and shows some of it in its dashboard; passwords are to be
    in the environment of the nodes.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("RINGFENCE_") and name not in _OWN and not _SECRET.search(name)
    }


def adopt(environment: Mapping[str, str]) -> None:
    """Have this worker's environment say what the sender's did; what a former sender alone had set goes."""
    for name in [name for name in _adopted if name not in environment]:
        if os.environ.get(name) == _adopted.pop(name):
            del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = _adopted[name] = value
    export_services_environment()


def options(settings: ExecutorSettings) -> dict[str, Any]:
    """Return what Ray reserves for a task or an actor, and that it spreads them over the nodes."""
    reserved: dict[str, Any] = {"num_cpus": settings.ray_task_cpus, "scheduling_strategy": "SPREAD"}
    if settings.ray_task_memory_mb:
        reserved["memory"] = settings.ray_task_memory_mb << 20
    return reserved
