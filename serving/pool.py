"""A pool of supervised worker processes, each behind a pipe of its own.

Why not a library pool: see docs/adr on inference workers. In short, a worker that dies, idle or busy, must cost nothing
but one retry of the task that it held; a worker that hangs must be ended by its deadline; a new model must be in every
worker before the first request reads it; and the parent must know each of these.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any, Protocol

from serving.memory import MB
from serving.process_slot import ProcessSlot
from serving.slots import START_TIMEOUT_S, PoolBrokenError, Shared, Slot, Task, WorkerLostError
from serving.watch import Watcher
from serving.worker import Call, HandlerSpec


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
    """Runs a handler's methods somewhere else, as many at once as its size."""

    name: str
    size: int

    def submit(self, method: str, *args: Any, timeout_s: float, hang_s: float | None = None) -> Future[Any]:
        """Call `method` on any worker's handler, once more where the first worker dies or says nothing for `hang_s`."""

    def everywhere(self, method: str, *args: Any, timeout_s: float) -> list[Future[Any]]:
        """Call `method` on every worker's handler."""

    def on_start(self, method: str, *args: Any) -> None:
        """Call `method` first thing on each worker that starts from now on, instead of what was said for it before."""

    def status(self) -> PoolStatus: ...

    def close(self, *, drain_s: float = 0.0) -> None:
        """Take no more, let running tasks end for at most `drain_s`, then stop."""


class SlotPool:
    """A pool of workers, each fed, watched and replaced by a thread of its own: the slots, which begin to work here."""

    def __init__(self, name: str, shared: Shared, slots: Sequence[Slot]) -> None:
        self.name = name
        self.size = len(slots)
        self._shared = shared
        self._slots = slots
        for slot in slots:
            slot.start()

    def submit(self, method: str, *args: Any, timeout_s: float, hang_s: float | None = None) -> Future[Any]:
        call, deadline = Call(method=method, args=args), time.monotonic() + timeout_s
        task = Task(call=call, future=Future(), deadline=deadline, hang_s=hang_s)
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


class ProcessPool(SlotPool):
    """`size` worker processes of this machine."""

    def __init__(
        self, *, name: str, size: int, spec: HandlerSpec, preload: tuple[str, ...] = (), memory_mb: int = 0
    ) -> None:
        shared, context = Shared(), _context(preload)
        self._watcher = Watcher(name)
        slots = [
            ProcessSlot(f"{name}-{number}", shared, spec, context, self._watcher, memory_mb * MB)
            for number in range(size)
        ]
        super().__init__(name, shared, slots)

    def close(self, *, drain_s: float = 0.0) -> None:
        super().close(drain_s=drain_s)
        self._watcher.close()


def _context(preload: tuple[str, ...]) -> ForkServerContext | SpawnContext:
    # Never fork: the server has threads, and a worker must not inherit what the server has imported.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["serving.worker", *preload])
    return context


class InlinePool:
    """The same calls on threads of this process, for tests and for machines too small for processes."""

    def __init__(self, *, name: str, size: int, build: Callable[[], Any]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.name = name
        self.size = size
        self._threads = ThreadPoolExecutor(max_workers=size, thread_name_prefix=name)
        self._handler = build()
        self._closed = False

    def submit(
        self,
        method: str,
        *args: Any,
        timeout_s: float,  # noqa: ARG002 - threads cannot be ended
        hang_s: float | None = None,  # noqa: ARG002
    ) -> Future[Any]:
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
