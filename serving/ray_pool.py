"""The pool of workers on a Ray cluster: an actor instead of a process, the same supervision, deadlines and retry.

Each actor is fed, watched and replaced by a thread of its own, as processes are. Ray itself restarts nothing here: a
worker counts as up only when its handler is built and the calls of `on_start` are done, and a task is retried once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

from graph_features.errors import RingfenceError
from graph_features.ray_cluster import connect, options, sent_environment
from graph_features.settings import ExecutorSettings
from serving.pool import PoolStatus
from serving.ray_worker import Files, RayWorker, files_of
from serving.slots import (
    MAX_ATTEMPTS,
    START_TIMEOUT_S,
    PoolBrokenError,
    Shared,
    Task,
    TaskTimeoutError,
    WorkerLostError,
)
from serving.worker import Call, HandlerSpec, Reply

log = logging.getLogger("ringfence.serving.ray_pool")

_IDLE_CHECK_S = 0.2
_LONGEST_BACKOFF_S = 5.0
_BUNDLES_KEPT = 2


class RayPool:
    """`size` actors on a cluster, with the interface of serving.pool.Pool."""

    def __init__(self, *, name: str, size: int, spec: HandlerSpec, settings: ExecutorSettings) -> None:
        self.name = name
        self.size = size
        self._shared = Shared()
        cluster = _Cluster(connect(settings), spec, settings)
        self._slots = [RaySlot(f"{name}-{number}", self._shared, cluster) for number in range(size)]
        for slot in self._slots:
            slot.start()

    def submit(self, method: str, *args: Any, timeout_s: float, hang_s: float | None = None) -> Future[Any]:
        deadline = time.monotonic() + timeout_s
        task = Task(call=Call(method=method, args=args), future=Future(), deadline=deadline, hang_s=hang_s)
        with self._shared.changed:
            self._check_open()
            self._shared.queue.append(task)
            self._shared.changed.notify_all()
        return task.future

    def everywhere(self, method: str, *args: Any, timeout_s: float) -> list[Future[Any]]:
        call, deadline = Call(method=method, args=args), time.monotonic() + timeout_s
        with self._shared.changed:
            self._check_open()
            tasks = [Task(call=call, future=Future(), deadline=deadline) for _ in self._slots]
            for slot, task in zip(self._slots, tasks, strict=True):
                slot.inbox.append(task)
            self._shared.changed.notify_all()
        return [task.future for task in tasks]

    def on_start(self, method: str, *args: Any) -> None:
        with self._shared.changed:
            self._shared.setup[method] = Call(method=method, args=args)

    def status(self) -> PoolStatus:
        with self._shared.changed:
            return PoolStatus(
                name=self.name,
                size=self.size,
                alive=self._shared.alive,
                busy=sum(slot.busy for slot in self._slots),
                queued=len(self._shared.queue),
                restarts=self._shared.restarts,
                retries=self._shared.retries,
                failures=self._shared.failures,
                broken=self._shared.broken,
                pids=tuple(slot.pid for slot in self._slots if slot.pid is not None),
            )

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until every worker has started; raise PoolBrokenError when they do not."""
        deadline = time.monotonic() + timeout_s
        while (status := self.status()).alive < self.size:
            if status.broken or time.monotonic() > deadline:
                raise PoolBrokenError(f"{self.name}: {status.alive} of {self.size} workers started")
            time.sleep(0.01)

    def close(self, *, drain_s: float = 0.0) -> None:
        deadline = time.monotonic() + drain_s
        while time.monotonic() < deadline and (status := self.status()).busy + status.queued:
            time.sleep(0.01)
        with self._shared.changed:
            self._shared.closing = True
            left = list(self._shared.queue) + [task for slot in self._slots for task in slot.inbox]
            self._shared.queue.clear()
            self._shared.changed.notify_all()
        for task in left:
            task.fail(WorkerLostError("The server is stopping."))
        for slot in self._slots:
            slot.stop()

    def _check_open(self) -> None:
        if self._shared.closing:
            raise PoolBrokenError(f"{self.name}: the server is stopping")
        if self._shared.broken:
            raise PoolBrokenError()


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

    def shipped(self, call: Call) -> dict[str, Any]:
        """Return references to the files of the models that a call names to be loaded, by their folder here."""
        found: Files = files_of(call)
        with self._lock:
            for folder, files in found.items():
                if folder not in self._files:
                    self._files[folder] = self.ray.put(files)
                while len(self._files) > _BUNDLES_KEPT:
                    del self._files[next(iter(self._files))]
            return {folder: self._files[folder] for folder in found}


