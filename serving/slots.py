"""One worker process and the thread that starts it, feeds it, watches it and replaces it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

from graph_features.errors import ModelError, RingfenceError, SchemaMismatchError, StoreUnavailableError
from serving.memory import resident_bytes
from serving.watch import Watcher
from serving.worker import Call, HandlerSpec, Reply, worker_main

log = logging.getLogger("ringfence.serving.pool")

MAX_ATTEMPTS = 2
"""A task whose worker died is tried once more, then given up: it may be what kills them."""

_FAILURES_UNTIL_BROKEN = 5
_LONGEST_BACKOFF_S = 5.0
_MEMORY_CHECK_S = 0.5
_FAR_ABOVE = 2
"""A worker so many times above its limit is ended at work: it would take the machine with it."""

_PIPE_TIMEOUT_S = 5
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


class Slot(threading.Thread):
    """Keeps one worker process alive and hands it one task after the other."""

    def __init__(
        self,
        name: str,
        shared: Shared,
        spec: HandlerSpec,
        context: ForkServerContext | SpawnContext,
        watcher: Watcher,
        memory_limit: int,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: deque[Task] = deque()
        self.pid: int | None = None
        self.busy = False
        self._shared = shared
        self._spec = spec
        self._context = context
        self._watcher = watcher
        self._memory_limit = memory_limit
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self) -> None:
        # The fork server is started from here and inherits this: a stop that is sent to the whole group, as process
        # managers do, must not end it, for the workers would count as dead while their last tasks are still at work.
        # The tracker comes first: what starts it takes the block off again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        while not self._shared.closing:
            if not self._ensure_process():
                continue
            task = self._next_task()
            if task is not None:
                self._run_task(task)
        self._end_process(kill=False)

    def stop(self) -> None:
        """Wait for the thread, ending a worker that does not come to an end by itself."""
        self.join(timeout=2.0)
        if self.is_alive():
            self._kill()
            self.join(timeout=2.0)

    def _ensure_process(self) -> bool:
        """Whether a worker is up, started now if need be."""
        if self._process is not None:
            if self._process.is_alive():
                return True
            self._lost("worker died while idle", failed=False)
        if self._shared.failures:
            self._back_off()
        try:
            self._start_process()
        except (OSError, EOFError, PoolBrokenError, TaskTimeoutError) as error:
            self._lost(f"worker did not start: {error}")
            return False
        return True

    def _start_process(self) -> None:
        ours, theirs = self._context.Pipe()
        _limit_blocking(ours)
        process = self._context.Process(target=worker_main, args=(theirs, self._spec), name=self.name, daemon=True)
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        _built(ours, self._receive(time.monotonic() + START_TIMEOUT_S))
        for call in list(self._shared.setup.values()):
            ours.send(call)
            _built(ours, self._receive(time.monotonic() + START_TIMEOUT_S))
        with self._shared.changed:
            self.pid = process.pid
            self._shared.alive += 1
        self._watcher.watch(process.sentinel, partial(self._ended, process))
        log.info("worker started", extra={"worker": self.name, "worker_pid": process.pid})

    def _ended(self, process: BaseProcess) -> None:
        """The watcher saw this process end: it counts no more, and the slot's thread wakes to replace it."""
        with self._shared.changed:
            if process is self._process and self.pid is not None:
                self.pid = None
                self._shared.alive -= 1
            self._shared.changed.notify_all()

    def _next_task(self) -> Task | None:
        """The next task; None when there is none because the worker has ended or the pool closes."""
        with self._shared.changed:
            self._shared.changed.wait_for(
                lambda: self.inbox or self._shared.queue or self._shared.closing or self.pid is None
            )
            if self._shared.closing or self.pid is None:
                return None
            if self.inbox:
                return self.inbox.popleft()
            return self._shared.queue.popleft() if self._shared.queue else None

    def _run_task(self, task: Task) -> None:
        assert self._pipe is not None
        if not task.start():
            return
        self.busy = True
        try:
            self._pipe.send(task.call)
            reply = self._receive(task.give_up, watched=True)
        except (OSError, EOFError):
            self._lost("worker died at work")
            self._retry(task, WorkerLostError())
        except TaskTimeoutError as error:
            self._kill()
            self._lost("worker hung")
            self._retry(task, error)
        except WorkerTooLargeError as error:
            self._kill()
            self._lost("worker far above its memory limit")
            self._retry(task, error)
        else:
            self._worked()
            task.finish(reply)
            self._replace_if_large()
        finally:
            self.busy = False

    def _receive(self, deadline: float, *, watched: bool = False) -> Reply:
        assert self._pipe is not None
        while not self._pipe.poll(max(0.0, min(_MEMORY_CHECK_S, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise TaskTimeoutError
            if watched and self._memory_limit and self._memory() > _FAR_ABOVE * self._memory_limit:
                raise WorkerTooLargeError
        reply: Reply = self._pipe.recv()
        return reply

    def _memory(self) -> int:
        return 0 if self.pid is None else resident_bytes(self.pid)

    def _replace_if_large(self) -> None:
        """Between tasks: a worker that has leaked up to its limit is replaced."""
        if self._memory_limit and self._memory() > self._memory_limit:
            self._lost("worker above its memory limit", failed=False)

    def _retry(self, task: Task, error: RingfenceError) -> None:
        with self._shared.changed:
            again = task.attempts < MAX_ATTEMPTS and time.monotonic() < task.deadline and not self._shared.closing
            if again:
                self._shared.retries += 1
                self._shared.queue.appendleft(task)
                self._shared.changed.notify_all()
        if not again:
            task.fail(error)

    def _worked(self) -> None:
        if self._shared.failures:
            with self._shared.changed:
                self._shared.failures = 0

    def _lost(self, reason: str, *, failed: bool = True) -> None:
        pid = self._process.pid if self._process is not None else None
        self._end_process(kill=True)
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

    def _end_process(self, *, kill: bool) -> None:
        with self._shared.changed:
            if self.pid is not None:
                self.pid = None
                self._shared.alive -= 1
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            if kill:
                self._kill()
            self._process.join(timeout=2.0)
            self._kill()
            self._process.join(timeout=2.0)
        self._process = self._pipe = None

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.is_alive():
            process.kill()


def _limit_blocking(pipe: Connection) -> None:
    """A stopped worker neither reads nor writes: reads and writes on its pipe fail after a while instead of waiting."""
    limit = struct.pack("ll", _PIPE_TIMEOUT_S, 0)
    with socket.socket(fileno=os.dup(pipe.fileno())) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _built(pipe: Connection, reply: Reply) -> None:
    if reply.error_type:
        pipe.close()
        raise PoolBrokenError(f"{reply.error_type}: {reply.error_message}")
