"""The pool of workers on a Ray cluster: an actor instead of a process, the same supervision, deadlines and retry.

Each actor is fed, watched and replaced by a thread of its own, as processes are. Ray itself restarts nothing here: a
worker counts as up only when its handler is built and the calls of `on_start` are done, and a task is retried once.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from graph_features.errors import ModelError, RingfenceError
from graph_features.ray_cluster import connect, options, sent_environment
from graph_features.settings import ExecutorSettings
from serving.pool import SlotPool
from serving.ray_worker import RayWorker, files_in, folders_of
from serving.slots import START_TIMEOUT_S, PoolBrokenError, Shared, Slot, Task, TaskTimeoutError, WorkerLostError
from serving.worker import Call, HandlerSpec, Reply

_IDLE_CHECK_S = 0.2
_BUNDLES_KEPT = 2


class RayPool(SlotPool):
    """`size` actors on a cluster."""

    def __init__(self, *, name: str, size: int, spec: HandlerSpec, settings: ExecutorSettings) -> None:
        shared, cluster = Shared(), _Cluster(connect(settings), spec, settings)
        super().__init__(name, shared, [RaySlot(f"{name}-{number}", shared, cluster) for number in range(size)])


class _Cluster:
    """Starts actors, and keeps the files of the newest models in the object store: each node fetches them once."""

    def __init__(self, ray: Any, spec: HandlerSpec, settings: ExecutorSettings) -> None:
        self.ray = ray
        self._spec = spec
        self._environment = sent_environment()
        actor = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"watch": 1})(RayWorker)
        self._actor = actor.options(**options(settings))
        self._lock = threading.Lock()
        self._files: dict[str, Any] = {}

    def start(self) -> tuple[Any, Any]:
        """Return a new actor and what becomes ready when it has been built or could not be."""
        actor = self._actor.remote(self._spec)
        return actor, actor.build.remote(self._environment)

    def shipped(self, folders: set[str]) -> dict[str, Any]:
        """Return references to the files of models, by their folder here; raise ModelError when they cannot be read."""
        with self._lock:
            for folder in folders - self._files.keys():
                self._files[folder] = self.ray.put(files_in(folder))
            found = {folder: self._files[folder] for folder in folders}
            while len(self._files) > _BUNDLES_KEPT:
                del self._files[next(iter(self._files))]
            return found


class RaySlot(Slot):
    """Keeps one actor alive and hands it one task after the other."""

    def __init__(self, name: str, shared: Shared, cluster: _Cluster) -> None:
        super().__init__(name, shared)
        self._cluster = cluster
        self._ray = cluster.ray
        self.start_errors = (RingfenceError, cluster.ray.exceptions.RayError)
        self._actor: Any = None
        self._death: Any = None
        """Becomes ready when the actor dies: a call that never returns."""

        self._sent: set[str] = set()
        """Folders of the models that the actor has been sent the files of."""

    def _has_worker(self) -> bool:
        return self._actor is not None

    def _is_up(self) -> bool:
        return self._actor is not None and not self._ray.wait([self._death], timeout=0)[0]

    def _start_worker(self) -> None:
        self._actor, built = self._cluster.start()
        self._sent = set()
        reply = self._step(built)
        for call in list(self._shared.setup.values()):
            self._step(self._send(call))
        self._death = self._actor.watch.options(concurrency_group="watch").remote()
        self._up(reply.value)

    def _send(self, call: Call) -> Any:
        """Have the actor do a call; with it go the files of models that it has not had: a new one has none."""
        folders = folders_of(call) - self._sent
        reference = self._actor.call.remote(call, self._cluster.shipped(folders) if folders else {})
        self._sent |= folders
        return reference

    def _step(self, reference: Any) -> Reply:
        """Wait for a step of the start; a cluster without room is waited for, a closing pool is not."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ray.wait([reference], timeout=_IDLE_CHECK_S)[0]:
            if self._shared.closing or time.monotonic() > deadline:
                raise PoolBrokenError("the cluster has no room for the worker, or it takes too long to start")
        reply: Reply = self._ray.get(reference)
        if reply.error_type:
            raise PoolBrokenError(f"{reply.error_type}: {reply.error_message}")
        return reply

    def _next_task(self) -> Task | None:
        with self._shared.changed:
            if not self.inbox and not self._shared.queue and not self._shared.closing:
                self._shared.changed.wait(_IDLE_CHECK_S)
            return None if self._shared.closing else self._take()

    def _run_task(self, task: Task) -> None:
        try:
            reply: Reply = self._ray.get(self._send(task.call), timeout=max(0.0, task.give_up - time.monotonic()))
        except ModelError as error:
            task.fail(error)
        except self._ray.exceptions.GetTimeoutError:
            self._lost("worker hung")
            self._retry(task, TaskTimeoutError())
        except self._ray.exceptions.RayError as error:
            self._lost(f"worker died at work: {type(error).__name__}")
            self._retry(task, WorkerLostError())
        else:
            if reply.error_type:
                # It may be that the files could not be kept: they go with the next call once more.
                self._sent.clear()
            self._worked()
            task.finish(reply)

    def _end_worker(self, *, kill: bool) -> None:  # noqa: ARG002 - an actor has no end of its own
        self._down()
        self._kill()
        self._actor = self._death = None

    def _kill(self) -> None:
        actor = self._actor
        if actor is not None:
            self._ray.kill(actor)