class RaySlot(threading.Thread):
    """Keeps one actor alive and hands it one task after the other."""

    def __init__(self, name: str, shared: Shared, cluster: _Cluster) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: deque[Task] = deque()
        self.pid: int | None = None
        self.busy = False
        self._shared = shared
        self._cluster = cluster
        self._ray = cluster.ray
        self._actor: Any = None
        self._death: Any = None
        """Becomes ready when the actor dies: a call that never returns."""

    def run(self) -> None:
        while not self._shared.closing:
            if not self._ensure_actor():
                continue
            task = self._next_task()
            if task is not None:
                self._run_task(task)
        self._end_actor()

    def stop(self) -> None:
        """End the actor and wait for the thread."""
        self.join(timeout=2.0)
        if self.is_alive():
            actor = self._actor
            if actor is not None:
                self._ray.kill(actor)
            self.join(timeout=2.0)

    def _ensure_actor(self) -> bool:
        """Whether a worker is up, started now if need be."""
        if self._actor is not None:
            if not self._ray.wait([self._death], timeout=0)[0]:
                return True
            self._lost("worker died while idle", failed=False)
        if self._shared.failures:
            self._back_off()
        try:
            self._start_actor()
        except (RingfenceError, self._ray.exceptions.RayError) as error:
            if not self._shared.closing:
                self._lost(f"worker did not start: {error}")
            return False
        return True

    def _start_actor(self) -> None:
        self._actor, built = self._cluster.start()
        reply = self._step(built)
        for call in list(self._shared.setup.values()):
            self._step(self._actor.call.remote(call, self._cluster.shipped(call)))
        self._death = self._actor.watch.options(concurrency_group="watch").remote()
        with self._shared.changed:
            self.pid = reply.value
            self._shared.alive += 1
        log.info("worker started", extra={"worker": self.name, "worker_pid": self.pid})

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
            if self._shared.closing:
                return None
            if self.inbox:
                return self.inbox.popleft()
            return self._shared.queue.popleft() if self._shared.queue else None

    def _run_task(self, task: Task) -> None:
        if not task.start():
            return
        self.busy = True
        try:
            reference = self._actor.call.remote(task.call, self._cluster.shipped(task.call))
            reply: Reply = self._ray.get(reference, timeout=max(0.0, task.give_up - time.monotonic()))
        except self._ray.exceptions.GetTimeoutError:
            self._lost("worker hung")
            self._retry(task, TaskTimeoutError())
        except self._ray.exceptions.RayError as error:
            self._lost(f"worker died at work: {type(error).__name__}")
            self._retry(task, WorkerLostError())
        else:
            if self._shared.failures:
                with self._shared.changed:
                    self._shared.failures = 0
            task.finish(reply)
        finally:
            self.busy = False

    def _retry(self, task: Task, error: RingfenceError) -> None:
        with self._shared.changed:
            again = task.attempts < MAX_ATTEMPTS and time.monotonic() < task.deadline and not self._shared.closing
            if again:
                self._shared.retries += 1
                self._shared.queue.appendleft(task)
                self._shared.changed.notify_all()
        if not again:
            task.fail(error)

    def _lost(self, reason: str, *, failed: bool = True) -> None:
        pid = self.pid
        self._end_actor()
        with self._shared.changed:
            self._shared.failures += failed
            self._shared.restarts += 1
            given_up = list(self._shared.queue) if self._shared.broken else []
            if given_up:
                self._shared.queue.clear()
        log.warning("worker lost", extra={"worker": self.name, "worker_pid": pid, "reason": reason})
        for task in given_up:
            task.fail(PoolBrokenError())

    def _back_off(self) -> None:
        """Restart at once after a first failure, ever later while nothing works."""
        wait_s = min(_LONGEST_BACKOFF_S, 0.02 * 2 ** min(self._shared.failures, 10))
        with self._shared.changed:
            self._shared.changed.wait_for(lambda: self._shared.closing, wait_s)

    def _end_actor(self) -> None:
        with self._shared.changed:
            if self.pid is not None:
                self.pid = None
                self._shared.alive -= 1
        if self._actor is not None:
            self._ray.kill(self._actor)
        self._actor = self._death = None
