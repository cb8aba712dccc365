"""A worker's task, and the thread that feeds a worker and replaces it: what processes and actors have in common."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from graph_features.errors import ModelError, RingfenceError, SchemaMismatchError, StoreUnavailableError
from serving.worker import Call, Reply

log = logging.getLogger("ringfence.serving.pool")

MAX_ATTEMPTS = 2
"""A task whose worker died is tried once more, then given up: it may be what kills them."""

_FAILURES_UNTIL_BROKEN = 5
_LONGEST_BACKOFF_S = 5.0
START_TIMEOUT_S = 180.0
_REBUILT = {error.__name__: error for error in (StoreUnavailableError, SchemaMismatchError, ModelError)}


class WorkerLostError(RingfenceError):
    """The workers that held this task died or hung; send the request again."""


class PoolBrokenError(RingfenceError):
    """Workers cannot be kept alive: the server's log has the reason, /health the state."""


class TaskTimeoutError(RingfenceError):
    """A task did not end in its time."""


class WorkerTooLargeError(RingfenceError):
    """A task took more memory than its worker may hold; send less at once."""


class TaskError(RingfenceError):
    """A task failed inside its worker: the server's log has the traceback."""


@dataclass(kw_only=True)
class Task:
    call: Call
    future: Future[Any]
    deadline: float
    hang_s: float | None = None
    """Time of a first attempt, where that is less than all: a worker that hangs leaves time for another."""

    attempts: int = 0
    fresh: bool = True

    def start(self) -> bool:
        """Mark as running; false when it was cancelled or its time has passed."""
        if self.fresh and not self.future.set_running_or_notify_cancel():
            return False
        self.fresh = False
        if time.monotonic() >= self.deadline:
            self.fail(TaskTimeoutError("A task waited for a worker until its time had passed."))
            return False
        self.attempts += 1
        return True

    @property
    def give_up(self) -> float:
        """When the present attempt has hung."""
        if self.hang_s is None or self.attempts >= MAX_ATTEMPTS:
            return self.deadline
        return min(self.deadline, time.monotonic() + self.hang_s)

    def fail(self, error: RingfenceError) -> None:
        if self.fresh and not self.future.set_running_or_notify_cancel():
            return
        self.fresh = False
        self.future.set_exception(error)

    def finish(self, reply: Reply) -> None:
        if not reply.error_type:
            self.future.set_result(reply.value)
            return
        rebuilt = _REBUILT.get(reply.error_type)
        if rebuilt is None:
            log.error("task failed", extra={"method": self.call.method, "trace": reply.error_trace})
            self.future.set_exception(TaskError(f"{reply.error_type}: {reply.error_message}"))
        else:
            self.future.set_exception(rebuilt(reply.error_message))


@dataclass(kw_only=True)
class Shared:
    """What the slots of a pool share, guarded by `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    queue: deque[Task] = field(default_factory=deque)
    setup: dict[str, Call] = field(default_factory=dict)
    alive: int = 0
    failures: int = 0
    restarts: int = 0
    retries: int = 0
    closing: bool = False

    @property
    def broken(self) -> bool:
        """No worker is up, and the last attempts to change that have failed."""
        return self.alive == 0 and self.failures >= _FAILURES_UNTIL_BROKEN


class Slot(threading.Thread, ABC):
    """Keeps one worker alive and hands it one task after the other; where it works is for the subclasses to say."""

    start_errors: tuple[type[BaseException], ...] = (RingfenceError,)
    """What a worker that does not start is told by."""

    def __init__(self, name: str, shared: Shared) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: deque[Task] = deque()
        self.pid: int | None = None
        self.busy = False
        self._shared = shared

    def run(self) -> None:
        while not self._shared.closing:
            if not self._ensure_worker():
                continue
            task = self._next_task()
            if task is not None and task.start():
                self.busy = True
                try:
                    self._run_task(task)
                finally:
                    self.busy = False
        self._end_worker(kill=False)

    def stop(self) -> None:
        """Wait for the thread, ending a worker that does not come to an end by itself."""
        self.join(timeout=2.0)
        if self.is_alive():
            self._kill()
            self.join(timeout=2.0)

    def _ensure_worker(self) -> bool:
        """Whether a worker is up, started now if need be."""
        if self._is_up():
            return True
        if self._has_worker():
            self._lost("worker died while idle", failed=False)
        if self._shared.failures:
            self._back_off()
        if self._shared.closing:
            return False
        try:
            self._start_worker()
        except self.start_errors as error:
            # One whose start a closing pool gave up is ended with the rest.
            if not self._shared.closing:
                self._lost(f"worker did not start: {error}")
            return False
        return True

    @abstractmethod
    def _has_worker(self) -> bool:
        """Whether there is a worker, alive or dead."""

    @abstractmethod
    def _is_up(self) -> bool:
        """Whether there is one and it is alive."""

    @abstractmethod
    def _start_worker(self) -> None:
        """Start a worker and wait until it can take tasks; raises one of `start_errors`."""

    @abstractmethod
    def _next_task(self) -> Task | None:
        """The next task; None when there is none to begin now: see whether the worker is up, or the pool closes."""

    @abstractmethod
    def _run_task(self, task: Task) -> None:
        """Have a task that was started done, and finish it, fail it or put it back."""

    @abstractmethod
    def _end_worker(self, *, kill: bool) -> None:
        """Let the worker end, or end it, and count it no more."""

    @abstractmethod
    def _kill(self) -> None:
        """End the worker, whatever it does."""

    def _take(self) -> Task | None:
        """The next task, this worker's own first; to be called under the lock."""
        if self.inbox:
            return self.inbox.popleft()
        return self._shared.queue.popleft() if self._shared.queue else None

    def _up(self, pid: int | None) -> None:
        with self._shared.changed:
            self.pid = pid
            self._shared.alive += 1
        log.info("worker started", extra={"worker": self.name, "worker_pid": pid})

    def _down(self) -> None:
        with self._shared.changed:
            if self.pid is not None:
                self.pid = None
                self._shared.alive -= 1

    def _worked(self) -> None:
        if self._shared.failures:
            with self._shared.changed:
                self._shared.failures = 0

    def _retry(self, task: Task, error: RingfenceError) -> None:
        with self._shared.changed:
            again = task.attempts < MAX_ATTEMPTS and time.monotonic() < task.deadline and not self._shared.closing
            if again:
                self._shared.retries += 1
                self._shared.queue.appendleft(task)
                self._shared.changed.notify_all()
        if not again:
            task.fail(error)

    def _worker_pid(self) -> int | None:
        """The process to name in the log when it is lost."""
        return self.pid

    def _lost(self, reason: str, *, failed: bool = True) -> None:
        """Count a worker as lost and end what is left of it; where the pool is broken now, whoever waits is told."""
        pid = self._worker_pid()
        self._end_worker(kill=True)
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
