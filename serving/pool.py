"""A pool of supervised worker processes, each behind a pipe of its own.

Why not a library pool: see docs/adr on inference workers. In short, a worker that dies, idle or busy, must cost nothing
but one retry of the task that it held; a worker that hangs must be ended by its deadline; a new model must be in every
worker before the first request reads it; and the parent must know each of these.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from graph_features.errors import ModelError, RingfenceError, SchemaMismatchError, StoreUnavailableError
from serving.worker import Call, HandlerSpec, Reply, worker_main

log = logging.getLogger("ringfence.serving.pool")

MAX_ATTEMPTS = 2
"""A task whose worker died is tried once more, then given up: it may be what kills them."""

_FAILURES_UNTIL_BROKEN = 5
_LONGEST_BACKOFF_S = 5.0
_IDLE_CHECK_S = 0.2
_PIPE_TIMEOUT_S = 5
_START_TIMEOUT_S = 180.0
_REBUILT = {error.__name__: error for error in (StoreUnavailableError, SchemaMismatchError, ModelError)}


class WorkerLostError(RingfenceError):
    """The workers that held this task died or hung; send the request again."""


class PoolBrokenError(RingfenceError):
    """Workers cannot be kept alive: the server's log has the reason, /health the state."""


class TaskTimeoutError(RingfenceError):
    """A task did not end in its time."""


class TaskError(RingfenceError):
    """A task failed inside its worker: the server's log has the traceback."""


@dataclass(frozen=True, kw_only=True)
class PoolStatus:
    """A pool's state at one moment.

    `failures` counts failed starts and deaths at work since a task last worked; `restarts` all workers ever replaced.
    """

    name: str
    size: int
    alive: int
    busy: int
    queued: int
    restarts: int
    retries: int
    failures: int
    broken: bool
    pids: tuple[int, ...]


class Pool(Protocol):
    """Runs a handler's methods somewhere else."""

    def submit(self, method: str, *args: Any, timeout_s: float) -> Future[Any]:
        """Call `method` on any worker's handler."""

    def everywhere(self, method: str, *args: Any, timeout_s: float) -> list[Future[Any]]:
        """Call `method` on every worker's handler."""

    def on_start(self, method: str, *args: Any) -> None:
        """Call `method` first thing on each worker that starts from now on, instead of what was said for it before."""

    def status(self) -> PoolStatus: ...

    def close(self, *, drain_s: float = 0.0) -> None:
        """Take no more, let running tasks end for at most `drain_s`, then stop."""


@dataclass(kw_only=True)
class _Task:
    call: Call
    future: Future[Any]
    deadline: float
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
class _Shared:
    """What the slots of a pool share, guarded by `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    queue: deque[_Task] = field(default_factory=deque)
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


class ProcessPool:
    """`size` worker processes; each is fed, watched and replaced by a thread of its own."""

    def __init__(self, *, name: str, size: int, spec: HandlerSpec, preload: tuple[str, ...] = ()) -> None:
        self.name = name
        self.size = size
        self._shared = _Shared()
        context = _context(preload)
        self._slots = [_Slot(f"{name}-{number}", self._shared, spec, context) for number in range(size)]
        for slot in self._slots:
            slot.start()

    def submit(self, method: str, *args: Any, timeout_s: float) -> Future[Any]:
        task = _Task(call=Call(method=method, args=args), future=Future(), deadline=time.monotonic() + timeout_s)
        with self._shared.changed:
            self._check_open()
            self._shared.queue.append(task)
            self._shared.changed.notify_all()
        return task.future

    def everywhere(self, method: str, *args: Any, timeout_s: float) -> list[Future[Any]]:
        call = Call(method=method, args=args)
        deadline = time.monotonic() + timeout_s
        with self._shared.changed:
            self._check_open()
            tasks = [_Task(call=call, future=Future(), deadline=deadline) for _ in self._slots]
            for slot, task in zip(self._slots, tasks, strict=True):
                slot.inbox.append(task)
            self._shared.changed.notify_all()
        return [task.future for task in tasks]

    def on_start(self, method: str, *args: Any) -> None:
        with self._shared.changed:
            self._shared.setup[method] = Call(method=method, args=args)

    def status(self) -> PoolStatus:
        with self._shared.changed:
            pids = tuple(slot.pid for slot in self._slots if slot.pid is not None)
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
                pids=pids,
            )

    def wait_ready(self, timeout_s: float = _START_TIMEOUT_S) -> None:
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


def _context(preload: tuple[str, ...]) -> ForkServerContext | SpawnContext:
    # Never fork: the server has threads, and a worker must not inherit what the server has imported.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["serving.worker", *preload])
    return context


class _Slot(threading.Thread):
    """Keeps one worker process alive and hands it one task after the other."""

    def __init__(
        self, name: str, shared: _Shared, spec: HandlerSpec, context: ForkServerContext | SpawnContext
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: deque[_Task] = deque()
        self.pid: int | None = None
        self.busy = False
        self._shared = shared
        self._spec = spec
        self._context = context
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self) -> None:
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
        _built(ours, self._receive(time.monotonic() + _START_TIMEOUT_S))
        for call in list(self._shared.setup.values()):
            ours.send(call)
            _built(ours, self._receive(time.monotonic() + _START_TIMEOUT_S))
        with self._shared.changed:
            self.pid = process.pid
            self._shared.alive += 1
        log.info("worker started", extra={"worker": self.name, "worker_pid": process.pid})

    def _next_task(self) -> _Task | None:
        with self._shared.changed:
            if not self.inbox and not self._shared.queue and not self._shared.closing:
                self._shared.changed.wait(_IDLE_CHECK_S)
            if self._shared.closing:
                return None
            if self.inbox:
                return self.inbox.popleft()
            return self._shared.queue.popleft() if self._shared.queue else None

    def _run_task(self, task: _Task) -> None:
        assert self._pipe is not None
        if not task.start():
            return
        self.busy = True
        try:
            self._pipe.send(task.call)
            reply = self._receive(task.deadline)
        except (OSError, EOFError):
            self._lost("worker died at work")
            self._retry(task, WorkerLostError())
        except TaskTimeoutError as error:
            self._kill()
            self._lost("worker hung")
            self._retry(task, error)
        else:
            self._worked()
            task.finish(reply)
        finally:
            self.busy = False

    def _receive(self, deadline: float) -> Reply:
        assert self._pipe is not None
        if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
            raise TaskTimeoutError
        reply: Reply = self._pipe.recv()
        return reply

    def _retry(self, task: _Task, error: RingfenceError) -> None:
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


class InlinePool:
    """The same calls on threads of this process, for tests and for machines too small for processes."""

    def __init__(self, *, name: str, size: int, build: Callable[[], Any]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.name = name
        self.size = size
        self._threads = ThreadPoolExecutor(max_workers=size, thread_name_prefix=name)
        self._handler = build()
        self._closed = False

    def submit(self, method: str, *args: Any, timeout_s: float) -> Future[Any]:  # noqa: ARG002 - threads cannot be ended
        if self._closed:
            raise PoolBrokenError(f"{self.name}: the server is stopping")
        function: Callable[..., Any] = getattr(self._handler, method)
        return self._threads.submit(function, *args)

    def everywhere(self, method: str, *args: Any, timeout_s: float) -> list[Future[Any]]:
        return [self.submit(method, *args, timeout_s=timeout_s)]

    def on_start(self, method: str, *args: Any) -> None:
        """Nothing starts later."""

    def status(self) -> PoolStatus:
        return PoolStatus(
            name=self.name,
            size=self.size,
            alive=0 if self._closed else self.size,
            busy=0,
            queued=0,
            restarts=0,
            retries=0,
            failures=0,
            broken=self._closed,
            pids=(),
        )

    def close(self, *, drain_s: float = 0.0) -> None:
        self._closed = True
        self._threads.shutdown(wait=drain_s > 0, cancel_futures=drain_s <= 0)
        close: Callable[[], None] | None = getattr(self._handler, "close", None)
        if close is not None:
            close()
